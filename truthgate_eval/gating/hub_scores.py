"""Truth scores on a model hub: which files an address means, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from truthgate_eval.errors import HubError, ScoresError
from truthgate_eval.gating.ia3_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from truthgate_eval.hub import HubAddress, HubFile, fetch

SCORE_SUFFIXES = (".npz", ".npy", ".csv", ".json", ".jsonl")
# Under this name an artifact's metadata, and a gate in a results file, say which file of the hub it was.
ORIGIN = "hub"
_FIELDS = ("repo", "file", "revision", "commit", "file_sha256")
_MAX_LENGTH = 300  # characters of a field


@dataclass(frozen=True)
class FetchedScores:
    """Scores that were fetched.

    Attributes:
        path: The file or adapter folder in huggingface_hub's cache.
        pinned: Its address at the commit.
        origin: What is recorded of it: repository, file, the revision that was asked for (None for the main
            branch), its commit, and the SHA-256 of the file, which of an adapter is the one with its weights.
    """

    path: Path
    pinned: HubAddress
    origin: dict[str, str | None]

    def with_origin(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """The metadata of the scores in the files, with where they are from, whatever the files say of it."""
        named = {"imported_from": str(self.pinned)} if "imported_from" in metadata else {}
        return {**metadata, **named, ORIGIN: self.origin}


def fetch_scores(name: str) -> FetchedScores:
    """Fetch the score file, or the two files of the adapter, that an address names, and nothing else.

    Args:
        name: `hf://OWNER/REPO[@REVISION]/FILE[#sha256=HEX]`. Without a suffix of a score file it is a
            folder, or the repository itself, with an adapter that `truthgate export` wrote.

    Raises:
        ScoresError: The name is no address, or its files cannot be fetched.
    """
    try:
        asked = HubAddress.parse(name)
        if asked.path.lower().endswith(SCORE_SUFFIXES):
            found, file = asked, fetch(asked)
            path = file.path
        else:
            found, file = _fetch_adapter(asked)
            path = file.path.parent
    except HubError as error:
        raise ScoresError(str(error)) from error
    origin = {
        "repo": found.repo,
        "file": found.path,
        "revision": asked.revision,
        "commit": file.commit,
        "file_sha256": file.sha256,
    }
    return FetchedScores(path, replace(asked, revision=file.commit, sha256=None), origin)


def _fetch_adapter(asked: HubAddress) -> tuple[HubAddress, HubFile]:
    """Fetch the config and the weights of an adapter into one folder; the weights' address, and they.

    The weights are those of the commit that the config is from, so that a push in between changes nothing.
    """
    if asked.repo.lower().endswith(SCORE_SUFFIXES):
        raise HubError(f"{str(asked)!r} names no repository: expected hf://owner/repo/file.npz")
    folder = f"{asked.path}/" if asked.path else ""
    try:
        config = fetch(replace(asked, path=f"{folder}{ADAPTER_CONFIG}", sha256=None))
    except HubError as error:
        raise HubError(
            f"{error}. An address that ends in none of {', '.join(SCORE_SUFFIXES)} means an adapter's folder"
        ) from error
    weights = replace(asked.at(config.commit), path=f"{folder}{ADAPTER_WEIGHTS}")
    return weights, fetch(weights)


def recorded_origin(metadata: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """What an artifact's metadata say of the file on the hub that it is, or was made from, under `hub`.

    Empty where they say nothing. They come from a file, so only short texts are taken.

    Example:
        >>> recorded_origin({"hub": {"repo": "owner/repo", "commit": 3, "more": "x"}})
        {'hub': {'repo': 'owner/repo'}}
        >>> recorded_origin({"hub": "owner/repo"})
        {}
    """
    recorded = metadata.get(ORIGIN)
    if not isinstance(recorded, dict):
        return {}
    found = {name: recorded.get(name) for name in _FIELDS}
    kept = {k: v for k, v in found.items() if isinstance(v, str) and len(v) <= _MAX_LENGTH}
    return {ORIGIN: kept} if kept else {}
