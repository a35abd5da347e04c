"""Runs and artifacts as one HTML page that needs no network."""
