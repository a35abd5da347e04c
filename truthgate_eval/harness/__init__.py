"""The adapters to lm-eval and lmms-eval: the only modules that import a harness."""
