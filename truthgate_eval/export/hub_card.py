"""The model card of a repository that artifacts and adapters are pushed to: a section for each of them.

Sections stand between comments, so that a later push replaces its own section and leaves what others wrote.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from truthgate_eval.escaping import markdown_text
from truthgate_eval.export.output import front_matter
from truthgate_eval.gating.gate_arguments import Modality
from truthgate_eval.gating.hub_scores import recorded_origin
from truthgate_eval.gating.scores import TruthScores
from truthgate_eval.hub import HubAddress

_BEGIN, _END = "<!-- truthgate push {} -->\n", "<!-- truthgate push end -->\n"
# No section has another one's beginning in it, so that a search reads each line once.
_SECTION = re.compile(
    r"^<!-- truthgate push (\{.*\}) -->\n(?:(?!<!-- truthgate push ).*\n)*"
    r"<!-- truthgate push end -->(?:\n|\Z)",
    re.MULTILINE,
)
_TITLE = "# Truth scores and gates of attention heads\n\nMade with `truthgate_eval`.\n"
_KINDS = {
    "accuracy": "validation accuracy of a linear probe on each head's output",
    "auroc": "area under the ROC curve of a linear probe on each head's output",
    "context-gain": "accuracy of a linear probe on each head's output, minus that without the context",
    "gradient": "derivative of the log-odds of right against wrong answers by each head's factor",
    "learned": "factors minus 1 of a gate that was fitted to right and wrong answers",
    "divergence": "change of each head's output when the context is taken away",
    "direct-effect": "what each head adds to the logit of the right answer, less the wrong one's",
    "copy": "attention to the copies in the context of the answer's tokens",
    "gate": "the factors of an exported gate, minus 1",
}
_SETTINGS = ("action", "lam", "norm", "site", "layers")  # of a recommended gate
# Lists of an artifact's metadata that may have thousands of entries.
_LONG = ("rows", "points")
_MAX_PROVENANCE, _MAX_CELL = 20_000, 300  # characters


@dataclass(frozen=True)
class Section:
    """What a card says of one file or adapter.

    Attributes:
        path: Where it is in the repository.
        base_model: Hub id of the model it belongs to, if that has one.
        library: The hub's word for what loads it.
        text: Markdown.
    """

    path: str
    base_model: str | None
    library: str
    text: str

    def render(self) -> str:
        """The section between its comments."""
        head = {"path": self.path, "base_model": self.base_model, "library": self.library}
        return f"{_BEGIN.format(_json(head))}{self.text.rstrip()}\n{_END}"


def merge_card(existing: str | None, section: Section, *, overwrite: bool = False) -> str | None:
    """A card with the section.

    Args:
        existing: The repository's card, or None.
        section: The section; an earlier one of the same path is replaced.
        overwrite: Also replace a card that has no section of ours.

    Returns:
        The card; None if the existing one has no section of ours and is to stay.
    """
    found = [] if existing is None else list(_SECTION.finditer(existing))
    if existing is None or (not found and overwrite):
        return f"{_front([_head_of(section)])}{_TITLE}\n{section.render()}"
    if not found:
        return None
    heads = [_parse_head(match[1]) for match in found]
    own = [number for number, head in enumerate(heads) if head["path"] == section.path]
    mine = found[own[0]] if own else None
    rest = [head for head in heads if head["path"] != section.path]
    if mine is None:
        card = f"{existing.rstrip()}\n\n{section.render()}"
    else:
        card = f"{existing[: mine.start()]}{section.render()}{existing[mine.end() :]}"
    before, after = _front(heads), _front([*rest, _head_of(section)])
    # Someone may have written more into the front matter: then it stays.
    return after + card.removeprefix(before) if card.startswith(before) else card


def _head_of(section: Section) -> dict[str, Any]:
    return {"path": section.path, "base_model": section.base_model, "library": section.library}


def _parse_head(text: str) -> dict[str, Any]:
    """What a section's first comment says; a card may have been edited by anybody."""
    try:
        head = json.loads(text)
    except (ValueError, RecursionError):
        head = None
    return {"path": None, "base_model": None, "library": None, **(head if isinstance(head, dict) else {})}


def _front(heads: Sequence[Mapping[str, Any]]) -> str:
    models = {str(head["base_model"]) for head in heads if head["base_model"]}
    only_peft = all(head["library"] == "peft" for head in heads)
    return front_matter(sorted(models), "peft" if only_peft else "truthgate_eval")


