"""An artifact or an exported adapter, uploaded to a model repository with a card."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from truthgate_eval.credentials import mask_credentials
from truthgate_eval.errors import DataError, HubError, TruthGateError
from truthgate_eval.export.hub_card import Section, merge_card, scores_section
from truthgate_eval.export.local_paths import without_folders, without_local_paths
from truthgate_eval.export.output import CARD
from truthgate_eval.files import parse_json, read_bounded, read_text
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.gating.hub_scores import SCORE_SUFFIXES
from truthgate_eval.gating.ia3_adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.hub import HubAddress, check_path, check_repo, explain, hub_api
from truthgate_eval.packaged.smollm2 import SMOLLM2, SMOLLM2_HUB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MAX_BYTES = 4 << 30  # of an artifact: the directions of a 70B model's heads are some hundred megabytes
_MAX_CARD = 1 << 20


@dataclass(frozen=True)
class Upload:
    """What is uploaded.

    Attributes:
        scores: The scores in the files.
        path: Path in the repository of the artifact, or of the adapter's folder ("" is the repository).
        files: Content of each file by its path in the repository.
        base_model: Hub id of the model that the scores belong to, if it has one.
        modality: Which class of transformers loads that model; None for an artifact.
        is_shortened: Whether paths of this machine or credentials were taken out of an artifact's metadata.
    """

    scores: TruthScores
    path: str
    files: Mapping[str, bytes]
    base_model: str | None
    modality: Modality | None = None
    is_shortened: bool = False

    @property
    def sha256(self) -> str:
        """SHA-256 of the artifact, or of the adapter's weights."""
        return hashlib.sha256(list(self.files.values())[-1]).hexdigest()


@dataclass(frozen=True)
class Pushed:
    """An upload that is on the hub.

    Attributes:
        address: Its address, with its commit.
        has_card: Whether the repository's card tells of it; a card that somebody else wrote is left as it is.
    """

    address: HubAddress
    has_card: bool


def prepare_upload(source: Path, path_in_repo: str | None = None) -> Upload:
    """Read what is to be uploaded, and check it by loading it.

    Args:
        source: An `.npz` artifact, or the folder of an adapter that `truthgate export` wrote.
        path_in_repo: Its path in the repository; by default an artifact's own name, and the repository
            itself for an adapter.

    Raises:
        TruthGateError: It is neither, or cannot be read.
    """
    if source.is_dir():
        if not is_adapter(source):
            raise TruthGateError(
                f"{source} holds no adapter: push takes an .npz artifact, or a folder of truthgate export "
                "--format peft; huggingface_hub uploads a whole checkpoint, with `hf upload`"
            )
        return _prepare_adapter(source, check_path((path_in_repo or "").rstrip("/")))
    if source.suffix.lower() != ".npz":
        raise TruthGateError(
            f"{source}: push takes an .npz artifact, or an exported adapter's folder; truthgate import makes "
            "an artifact of other score files"
        )
    path = check_path(source.name if path_in_repo is None else path_in_repo)
    if not path.lower().endswith(".npz"):
        raise TruthGateError(f"--path-in-repo {path}: expected a name that ends in .npz, for an artifact")
    scores, content = TruthScores.load(source), read_bounded(source, _MAX_BYTES)
    cleaned = _without_paths(scores)
    is_shortened = cleaned.metadata != scores.metadata
    if is_shortened:
        with tempfile.TemporaryDirectory() as folder:
            content = cleaned.save(Path(folder) / "scores.npz").read_bytes()
    base_model = _hub_id(cleaned.metadata.get("model"))
    return Upload(cleaned, path, {path: content}, base_model, is_shortened=is_shortened)


def _prepare_adapter(source: Path, path: str) -> Upload:
    if path.lower().endswith(SCORE_SUFFIXES):
        raise TruthGateError(
            f"--path-in-repo {path}: expected a folder for an adapter, without {Path(path).suffix}"
        )
    scores = TruthScores.load(source)
    if mask_credentials(without_local_paths(scores.metadata)) != scores.metadata:
        raise TruthGateError(
            f"{source} names folders of this machine, or credentials, in its weights: export it again"
        )
    config = parse_json(read_bounded(source / ADAPTER_CONFIG, _MAX_CARD), str(source / ADAPTER_CONFIG))
    # PEFT writes the folder that a model was loaded from.
    base_model = _hub_id(config.get("base_model_name_or_path"), may_lack_owner=True)
    config["base_model_name_or_path"] = base_model
    within = f"{path}/" if path else ""
    files = {
        f"{within}{ADAPTER_CONFIG}": json.dumps(config, indent=2, sort_keys=True).encode(),
        f"{within}{ADAPTER_WEIGHTS}": read_bounded(source / ADAPTER_WEIGHTS, _MAX_BYTES),
    }
    modality: Modality = "text" if config.get("task_type") == "CAUSAL_LM" else "image"
    return Upload(scores, path, files, base_model, modality)


