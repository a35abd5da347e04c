"""The soft gate: where heads are, their scores, the gate, and the search for its settings."""
