"""Faults, injected into real commands: what is on the disk afterwards, and after the next start."""
