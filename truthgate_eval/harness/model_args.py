"""`--model_args` as lm-eval reads them, for commands that load no harness before they have checked theirs."""

from __future__ import annotations

from typing import Any


def parse_model_args(text: str) -> dict[str, Any]:
    """The arguments of a text `name=value,name=value`; numbers, true and false become Python's.

    Example:
        >>> parse_model_args("pretrained=some/model,lam=2.5,trust_remote_code=true")
        {'pretrained': 'some/model', 'lam': 2.5, 'trust_remote_code': True}
    """
    from lm_eval.utils import simple_parse_args_string

    return dict(simple_parse_args_string(text))
