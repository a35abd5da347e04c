"""Runs many prompts through a causal language model, and computes once what they have in common.

To read it: `prefix_plan` (what to compute), `packing` (as a model's input), `shared_prefix` (the model),
`kv_cache` (its keys and values), then `greedy` and `loglikelihood` (answers). `self_check.load` is where to
begin when using it.
"""
