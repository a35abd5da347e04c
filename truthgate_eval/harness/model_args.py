"""`--model_args` and `--metadata` as lm-eval reads them.

For commands that load no harness before they have checked their own arguments.
"""

from __future__ import annotations

import json
from typing import Any

from truthgate_eval.errors import TruthGateError


def parse_model_args(text: str) -> dict[str, Any]:
    """The arguments of a text `name=value,name=value`; numbers, true and false become Python's.

    lm-eval's function makes None of the word `none`, its command line does not: here `none` is a word, as
    in `scores=none` and `norm=none`, and `None` is None.

    Example:
        >>> parse_model_args("pretrained=some/model,lam=2.5,trust_remote_code=true,norm=none")
        {'pretrained': 'some/model', 'lam': 2.5, 'trust_remote_code': True, 'norm': 'none'}
    """
    from lm_eval.utils import simple_parse_args_string

    parsed = dict(simple_parse_args_string(text))
    written = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
    words = {name.strip() for name, value in written.items() if value.strip() == "none"}
    return {name: "none" if name.strip() in words else value for name, value in parsed.items()}


def parse_metadata(text: str) -> dict[str, Any]:
    """The JSON object of `--metadata`, which is passed to the tasks.

    Raises:
        TruthGateError: It is none.

    Example:
        >>> parse_metadata('{"subset": "selection"}')
        {'subset': 'selection'}
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TruthGateError(f"--metadata is not JSON ({error}): {text}") from error
    if not isinstance(value, dict):
        raise TruthGateError(f"--metadata must be a JSON object, got {text}")
    return value
