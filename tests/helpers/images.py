"""Small image files."""

from __future__ import annotations

from pathlib import Path

from PIL import Image


def save_image(path: Path) -> bytes:
    """Save a small image, with the folders that it needs, and return the file's content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (200, 30, 30)).save(path)
    return path.read_bytes()
