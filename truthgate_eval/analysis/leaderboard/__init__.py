"""Runs side by side with paired statistics, in the terminal and as files."""
