"""Trains a small child model that sees: `python -m training FOLDER`."""
