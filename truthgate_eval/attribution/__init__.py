"""Which heads matter for an answer: measures other than a linear probe."""
