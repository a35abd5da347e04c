"""What is in the wheel and in the source distribution, as hatchling builds them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from truthgate_eval.packaged.models import CHILDREN, EARLY

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted(name for name in CHILDREN if not name.endswith(EARLY))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    return zipfile.ZipFile(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.mark.slow
def test_the_wheel_has_the_weights_of_all_children_but_early_states(wheel: zipfile.ZipFile) -> None:
    prefix = "truthgate_eval/packaged_weights/"
    found = [name.removeprefix(prefix) for name in wheel.namelist() if name.startswith(prefix)]
    assert sorted({name.split("/")[0] for name in found}) == SHIPPED
    assert {f"{name}/{file}" for name in SHIPPED for file in (*CHILDREN[name].files, "README.md")} <= {*found}
    assert sum(info.compress_size for info in wheel.infolist()) < 40e6


@pytest.mark.slow
def test_the_wheel_has_tasks_artifacts_and_startup_files_and_nothing_of_the_repository_beside(
    wheel: zipfile.ZipFile,
) -> None:
    names = set(wheel.namelist())
    assert {"truthgate_eval_autoload.pth", "_truthgate_autoload.py", "truthgate_eval/py.typed"} <= names
    for folder in ("tasks", "score_artifacts"):
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*.*")}
        files = {name for name in files if "__pycache__" not in name}
        assert files and {f"truthgate_eval/{name}" for name in files} <= names
    tops = {name.split("/")[0] for name in names if not name.startswith("truthgate_eval-")}
    assert tops == {
        "truthgate_eval", "truthgate_eval_autoload.pth", "truthgate_eval_autoload.start",
        "_truthgate_autoload.py",
    }  # fmt: skip


@pytest.mark.slow
def test_the_source_distribution_has_what_the_wheel_is_built_from(tmp_path: Path) -> None:
    file = next(SdistBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with tarfile.open(file) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    weights = {
        name.split("/")[1]
        for name in names
        # Licences are there of all, as `license-files` says.
        if name.startswith("packaged_weights/") and not name.endswith("/LICENSE")
    }
    assert sorted(weights) == SHIPPED
    assert {"hatch_build.py", "startup/_truthgate_autoload.py", "LICENSE", "pyproject.toml"} <= names
