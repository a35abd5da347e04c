"""`--model_args` and `--metadata` as lm-eval reads them.

For commands that load no harness before they have checked their own arguments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from truthgate_eval.credentials import mask_credentials
from truthgate_eval.errors import GateError, ModelError, TruthGateError, first_line


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


def read_batch_size(value: Any) -> int | str:
    """A whole number, or `auto`.

    Raises:
        ModelError: It is neither.

    Example:
        >>> read_batch_size("8"), read_batch_size("auto")
        (8, 'auto')
    """
    text = str(value)
    if text == "auto":
        return text
    if not text.isdigit() or int(text) < 1:
        raise ModelError(f"batch_size={value} is neither a whole number above 0 nor auto")
    return int(text)


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
        raise TruthGateError(f"--metadata is not JSON ({error}): {mask_credentials(text)}") from error
    if not isinstance(value, dict):
        raise TruthGateError(f"--metadata must be a JSON object, got {mask_credentials(text)}")
    return value


@contextmanager
def explain_load_errors(
    model: str, options: str, loaded: str, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what a harness's constructor raises for a user's mistake into our errors, in this block.

    Args:
        model: The gated model's name, such as `gated_hf`.
        options: Which options it takes, for the message.
        loaded: What is loaded, for the message.
        also: What the constructor raises for a mistake beside OSError and ValueError.

    Raises:
        GateError: An option is unknown.
        ModelError: The model cannot be loaded.
    """
    explained: tuple[type[Exception], ...] = (OSError, ValueError, *also)
    try:
        yield
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown is None:
            raise
        raise GateError(f"unknown option {unknown[1]!r}: {model} takes {options}") from error
    except explained as error:
        raise ModelError(f"{loaded} cannot be loaded: {first_line(error)}") from error
