"""The folder of finished activations of an unfinished run, so that a killed one continues where it was.

    FOLDER/KEY/RANK-of-COUNT/FIRST-STOP.shard    the activations of batches FIRST to STOP - 1 of a capture

KEY is a digest of all that decides the activations: model, token ids or texts, site, batches, device.
See `docs/reliability.md#what-continues-after-an-interruption`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from truthgate_eval import __version__

log = logging.getLogger(__name__)

# Another number for another form of the shards.
_FORMAT = 1
_KEY = re.compile("[0-9a-f]{32}")


class CaptureStore:
    """The folder of one command's shards. It is made with the first of them, and not before."""

    def __init__(self, folder: Path, model: Callable[[], str]) -> None:
        """Name the folder.

        Args:
            folder: Its path; nothing else should be in it.
            model: Digest of the model and of what writes its inputs. Called once, where there are shards
                or the first one is to be written, since it may take seconds.
        """
        self.folder, self._model = folder, model
        self._key_of_model: str | None = None
        self._keys: list[str] = []
        self._has_warned = False

    def key(self, settings: Mapping[str, Any]) -> str:
        """The key of a capture with these settings.

        Raises:
            ModelError: The model has no digest.
        """
        if self._key_of_model is None:
            self._key_of_model = self._model()
        content = {"format": _FORMAT, "version": __version__, "model": self._key_of_model, **settings}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

    def use(self, key: str) -> Path:
        """The folder of a key, which `remove` removes."""
        if key not in self._keys:
            self._keys.append(key)
        return self.folder / key

    def warn_of_others(self) -> None:
        """Warn, once, of shards in the folder that no capture of this command has asked for so far."""
        others = [path for path in self._of_any_key() if path.name not in self._keys]
        if others and not self._has_warned:
            self._has_warned = True
            size = sum(file.stat().st_size for path in others for file in path.rglob("*") if file.is_file())
            log.warning(
                "%s holds %.1f MB of another command, or of another model or data: they are not used, and "
                "--fresh removes them", self.folder, size / 1e6,
            )  # fmt: skip

    def remove(self) -> None:
        """Remove the shards of this command's captures, and the folder if nothing else is in it."""
        for key in self._keys:
            shutil.rmtree(self.folder / key, ignore_errors=True)
        self._remove_if_empty()
        self.warn_of_others()

    def clear(self) -> None:
        """Remove all shards, whichever command's they are, and the folder if nothing else is in it."""
        for path in self._of_any_key():
            shutil.rmtree(path, ignore_errors=True)
        self._remove_if_empty()

    def _of_any_key(self) -> list[Path]:
        return [path for path in self.folder.glob("*") if _KEY.fullmatch(path.name) and path.is_dir()]

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(OSError):  # a user's own file is in it, or another process was first
            self.folder.rmdir()
