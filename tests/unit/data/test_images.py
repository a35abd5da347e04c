"""Images: found by name in folders, and opened."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from helpers.images import save_image
from PIL import ExifTags, Image, ImageFile
from transformers.image_utils import load_image

from truthgate_eval.data.author_sequences import read_sequences
from truthgate_eval.data.images import IMAGE_SUFFIXES, ImageFolders, open_image
from truthgate_eval.data.phd import prepare_phd
from truthgate_eval.data.poll import prepare_poll
from truthgate_eval.data.pope import prepare_pope
from truthgate_eval.data.rlhf_v import prepare_rlhf_v
from truthgate_eval.errors import DataError
from truthgate_eval.metrics.pope import SPLITS


def test_a_coco_image_is_found_by_its_name_in_every_release(tmp_path: Path) -> None:
    save_image(tmp_path / "000000310196.jpg")
    folders = ImageFolders([tmp_path])
    for name in ("COCO_val2014_000000310196.jpg", "000000310196.jpg", "310196", "train/000000310196.jpg"):
        assert folders.find(name) == tmp_path / "000000310196.jpg", name
    assert folders.find("310197") is None
    assert folders.find("2310196.jpg") is None


@pytest.mark.parametrize("name", ["train/000000310196.png", "coco/val2017/000000310196.png", "310196"])
def test_a_coco_number_counts_in_the_folders_of_cocos_releases_only(tmp_path: Path, name: str) -> None:
    save_image(tmp_path / "other" / "COCO_val2014_000000310196.jpg")
    folders = ImageFolders([tmp_path])
    assert folders.find(name) == tmp_path / "other" / "COCO_val2014_000000310196.jpg"
    assert folders.find("frames/000000310196.png") is None
    assert folders.find("310196.png") is None  # Visual Genome's names have numbers without zeros


@pytest.fixture
def two_years(tmp_path: Path) -> Path:
    """The same names in two folders, for different images, and a name that is in one folder only."""
    for number, year in enumerate(("2023", "2024")):
        for name in ("IMG_1.png", "000000000001.png"):
            (tmp_path / year).mkdir(exist_ok=True)
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / year / name)
    save_image(tmp_path / "2023" / "IMG_2.png")
    return tmp_path


def test_a_name_with_folders_is_that_of_a_file_whose_path_ends_so(two_years: Path) -> None:
    folders = ImageFolders([two_years])
    for name in ("2024/IMG_1.png", "./2024/IMG_1.png", "2024/IMG_1", "2024/IMG_1.jpg", "2024/000000000001.png",
                 f"{two_years.name}/2024/IMG_1.png", str(two_years / "2024" / "IMG_1.png")):  # fmt: skip
        found = folders.find(name)
        assert found is not None and found.parent == two_years / "2024", name
    assert ImageFolders([two_years / "2024"]).find("2024/IMG_1.png") == two_years / "2024" / "IMG_1.png"
    for name in ("nowhere/IMG_1.png", "nowhere/IMG_2.png", "2024/IMG_2.png", "24/IMG_1.png", "nowhere/IMG_1",
                 "nowhere/000000000001.png"):  # fmt: skip
        assert folders.find(name) is None, name
    assert folders.find_all(["2023/IMG_2.png", "2024/IMG_2.png", "2023/IMG_1.png"]) == (
        {name: two_years / name for name in ("2023/IMG_2.png", "2023/IMG_1.png")},
        ["2024/IMG_2.png"],
    )


@pytest.mark.parametrize("name", ["IMG_1.png", "IMG_1", "IMG_1.jpg", "000000000001.png", "1"])
def test_a_name_of_different_images_is_refused_with_their_paths(two_years: Path, name: str) -> None:
    folders = ImageFolders([two_years])
    message = rf"1 image names .*: {name} \(.*2023/\S+\.png and .*2024/\S+\.png\); write each name with"
    for find in (folders.find, lambda name: folders.find_all(["IMG_2.png", name, name])):
        with pytest.raises(DataError, match=message):
            find(name)


def test_copies_of_one_image_are_one(tmp_path: Path) -> None:
    """A folder given twice, and a file that was copied or linked, leave no doubt."""
    for year in ("2023", "2024"):
        save_image(tmp_path / year / "a.png")
    os.symlink(tmp_path / "2023" / "a.png", tmp_path / "a.png")
    folders = ImageFolders([tmp_path / "2023", tmp_path, tmp_path / "2024"])
    assert folders.find("a.png") == tmp_path / "2023" / "a.png" and len(folders) == 3


def test_an_absolute_path_of_another_machine_ends_as_the_path_in_a_folder(two_years: Path) -> None:
    """As in the results of a run elsewhere: a folder given here stands for one of its folders."""
    folders = ImageFolders([two_years])
    assert folders.find("/cluster/images/2024/IMG_1.png") == two_years / "2024" / "IMG_1.png"
    assert folders.find("/cluster/images/2025/IMG_1.png") is None
    flat = ImageFolders([two_years / "2023"])
    assert flat.find("/cluster/images/IMG_1.png") == two_years / "2023" / "IMG_1.png"
    save_image(two_years / "IMG_1.png")  # a shorter end of the path than that of 2024/IMG_1.png
    assert ImageFolders([two_years]).find("/x/2024/IMG_1.png") == two_years / "2024" / "IMG_1.png"


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def poll(folder: Path, name: str) -> object:
    file = write(
        folder / "a.jsonl", [{"image": name, "objects": ["dog"]}, {"image": "b", "objects": ["cat"]}]
    )
    return prepare_poll(file, [folder], folder, per_image=1)


def pope(folder: Path, name: str) -> object:
    for split in SPLITS:
        question = {"question_id": 1, "image": name, "text": "?", "label": "yes"}
        write(folder / f"coco_pope_{split}.json", [question])
    return prepare_pope(folder, [folder], folder, sources=["coco"])


def sequences(folder: Path, name: str) -> Path:
    line = {"question_id": 1, "question": "?", "answer": "yes", "label": "gold", "image_path": name}
    return write(folder / "a.jsonl", [line])


def phd(folder: Path, name: str) -> object:
    record = {"image_id": name, "task": "", "yes_question": "a", "no_question": "b", "context": {"icc": "c"}}
    (folder / "data.json").write_text(json.dumps([record]))
    return prepare_phd(folder / "data.json", [folder], folder)


@pytest.mark.parametrize("read", [
    poll, pope, phd,
    lambda folder, name: prepare_phd(sequences(folder, name), [folder], folder),
    lambda folder, name: prepare_rlhf_v(folder, parquet=sequences(folder, name), images=[folder]),
    lambda folder, name: read_sequences(sequences(folder, name), ImageFolders([folder])),
])  # fmt: skip
def test_every_reader_names_an_ambiguous_image(read: Callable[[Path, str], object], two_years: Path) -> None:
    with pytest.raises(DataError, match=r"IMG_1\.png \(.*2023/IMG_1\.png and .*2024/IMG_1\.png\)"):
        read(two_years, "IMG_1.png")
    assert not list(two_years.rglob("*.parquet"))


@pytest.mark.parametrize(
    "suffix", [".jfif", ".tif", ".tiff", ".avif", ".webp", ".JPG", ".jpe", ".PNG", ".apng"]
)
def test_images_have_any_suffix_in_use(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    known = Image.registered_extensions().get(suffix.lower())
    # The content decides the format: a Pillow without AVIF opens a PNG file of that name.
    Image.new("RGB", (8, 6), (200, 30, 30)).save(path, known or "PNG")
    folders = ImageFolders([tmp_path])
    assert folders.find(path.name) == folders.find("a") == folders.find("a.bmp") == path
    assert open_image(path).tobytes() == load_image(str(path)).tobytes()


def test_the_suffixes_are_some_of_those_of_datasets_image_folders() -> None:
    newer = {".avif"}  # Pillow reads it since 11.3
    assert set(IMAGE_SUFFIXES) - newer <= set(ImageFolder.EXTENSIONS)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_name_is_found_in_another_unicode_normalization(tmp_path: Path, form: Any) -> None:
    name = "caf\u00e9/\u00fcber.png"
    stored = tmp_path / unicodedata.normalize(form, name)
    save_image(stored)
    folders = ImageFolders([tmp_path])
    for other in ("NFC", "NFD"):
        given = unicodedata.normalize(other, name)  # type: ignore[arg-type]
        assert folders.find(given) == folders.find(Path(given).name) == folders.find(given[:-4]) == stored


def test_of_two_normalizations_in_one_folder_the_very_name_counts(tmp_path: Path) -> None:
    for n, form in enumerate(("NFC", "NFD")):
        Image.new("L", (8, 6), n).save(tmp_path / unicodedata.normalize(form, "\u00e9.png"))  # type: ignore[arg-type]
    folders = ImageFolders([tmp_path])
    for form in ("NFC", "NFD"):
        name = unicodedata.normalize(form, "\u00e9.png")  # type: ignore[arg-type]
        assert folders.find(name) == tmp_path / name


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


def gradient(mode: str) -> Image.Image:
    """An image whose pixels all differ, so that a turn, a clip or a lost channel shows."""
    values = np.arange(12 * 8, dtype=np.uint8).reshape(8, 12) * 2
    bands = [np.roll(values, n) for n in range(len(Image.new(mode, (1, 1)).getbands()))]
    return Image.merge(mode, [Image.fromarray(band) for band in bands])


def turned(orientation: int) -> Callable[[Path], None]:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return lambda path: gradient("RGB").save(path, exif=exif)


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.arange(0, 65536, 683, dtype=np.uint16).reshape(8, 12)).save(path)


def transparent_palette(path: Path) -> None:
    gradient("RGB").quantize(16).save(path, transparency=3)


def animation(path: Path) -> None:
    frames = [gradient("RGB").transpose(Image.Transpose.ROTATE_180), gradient("RGB")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


# By name of the file: how it is written.
FILES: dict[str, Callable[[Path], None]] = {
    **{f"turned_{n}.jpg": turned(n) for n in range(1, 9)},
    "turned_6.png": turned(6),
    "turned_6.tif": turned(6),
    "cmyk.jpg": lambda path: gradient("CMYK").save(path),
    "sixteen_bits.png": sixteen_bits,
    "alpha.png": lambda path: gradient("RGBA").save(path),
    "gray_alpha.png": lambda path: gradient("LA").save(path),
    "transparent_palette.png": transparent_palette,
    "one_bit.png": lambda path: gradient("L").convert("1").save(path),
    "float.tif": lambda path: gradient("L").convert("F").save(path),
    "lab.tif": lambda path: gradient("LAB").save(path),
    "animation.gif": animation,
    "animation.webp": animation,
    "pages.tif": animation,
}


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_the_pixels_that_transformers_loads(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    expected = load_image(str(tmp_path / name))
    found = open_image(tmp_path / name)
    assert (found.mode, found.size) == ("RGB", expected.size) and found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_an_image_has_the_pixels_that_datasets_decodes(tmp_path: Path, name: str) -> None:
    FILES[name](tmp_path / name)
    decoded = datasets.Image(mode="RGB").decode_example({"path": str(tmp_path / name), "bytes": None})
    found = open_image(tmp_path / name)
    assert found.size == decoded.size and found.tobytes() == decoded.tobytes()


def test_pixels_after_the_conversion_are_these(tmp_path: Path) -> None:
    """The values themselves: the oracles above could change together with Pillow."""
    for name in ("turned_6.jpg", "sixteen_bits.png", "alpha.png", "animation.webp"):
        FILES[name](tmp_path / name)
    upright = open_image(tmp_path / "turned_6.jpg")
    assert upright.size == (8, 12)  # stored as 12 x 8
    stored = np.asarray(Image.open(tmp_path / "turned_6.jpg"))
    assert np.array_equal(np.asarray(upright), np.rot90(stored, k=-1))
    assert np.unique(np.asarray(open_image(tmp_path / "sixteen_bits.png"))).tolist() == [0, 255]
    assert open_image(tmp_path / "alpha.png").getpixel((2, 0)) == gradient("RGBA").getpixel((2, 0))[:3]  # type: ignore[index]
    small = open_image(tmp_path / "turned_6.jpg", min_side=4)
    assert small.width < small.height  # a reduced image is upright as well


@pytest.fixture
def over_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image that has more pixels than Pillow decodes."""
    save_image(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    return tmp_path / "huge.png"


@pytest.mark.parametrize("min_side", [None, 4])
def test_an_image_over_pillows_limit_is_named(over_the_limit: Path, min_side: int | None) -> None:
    with pytest.raises(
        DataError, match=r"cannot read the image .*huge\.png: Image size \(48 pixels\) exceeds"
    ):
        open_image(over_the_limit, min_side=min_side)


def test_a_truncated_image_is_refused_although_lmms_eval_fills_it_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient("RGB").resize((400, 300)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-900])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for min_side in (None, 30):
        with pytest.raises(DataError, match=r"cannot read the image .*a\.jpg: image file is truncated"):
            open_image(tmp_path / "a.jpg", min_side=min_side)
    assert ImageFile.LOAD_TRUNCATED_IMAGES
