"""The page docs/models.md: a table of model classes for each kind."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import transformers

from scripts.model_classes.survey import KINDS, Kind, Row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
_TITLES: Mapping[Kind, str] = {"text": "Text", "image-text": "Image and text"}
_HEADER = "| class | first projection | attention layers | heads | post | pre | note |"
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


def page(rows: Mapping[Kind, Sequence[Row]]) -> str:
    """The page's Markdown."""
    counts = Counter(row.result for found in rows.values() for row in found)
    text = _INTRODUCTION.format(
        versions=versions(),
        total=counts.total(),
        gated=counts["gated"],
        refused=counts["refused"],
        not_built=counts["not built"],
    )
    for kind in KINDS:
        text += f"\n## {_TITLES[kind]}\n\n{_HEADER}\n|{' --- |' * 7}\n"
        text += "".join(f"{table_row(row)}\n" for row in rows[kind])
    return text


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
    """The class and the row of every row of a page's tables."""
    for line in text.splitlines():
        if line.startswith("| ") and line != _HEADER and not line.startswith("| ---"):
            yield line.split(" | ")[0].removeprefix("| "), line
