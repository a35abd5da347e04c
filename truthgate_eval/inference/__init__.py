"""Forward passes that compute shared prefixes once: log-likelihoods, greedy decoding, hidden activations."""
