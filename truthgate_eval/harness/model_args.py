"""`--model_args` as lm-eval reads them, for commands that load no harness before they have checked theirs."""

from __future__ import annotations

from typing import Any


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
