"""Images of too many pixels, and those that are programs."""

from __future__ import annotations

import io
from pathlib import Path

from helpers.bounds import check_refused
from PIL import Image

from truthgate_eval.data.images import open_image


def test_an_image_of_too_many_pixels_is_refused(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.new("1", (13_000, 13_000)).save(content, "PNG")
    (tmp_path / "a.png").write_bytes(content.getvalue())
    check_refused(lambda: open_image(tmp_path / "a.png"), r"Image size \(169000000 pixels\) exceeds")


def test_an_image_that_is_a_program_is_refused(tmp_path: Path) -> None:
    """Pillow starts Ghostscript for EPS, whatever the file's name, and for EPS inside of IPTC."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", "EPS")
    fields = {(3, 20): b"\4", (3, 30): b"\4", (3, 60): b"\1\0", (3, 120): b"\5"}  # 4 by 4, gray, JPEG
    fields[8, 10] = (tmp_path / "a.png").read_bytes()
    iptc = b"".join(bytes([28, *tag]) + len(text).to_bytes(2, "big") + text for tag, text in fields.items())
    (tmp_path / "b.png").write_bytes(iptc)
    assert Image.open(tmp_path / "b.png").format == "IPTC"
    for name in ("a.png", "b.png"):
        check_refused(lambda name=name: open_image(tmp_path / name), "cannot identify image file")  # type: ignore[misc]
