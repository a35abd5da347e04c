"""The licence of the packaged weights is beside them, in the repository and in the wheel."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The licence's text as apache.org has it.
APACHE_2 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_every_folder_of_weights_has_the_licence_of_the_model_that_they_modify() -> None:
    folders = sorted(path for path in (ROOT / "packaged_weights").iterdir() if path.is_dir())
    assert folders
    for folder in folders:
        assert sha256((folder / "LICENSE").read_bytes()) == APACHE_2, folder
        assert "Apache-2.0" in (folder / "README.md").read_text(), folder


@pytest.mark.slow
def test_the_wheel_has_the_licence_beside_the_weights(tmp_path: Path) -> None:
    wheel_builder = pytest.importorskip(
        "hatchling.builders.wheel", reason="needs hatchling to build the wheel"
    )
    [built] = wheel_builder.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(built) as wheel:
        names = wheel.namelist()
        [metadata] = [wheel.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
        weights = {str(Path(name).parent) for name in names if name.endswith(".safetensors")}
        assert weights
        for folder in weights:
            assert sha256(wheel.read(f"{folder}/LICENSE")) == APACHE_2
    assert "License-Expression: MIT AND Apache-2.0" in metadata
