"""Trains the packaged children of SmolLM2: `python -m training FOLDER --data scenes|easy_vqa|halueval`."""