def _without_paths(scores: TruthScores) -> TruthScores:
    """The scores with metadata that name no folder of this machine, and hold no credentials."""
    metadata: dict[str, Any] = mask_credentials(without_local_paths(scores.metadata))
    if isinstance(metadata.get("model"), str):
        metadata["model"] = without_folders(metadata["model"])
    return replace(scores, metadata=metadata)


def _hub_id(model: object, *, may_lack_owner: bool = False) -> str | None:
    """The model's id on the hub, if its name can be one; some models, such as gpt2, have no owner."""
    if model == SMOLLM2:
        return SMOLLM2_HUB
    if not isinstance(model, str):
        return None
    try:
        if Path(model).exists():
            return None
        if may_lack_owner and re.fullmatch(r"\w[\w.-]{0,95}", model, re.ASCII):
            return model
        return check_repo(model)
    except (HubError, OSError):
        return None


def push(
    upload: Upload,
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload the files in one commit, then the card, which names that commit, in a second one.

    Args:
        upload: `prepare_upload`.
        repo: `OWNER/REPO`; it is made if it does not exist.
        revision: A branch, made from the main branch if it does not exist; None is the main branch.
        private: Make a private repository, and stop if it exists and is public.
        message: The first commit's message.
        overwrite_card: Replace a card that has no section of an earlier push.

    Raises:
        HubError: There is no token, the hub refuses it, or cannot be reached.
    """
    address = HubAddress(check_repo(repo), upload.path, revision)
    # What a reader of the address checks, before anything is uploaded.
    HubAddress.parse(str(address))
    api = hub_api()
    with _explained(f"{address} cannot be pushed", address):
        _make_repository(api, address, private)
        text = message or f"Add {upload.path or 'an adapter'} (truthgate push)"
        commit = _commit(api, address, upload.files, text)
    pinned = address.at(commit)
    with _explained(f"pushed as {pinned}, but without its card", address):
        section = _section(upload, pinned)
        card = merge_card(_existing_card(api, pinned), section, overwrite=overwrite_card)
        if card is not None:
            files = {CARD: card.encode()}
            _commit(api, address, files, f"Describe {upload.path or 'the adapter'} (truthgate push)", commit)
    return Pushed(pinned, card is not None)


def _make_repository(api: HfApi, address: HubAddress, private: bool) -> None:
    api.create_repo(address.repo, private=private or None, exist_ok=True)
    if private and not api.repo_info(address.repo).private:
        raise HubError(
            f"{address.repo} exists and is public: leave --private out, name another repository, or make it "
            "private on the hub first"
        )
    if address.revision is not None:
        api.create_branch(address.repo, branch=address.revision, exist_ok=True)


def _commit(
    api: HfApi, address: HubAddress, files: Mapping[str, bytes], message: str, parent: str | None = None
) -> str:
    """Upload files in one commit, and return it; `parent` must still be the newest one."""
    from huggingface_hub import CommitOperationAdd

    return api.create_commit(
        address.repo,
        [CommitOperationAdd(path_in_repo=path, path_or_fileobj=content) for path, content in files.items()],
        commit_message=message,
        revision=address.revision,
        parent_commit=parent,
    ).oid


def _existing_card(api: HfApi, address: HubAddress) -> str | None:
    """The card at a commit; None if there is none. One that is no text, or a very long one, is not ours."""
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        path = api.hf_hub_download(address.repo, CARD, revision=address.revision)
    except RemoteEntryNotFoundError:
        return None
    try:
        return read_text(Path(path), _MAX_CARD)
    except DataError:
        return ""


def _section(upload: Upload, address: HubAddress) -> Section:
    use = ""
    if upload.modality is not None:
        from truthgate_eval.export.adapter import peft_snippet

        subfolder = f", subfolder={json.dumps(upload.path)}" if upload.path else ""
        adapter = f'"{address.repo}", revision="{address.revision}"{subfolder}'
        use = peft_snippet(upload.base_model or "BASE_MODEL", upload.modality, adapter)
    return scores_section(
        upload.scores,
        address,
        upload.sha256,
        base_model=upload.base_model,
        modality=upload.modality,
        use=use,
    )


@contextmanager
def _explained(what: str, address: HubAddress) -> Iterator[None]:
    """Every error of huggingface_hub as one line of ours."""
    try:
        yield
    except TruthGateError:
        raise
    except Exception as error:  # no network, no access, an answer that is no hub's: all different
        raise HubError(f"{what}: {explain(error, address)}") from error
