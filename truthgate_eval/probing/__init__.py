"""Linear probes of every attention head: activations in, a score artifact out."""
