"""Counts the images that Pillow decodes, and those that go through a vision tower."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import ImageFile


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the file's name, or by an empty text, for every image that Pillow decodes."""
    decoded: list[str] = []
    load = ImageFile.ImageFile.load

    def counted(self: Any) -> Any:
        if getattr(self, "tile", None):
            name = getattr(self, "filename", "")
            decoded.append(name if isinstance(name, str) else "")
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    return decoded


def count_encoded(model: Any) -> list[bytes]:
    """Grows by its pixels for every image that goes through a LLaVA's vision tower."""
    encoded: list[bytes] = []

    def count(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        pixels = args[0] if args else kwargs["pixel_values"]
        encoded.extend(image.numpy().tobytes() for image in pixels)

    tower = next(module for name, module in model.named_modules() if name.endswith("vision_tower"))
    tower.register_forward_pre_hook(count, with_kwargs=True)
    return encoded
