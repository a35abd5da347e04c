"""`python -m scripts.model_classes` examines every model class and writes docs/models.md.

`--check CLASS ...` prints the rows of some classes and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings

from scripts.model_classes.page import PAGE, page, table_row
from scripts.model_classes.survey import KINDS, class_names, examine


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.model_classes", description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="CLASS", help="print these classes' rows only")
    names = parser.parse_args().check
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if names:
        rows = [examine(name) for name in names]
        print(*map(table_row, rows), sep="\n")
    else:
        found = {kind: [examine(name) for name in class_names(kind)] for kind in KINDS}
        rows = [row for kind in KINDS for row in found[kind]]
        PAGE.write_text(page(found), encoding="utf-8")
    wrong = [row.name for row in rows if row.result == "wrong"]
    if wrong:
        print(f"wrong: {', '.join(wrong)}", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
