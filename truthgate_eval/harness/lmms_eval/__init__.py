"""The adapter to lmms-eval: `gated_vlm` and its relatives, their tasks and probing data."""
