"""`python -m scripts.engines` compares the engines and writes docs/engines.md.

`--check CLASS ...` prints the rows of some classes and writes nothing.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers

from scripts.engines import quantized
from scripts.engines.engines import measure
from scripts.engines.models import CLASSES
from scripts.engines.page import PAGE, page, table_row


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m scripts.engines", description=__doc__)
    parser.add_argument("--check", nargs="+", metavar="CLASS", help="print these classes' rows only")
    names = parser.parse_args().check
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.utils.logging.disable_progress_bar()
    rows = {key: row for name in names or CLASSES for key, row in measure(name).items()}
    if names:
        for (name, site), row in rows.items():
            print(table_row(name, site, row))
    else:
        PAGE.write_text(page(rows), encoding="utf-8")
        quantized.write(quantized.measure_all())
    return 0


if __name__ == "__main__":
    sys.exit(main())
