"""Trains the packaged vision-language model smollm2-135m-scenes: `python -m training FOLDER`."""
