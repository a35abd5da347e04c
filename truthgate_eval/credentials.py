"""Credentials, taken out of what is written and shown: results files keep a run's arguments as they were."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"
# Names of credentials. Those of tokens of text, such as pad_token and max_new_tokens, are none.
_NAME = re.compile(
    r"(?:.*[_-])?(?:(?:hf|hub|auth|access|api|bearer|session|refresh|github|user)[_-]?)?token"
    r"|.*(?:api|access|secret|private|account)[_-]?key|.*(?:secret|passw(?:or)?d|passphrase|credentials?)"
    r"|(?:.*[_-])?(?:authorization|cookie)",
    re.IGNORECASE,
)
_TOKENS_OF_TEXT = re.compile(
    r"(?:.*[_-])?(?:pad|eos|bos|unk|sep|cls|mask|image|video|audio|boi|eoi|special|new|next|per|answer|stop)"
    r"[_-]token",
    re.IGNORECASE,
)
# `name=value`, `name: value` and `"name": "value"` inside a text.
_PAIR = re.compile(
    r"(?<![\w-])(?P<name>[A-Za-z][\w-]*)(?P<sign>[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[\"']?[^\s,;&\"'<>|}\]]+)"
)
_PLAIN = ("none", "true", "false", MASK)
# Credentials by their form, and the user and password of an address. Folders have names such as hf_llama3chat
# and sk-vicuna-7b: a token is longer.
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|sk-[\w-]{32,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{8,}|AKIA[0-9A-Z]{16}|eyJ[\w-]{8,400}\.[\w-]{8,400}\.[\w-]*)"
    r"|(?<=://)[^/\s@:]*:[^/\s@]*(?=@)|(?<=[Bb]earer )[\w.~+/=-]{8,}"
)


def mask_credentials(value: Any) -> Any:
    """A value of JSON with `***` in place of every credential, by its name or by its form.

    Example:
        >>> mask_credentials("pretrained=owner/model,token=abc123,dtype=float16")
        'pretrained=owner/model,token=***,dtype=float16'
        >>> mask_credentials({"api_key": "k", "max_new_tokens": 16, "url": "https://me:pw@host/a"})
        {'api_key': '***', 'max_new_tokens': 16, 'url': 'https://***@host/a'}
    """
    if isinstance(value, dict):
        return {
            mask_credentials(name): MASK if _is_secret(name, item) else mask_credentials(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_credentials(item) for item in value]
    if not isinstance(value, str):
        return value
    return _PAIR.sub(_mask_pair, _FORMS.sub(MASK, value))


def drop_credentials(value: Any) -> Any:
    """A value of JSON without the entries that have the name of a credential: what no credential changes.

    Example:
        >>> drop_credentials({"pretrained": "owner/model", "token": "abc123"})
        {'pretrained': 'owner/model'}
    """
    if isinstance(value, dict):
        return {n: drop_credentials(item) for n, item in value.items() if not _is_secret(n, item)}
    return [drop_credentials(item) for item in value] if isinstance(value, list | tuple) else value


def _is_secret(name: object, value: object) -> bool:
    text = str(value).lower()
    is_name = isinstance(name, str) and _NAME.fullmatch(name) and not _TOKENS_OF_TEXT.fullmatch(name)
    return bool(is_name) and isinstance(value, str | int | float) and bool(text) and text not in _PLAIN


def _mask_pair(found: re.Match[str]) -> str:
    value = found["value"]
    quote = value[0] if value[0] in "\"'" and value[-1] == value[0] else ""
    if not _is_secret(found["name"], value.strip("\"'")):
        return found[0]
    return f"{found['name']}{found['sign']}{quote}{MASK}{quote}"
