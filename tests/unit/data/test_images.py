"""Images: found by name in folders, and opened."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.images import save_image
from PIL import Image

from truthgate_eval.data.images import ImageFolders, open_image
from truthgate_eval.errors import DataError


def test_a_coco_image_is_found_by_its_name_in_every_release(tmp_path: Path) -> None:
    save_image(tmp_path / "000000310196.jpg")
    folders = ImageFolders([tmp_path])
    for name in ("COCO_val2014_000000310196.jpg", "000000310196.jpg", "310196", "train/000000310196.jpg"):
        assert folders.find(name) == tmp_path / "000000310196.jpg", name
    assert folders.find("310197") is None
    assert folders.find("2310196.jpg") is None


@pytest.mark.parametrize("content", [b"", b"not an image"])
def test_a_file_that_is_no_image_is_reported_by_its_path(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.jpg").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read the image .*broken\.jpg"):
        open_image(tmp_path / "broken.jpg")
    with pytest.raises(DataError, match=r"no image at .*gone\.jpg"):
        open_image(tmp_path / "gone.jpg")


def test_an_image_is_opened_in_rgb_and_in_its_own_size(tmp_path: Path) -> None:
    Image.new("L", (90, 60), 7).save(tmp_path / "gray.png")
    image = open_image(tmp_path / "gray.png")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (90, 60), (7, 7, 7))


def test_a_jpeg_can_be_decoded_at_a_reduced_size(tmp_path: Path) -> None:
    Image.new("RGB", (640, 480), (200, 30, 30)).save(tmp_path / "a.jpg")
    reduced = open_image(tmp_path / "a.jpg", min_side=60)
    assert 60 <= min(reduced.size) < 480 and open_image(tmp_path / "a.jpg").size == (640, 480)