def scores_section(
    scores: TruthScores,
    address: HubAddress,
    file_sha256: str,
    *,
    base_model: str | None,
    modality: Modality | None,
    use: str = "",
) -> Section:
    """The section of an artifact or adapter: what was measured, how, on how much, its controls, and its use.

    Args:
        scores: The scores.
        address: Where they are, with their commit.
        file_sha256: SHA-256 of the file.
        base_model: Hub id of the model that they belong to.
        modality: An adapter's, of its model; None for an artifact.
        use: More about the use, in Markdown.
    """
    is_adapter = modality is not None
    rows = [*_facts(scores), ("SHA-256 of the file", f"`{file_sha256}`")]
    rows.append(("SHA-256 of the scores", f"`{scores.fingerprint}`"))
    table = "".join(f"| {name} | {text} |\n" for name, text in rows if text)
    text = (
        f"## {_cell(address.path) or 'The adapter'}\n\n"
        f"{'A gate as an IA3 adapter' if is_adapter else 'Truth scores of attention heads'}.\n\n"
        f"| | |\n| --- | --- |\n{table}\n{_commands(scores, address, base_model, modality)}\n"
    )
    text += f"\n{use}\n" if use else ""
    provenance = _json(_without_long(scores.metadata), indent=2)
    if len(provenance) <= _MAX_PROVENANCE:
        text += f"\n<details><summary>Provenance</summary>\n\n```json\n{provenance}\n```\n\n</details>\n"
    return Section(address.path, base_model, "peft" if is_adapter else "truthgate_eval", text)


def _facts(scores: TruthScores) -> list[tuple[str, str]]:
    meta = scores.metadata
    probe, recommended = _object(meta, "probe"), _object(meta, "recommended")
    kind = meta.get("kind") or meta.get("score") or ("accuracy" if probe else None)
    origin = recorded_origin(meta).get("hub", {})
    count = f"{_cell(meta.get('sequences'))} sequences of {_cell(meta.get('documents'))} documents"
    how = f"{probe.get('solver')}, {probe.get('folds')} folds by {probe.get('split')}" if probe else ""
    return [
        ("model", _cell(scores.model)),
        ("heads", f"{scores.shape[0]} layers x {scores.shape[1]} heads"),
        ("kind of score", _KINDS.get(str(kind), _cell(kind or meta.get("probed_by")))),
        ("measured on", _cell(meta.get("task"))),
        ("n", count if isinstance(meta.get("sequences"), int) else ""),
        ("probe", _cell(how)),
        ("site", _cell(meta.get("site"))),
        ("mean score", f"{scores.scores.mean():.4g}"),
        ("mean standard error of a score", "" if scores.stderr is None else f"{scores.stderr.mean():.2g}"),
        ("controls", _controls(scores)),
        ("recommended", ", ".join(f"{k}={_cell(recommended[k])}" for k in _SETTINGS if k in recommended)),
        ("recommended by", _cell(recommended.get("task"))),
        ("note", _cell(meta.get("note"))),
        ("made from", _cell(", ".join(f"{name} {value}" for name, value in origin.items()))),
    ]


def _controls(scores: TruthScores) -> str:
    """Mean accuracies over heads; without controls nobody knows what else explains the scores."""
    if not scores.controls:
        return "" if scores.metadata.get("kind") == "gate" else "none were measured"
    means = ", ".join(f"{_cell(name)} {array.mean():.3f}" for name, array in sorted(scores.controls.items()))
    own = scores.scores if scores.accuracy is None else scores.accuracy
    return f"mean accuracy {means}; the probes' {own.mean():.3f}"


def _commands(
    scores: TruthScores, address: HubAddress, base_model: str | None, modality: Modality | None
) -> str:
    meta, recommended = scores.metadata, _object(scores.metadata, "recommended")
    has_images = modality == "image" if modality else "ConditionalGeneration" in str(meta.get("architecture"))
    program, model = ("lmms_eval", "gated_vlm") if has_images else ("lm_eval", "gated_hf")
    strength = "" if "lam" in recommended or recommended.get("action", "soft") != "soft" else ",lam=NUMBER"
    arguments = f"pretrained={base_model or 'MODEL'},scores={address}{strength}"
    return (
        "```console\n"
        f"$ truthgate show {shlex.quote(str(address))}\n"
        f"$ {program} --model {model} --model_args {shlex.quote(arguments)} --tasks TASKS\n"
        "```"
    )


def _object(metadata: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = metadata.get(name)
    return value if isinstance(value, dict) else {}


def _cell(value: Any) -> str:
    """A value as text in a Markdown table: one line, without markup."""
    return "" if value is None else markdown_text(str(value)[:_MAX_CELL])


def _json(value: Any, indent: int | None = None) -> str:
    """JSON that ends neither a comment nor an element of a page."""
    return json.dumps(value, indent=indent).replace("<", "\\u003c").replace(">", "\\u003e")


def _without_long(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_long(item) for name, item in value.items() if name not in _LONG}
    return value
