"""Data sets: read from original releases, prepared once, loaded by tasks."""
