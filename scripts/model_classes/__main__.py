"""`python -m scripts.model_classes` examines every model class and writes docs/models.md.

`--families` examines the families from end to end and writes their table alone. `--check CLASS ...` prints
the rows of some classes and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Sequence

from scripts.model_classes.end_to_end import FamilyRow, run_family
from scripts.model_classes.families import FAMILIES
from scripts.model_classes.page import PAGE, family_row, page, table_row, with_families
from scripts.model_classes.survey import KINDS, class_names, examine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.model_classes", description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="CLASS", help="print these classes' rows only")
    parser.add_argument("--families", action="store_true", help="write the table of families only")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if arguments.check:
        wrong = _check(arguments.check)
    elif arguments.families:
        families = _run_families()
        PAGE.write_text(with_families(PAGE.read_text(encoding="utf-8"), families), encoding="utf-8")
        wrong = _wrong(families)
    else:
        found = {kind: [examine(name) for name in class_names(kind)] for kind in KINDS}
        families = _run_families()
        PAGE.write_text(page(found, families), encoding="utf-8")
        wrong = [row.name for kind in KINDS for row in found[kind] if row.result == "wrong"]
        wrong += _wrong(families)
    if wrong:
        print(f"wrong: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


def _check(names: Sequence[str]) -> list[str]:
    """Print the rows of some classes; those that are wrong."""
    rows = [examine(name) for name in names]
    families = [run_family(family) for family in FAMILIES if family.name.split(" ")[0] in names]
    print(*map(table_row, rows), *map(family_row, families), sep="\n")
    return [row.name for row in rows if row.result == "wrong"] + _wrong(families)


def _run_families() -> list[FamilyRow]:
    return [run_family(family) for family in FAMILIES]


def _wrong(rows: Sequence[FamilyRow]) -> list[str]:
    return [row.family.name for row in rows if not row.is_right]


if __name__ == "__main__":
    sys.exit(main())
