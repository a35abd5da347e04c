"""The gate in the real vLLM, on the CPU, against the gate in transformers."""
