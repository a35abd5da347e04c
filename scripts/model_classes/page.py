"""The page docs/models.md: a table of families, and one of model classes for each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from scripts.model_classes.end_to_end import LAM, FamilyRow
from scripts.model_classes.subjects import NEW_TOKENS
from scripts.model_classes.survey import KINDS, Kind, Row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_TITLES: Mapping[Kind, str] = {"text": "Text", "image-text": "Image and text"}
_HEADER = "| class | first projection | attention layers | heads | post | pre | note |"
_FAMILY_HEADER = (
    "| class | checkpoints | layers x heads | probed | gated live | folded | texts | prefixes | note |"
)
_FAMILIES = """\
## Families

The classes of the published families, and those of checkpoints that many use, from a checkpoint's files to
its answers: {versions},
small random weights, the class's real processor or tokenizer, and nothing from a hub. Questions are about one
picture, two or none. `uv run python -m scripts.model_classes --families` writes this section.

* *probed*: the activations at the answer's last token are those with which plain `generate` writes that
  answer, at both sites, within 1e-5 of the layer's largest one, in batches of 3.
* *gated live*, *folded*: under `lam={lam:g}`, at both sites, the first token's logits (within 1e-4 of the
  largest) and the texts of `gated_vlm`, of `gated_hf` for text, are those of a copy of the model in which
  every head is multiplied in a loop.
* *texts*: with `scores=none` they are those of plain `generate`, one question at a time. Texts have
  {new_tokens} tokens, in batches of 3; without a gate also one by one.
* *prefixes*: *shared* where images and prompts are computed once ([How the engine
  works](performance.md#how-the-engine-works)); on the *plain path*, every question runs by itself, for the
  reason in the note.

"""
_INTRODUCTION = """\
# Model classes

<!-- Written by `python -m scripts.model_classes`; do not edit. -->

{versions} has {total} causal and image-text classes.
Each was built with small, random weights from its own config, and gated with random factors, live and folded
into the weights. Gated: {gated}. Refused, with one line that says why: {refused}. Not built in this way:
{not_built}; the same search decides about a real checkpoint of these.
`uv run python -m scripts.model_classes` writes this page, and
`uv run python -m scripts.model_classes --check LlamaForCausalLM` prints the row of one class.

* *first projection*: the path below the decoder of the first output projection $W_o$. It is not looked up by
  its name: the decoder runs on two tokens, and $W_o$ is the last linear map that runs in an attention block,
  if what is added to the map's output is added to the block's output. A class without such a map is refused.
* *attention layers*: how many layers are gated, of how many. In a hybrid model some layers are a recurrence
  or a convolution, as the config's `layer_types` says. They have no heads in the paper's sense and are not
  gated. Row i of a score file is the i-th attention layer, and `layers=0-1` means the first two rows. Layers
  that share one output projection (Zamba, Dory) are refused: they cannot be gated one by one.
* *heads*: of a layer. Classes whose layers differ in their number are refused.
* *post*, *pre*: the [site](method.md#soft-gate) of the gate. *equal*: the hidden states are those of a gate
  computed from scratch, in the weights of $W_o$ and, for *pre*, also in the class's attention function, whose
  output is multiplied for each head. *equal (weights)*: the class computes attention inside a larger
  function, so only the weights were compared. *equal (norm)*: a normalization lies between attention and
  $W_o$; the gate acts after it, on each head's part of the input of $W_o$. *refused*: see the note.
"""


def page(rows: Mapping[Kind, Sequence[Row]], families: Sequence[FamilyRow] = ()) -> str:
    """The page's Markdown.

    Args:
        rows: The classes of each kind.
        families: The families' rows.
    """
    counts = Counter(row.result for found in rows.values() for row in found)
    text = _INTRODUCTION.format(
        versions=versions(),
        total=counts.total(),
        gated=counts["gated"],
        refused=counts["refused"],
        not_built=counts["not built"],
    )
    text += f"\n{families_section(families)}"
    for kind in KINDS:
        text += f"\n## {_TITLES[kind]}\n\n{_HEADER}\n|{' --- |' * 7}\n"
        text += "".join(f"{table_row(row)}\n" for row in rows[kind])
    return text


def families_section(rows: Sequence[FamilyRow]) -> str:
    """The section of the families."""
    text = _FAMILIES.format(versions=versions(), lam=LAM, new_tokens=NEW_TOKENS)
    return text + f"{_FAMILY_HEADER}\n|{' --- |' * 9}\n" + "".join(f"{family_row(row)}\n" for row in rows)


def with_families(text: str, rows: Sequence[FamilyRow]) -> str:
    """A page with another section of families; the rest is as it was."""
    before, _, rest = text.partition("\n## Families\n")
    _, _, after = (rest or before).partition(f"\n## {_TITLES['text']}\n")
    before = before.partition(f"\n## {_TITLES['text']}\n")[0]
    return f"{before}\n{families_section(rows)}\n## {_TITLES['text']}\n{after}"


def family_row(row: FamilyRow) -> str:
    """A family's row of the table."""
    note = _escape("; ".join(row.notes))
    family = row.family
    cells = (
        family.name,
        family.checkpoints,
        row.heads,
        row.probed,
        row.live,
        row.folded,
        row.texts,
        row.prefixes,
        note,
    )
    return f"| {' | '.join(cells)} |"


def _escape(note: str) -> str:
    """A note as text of a table's cell; what stands between backquotes stays code."""
    parts = (note if note.count("`") % 2 == 0 else note.replace("`", "'")).split("`")
    return "`".join(re.sub(r"([|*<\[])", r"\\\1", part) for part in parts)


def versions() -> str:
    """What the classes are those of."""
    return f"transformers {transformers.__version__} (with torch {torch.__version__.partition('+')[0]})"


def table_row(row: Row) -> str:
    """A class's row of a table."""
    projection = f"`{row.projection}`" if row.projection else ""
    note = re.sub(r"([|*<`\[])", r"\\\1", row.note)
    cells = (
        row.name,
        projection,
        row.layers,
        row.heads,
        row.sites.get("post", ""),
        row.sites.get("pre", ""),
        note,
    )
    return f"| {' | '.join(cells)} |"


def rows_of_page(text: str) -> Iterator[tuple[str, str]]:
    """The class and the row of every row of a page's tables of classes."""
    yield from _rows(text[text.index(f"\n## {_TITLES['text']}\n") :])


def family_rows_of_page(text: str) -> Iterator[tuple[str, str]]:
    """The class and the row of every row of a page's table of families."""
    yield from _rows(text[: text.index(f"\n## {_TITLES['text']}\n")])


def _rows(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line.startswith("| ") and line not in (_HEADER, _FAMILY_HEADER) and not line.startswith("| ---"):
            yield line.split(" | ")[0].removeprefix("| "), line
