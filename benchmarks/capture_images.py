"""Activations of answers about images, against transformers' own loop: one forward a sequence, batch 8.

The model is that of `benchmarks.pope`: the real SmolLM2-135M behind a small vision tower that makes
LLaVA-1.5's 576 tokens of an image; on a GPU, LLaVA-1.5-7B's shape. Each image has one or six questions of its
own, and each question two answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.capture import agree
from benchmarks.measure import Result, compare
from benchmarks.pope import THINGS, checkpoint, make_image
from truthgate_eval.gating.attention_layout import AttentionLayout, find_attention_layout
from truthgate_eval.inference.prefix_plan import plan_prefixes
from truthgate_eval.probing.dataset import ProbeDataset, ProbeExample
from truthgate_eval.probing.image_capture import capture_with_images
from truthgate_eval.probing.image_conditions import write_prompt
from truthgate_eval.vision.loading import LoadOptions, load_vlm
from truthgate_eval.vision.model import VisionLanguageModel
from truthgate_eval.vision.self_check import load_question_engine

DEVICES = ("cpu", "cuda")
BATCH_SIZE = 8
_PROMPT = "Is there a {} in the image?\nAnswer the question using a single word or phrase."


def run(name: str, *, quick: bool, rounds: int, device: str = "cpu") -> Iterator[Result]:
    """Yield the comparison with one question an image, and that with six."""
    torch.set_num_threads(1)
    dtype = "float32" if device == "cpu" else "bfloat16"
    vlm = load_vlm(LoadOptions(checkpoint(device), device=device, dtype=dtype))
    layout = find_attention_layout(vlm.model)
    engine = load_question_engine(vlm)  # runs the self check before the clock starts
    if engine is None:
        raise RuntimeError(f"{vlm.name} cannot share prefixes")
    for questions, images in ((1, 1), (6, 1)) if quick else ((1, 4), (6, 1)):
        dataset = answers_about(images, questions)

        def ours(dataset: ProbeDataset = dataset) -> np.ndarray:
            engine.feature_cache.for_model(None)  # every round encodes the images again
            return capture_with_images(vlm, dataset, batch_size=BATCH_SIZE, layout=layout, engine=engine)

        yield compare(
            f"{name}_{questions}",
            f"{len(dataset)} sequences: {images} images of 576 tokens, {questions} "
            f"question{'s' * (questions > 1)} about each, 2 answers to each",
            len(dataset),
            ("transformers, batch 8, hooks", partial(plain_loop, vlm, layout, dataset)),
            ("truthgate_eval.probing.capture_with_images, batch_size=8", ours),
            lambda theirs, ours, dataset=dataset: {
                **agree(theirs, ours, 1e-5 if device == "cpu" else 0.1),
                **tokens(vlm, dataset),
            },
            rounds=rounds,
            device=device,
        )


def answers_about(images: int, questions: int) -> ProbeDataset:
    """Yes and no to each of some questions about each of some images."""
    examples = [
        ProbeExample(
            _PROMPT.format(thing), answer, answer == " Yes", image * questions + number,
            partial(make_images, image), image,
        )
        for image in range(images)
        for number, thing in enumerate(THINGS[:questions])
        for answer in (" Yes", " No")
    ]  # fmt: skip
    return ProbeDataset(examples, {}, {"task": "pope"})


def make_images(seed: int) -> list[Any]:
    """A document's image."""
    return [make_image(seed)]


def plain_loop(vlm: VisionLanguageModel, layout: AttentionLayout, dataset: ProbeDataset) -> np.ndarray:
    """Processor, model and a hook on each layer's output projection, as a user of transformers writes it."""
    model, processor, kept = vlm.model, vlm.processor, list[np.ndarray]()
    processor.tokenizer.padding_side = "right"
    for start in range(0, len(dataset), BATCH_SIZE):
        examples = dataset.examples[start : start + BATCH_SIZE]
        texts = [write_prompt(vlm, example, 1, bare_question=False) for example in examples]
        images = [example.load_images() for example in examples if example.load_images is not None]
        inputs = processor(text=texts, images=images, padding=True, return_tensors="pt")
        inputs = inputs.to(model.device, model.dtype)
        last = inputs["attention_mask"].sum(dim=1) - 1
        rows, outputs = torch.arange(len(texts), device=model.device), list[torch.Tensor]()
        hooks = [
            projection.module.register_forward_hook(
                lambda _module, _args, output, last=last, rows=rows, outputs=outputs: outputs.append(
                    output[rows, last]
                )
            )
            for projection in layout.projections
        ]
        with torch.no_grad():
            model(**inputs)
        for hook in hooks:
            hook.remove()
        kept.append(torch.stack(outputs, dim=1).float().cpu().numpy())
    processor.tokenizer.padding_side = "left"
    return np.concatenate(kept)


def tokens(vlm: VisionLanguageModel, dataset: ProbeDataset) -> dict[str, Any]:
    """How many times as many tokens the baseline runs: its padding is left out, and so are its logits."""
    sequences = []
    for example in dataset.examples:
        text = write_prompt(vlm, example, 1, bare_question=False)
        sequences.append(expand(vlm.answer_tokens(text), int(str(example.image_key))))
    theirs, ours = sum(map(len, sequences)), plan_prefixes(sequences).num_tokens
    return {"tokens_baseline_over_ours": f"{theirs / ours:.2f}"}


def expand(token_ids: Sequence[int], image: int) -> list[int]:
    """Token ids with the tokens of an image, which are other numbers for another image."""
    return [*range(-576 * (image + 1), -576 * image), *token_ids]
