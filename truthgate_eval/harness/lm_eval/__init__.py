"""The adapter to lm-eval: `gated_hf`, its tasks and its probing data."""
