"""Runs of either harness, read back: tasks, one result per document, the method each run stands for."""
