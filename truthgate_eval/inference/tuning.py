"""Numbers that decide how fast inference is and how much memory it takes, and no result.

Each comment names the benchmark (`python -m benchmarks NAME`) in which the number shows; change one only with
a measurement before and after. `docs/performance.md#how-the-engine-works` explains what they are for.
"""

from __future__ import annotations

import torch

# Planning prefixes (`inference/prefix_tree`). Costs are counted in tokens that go through the weights.
# Benchmarks: capture, halueval, pope.

# Attention in a packed prompt is dense: a prompt of L tokens costs L * L / 3,000 tokens on top of its L. A
# hidden size of 576, SmolLM2-135M's, makes it 3,000; larger models more.
ATTENTION_COST_SCALE = 3000.0
# What a pass of its own for a shared prefix costs, in tokens, however short the prefix: an accelerator is
# idle in a pass of batch 1 that the other prompts wait for. A CPU is as fast on few tokens as on many.
# Benchmarks: pope (CPU), no measurement on a GPU.
PREFIX_PASS_COST = 256.0
PREFIX_PASS_COST_ON_CPU = 32.0
# More sequences on one prefix than this are not tried as packed prompts: a shared prefix of its own serves
# them better, and planning stays linear.
MAX_SUFFIXES = 64

# Batches (`inference/batching`). Tokens of a first batch with batch_size=auto: what keeps a device busy;
# halved where memory ends. Benchmark: halueval.
AUTO_BATCH_TOKENS = 16384
AUTO_BATCH_TOKENS_ON_CPU = 4096
# Tokens of a batch for each CPU thread while activations are captured, where nothing is decoded: the hidden
# states of more leave the processor's cache. Benchmark: capture.
CAPTURE_TOKENS_PER_THREAD = 512

# Key-value cache (`inference/kv_cache`) and decoding (`inference/greedy`). Benchmarks: halueval, pope.

# Columns by which a layer's own keys and values grow at least: growing copies them.
CACHE_GROWTH = 32
# Sequences that share a batch row are decoded in it for as long as this part of its slots is taken; after
# that, a row of its own for each sequence computes less.
MIN_SLOT_OCCUPANCY = 0.75
# Finished sequences stay in the batch until no more than this part of it is unfinished: taking them out
# copies the rest.
MAX_UNFINISHED_TO_COMPACT = 0.75

# Lower-layer cache (`inference/lower_layer_cache`): the part of the free memory that it may fill; batches
# need the rest. Benchmark: sweep.
LOWER_LAYER_MEMORY_SHARE = 0.25

# Images (`vision/image_features`, `vision/question_engine`). Benchmark: pope.

# Bytes of image features that are kept for later questions.
IMAGE_FEATURE_CACHE_BYTES = 2 << 30
# Bytes of image features of the questions that are planned together.
PLANNED_FEATURE_BYTES = 1 << 30
# Bytes of decoded images that wait for the vision tower; images beyond are decoded again when it is their
# turn.
DECODED_IMAGE_BYTES = 1 << 30
# Images in one pass of the vision tower where batch_size is `auto`.
AUTO_IMAGE_BATCH = 16


def prefix_pass_cost(device: torch.device) -> float:
    """Tokens that a pass of its own costs on a device, however short the prefix."""
    return PREFIX_PASS_COST_ON_CPU if device.type == "cpu" else PREFIX_PASS_COST


def auto_batch_tokens(device: torch.device) -> int:
    """Tokens of the first batch on a device with `batch_size=auto`."""
    return AUTO_BATCH_TOKENS_ON_CPU if device.type == "cpu" else AUTO_BATCH_TOKENS
