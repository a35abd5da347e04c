"""The soft gate: a model's attention heads, their truth scores, the gate, and the search for its settings."""
