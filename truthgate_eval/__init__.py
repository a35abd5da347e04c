"""Find the attention heads that tell truth from hallucination, and gate them."""
