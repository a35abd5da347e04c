"""Paths of the package's own files, of its data folder and of its caches.

In a wheel, `tasks/`, `score_artifacts/` and `packaged_weights/` are inside the package; in a checkout they
are beside it.
"""

import importlib.util
import os
from pathlib import Path

import platformdirs

PACKAGE = Path(__file__).resolve().parent


def shipped(folder: str) -> Path:
    """The shipped folder `tasks`, `score_artifacts` or `packaged_weights`, in a wheel or in a checkout."""
    inside = PACKAGE / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def cache_dir() -> Path:
    """The user's cache folder, with converted models: `$TRUTHGATE_CACHE`, or the platform's cache folder."""
    return Path(os.environ.get("TRUTHGATE_CACHE") or platformdirs.user_cache_dir("truthgate_eval"))


def data_dir() -> Path:
    """The folder of prepared data sets: `$TRUTHGATE_DATA`, or `data` in the user's cache folder."""
    given = os.environ.get("TRUTHGATE_DATA")
    return Path(given) if given else cache_dir() / "data"


def packaged_file(package: str, *parts: str) -> Path | None:
    """Path of a file inside an installed package, or None. The package is not imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], *parts)
    return path if path.exists() else None
