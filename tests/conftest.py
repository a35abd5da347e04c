"""Shared paths and fixtures. Real data is read from ../shared/data where it is there."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# No test may reach for a hub: what is not on this machine must come from a package or a config.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository; its absence skips the test, with the reason."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real data beside the repository (../shared/data)")
    return folder
