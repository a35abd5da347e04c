"""Files changed at random: values of JSON replaced, bytes flipped, inserted, removed, cut off, spliced.

All choices are those of a `random.Random`, so that hypothesis, a seed or a fuzzer's input decides them.
"""

from __future__ import annotations

import copy
import random
from typing import Any

import pyarrow

from helpers.mutations import VALUES_LIST, places
from helpers.readers import Reader

_TOKENS = (
    b"", b"\0", b"\xff", b"\r", b"\n", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"]", b"}", b",", b'"', b"[", b"{", b":", b"-",
    b"[" * 2000, b'{"a":' * 1000, b"9" * 400, b"1e999", b"NaN", b"null", b'"\\ud800"', b"\x1b[2J", b"<script>", b"'",
    b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x07", b"\x93NUMPY", b"|O", b"<U9", b"(99999999999,)", b"PAR1",
)  # fmt: skip
_INTEGERS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 64) - 1)
_MOST_BYTES = 1 << 18


def mutate(reader: Reader, rng: random.Random) -> bytes:
    """A valid file of a reader with some changes of its values, of its bytes, or of both."""
    seeds = reader.seeds()
    content = rng.choice(seeds)
    if reader.values is not None and rng.random() < 0.7:
        changed = _write(reader, change_values(copy.deepcopy(reader.values()), rng))
        if changed is None or rng.random() < 0.8:
            return content if changed is None else changed
        content = changed
    return change_bytes(content, rng, seeds)


def _write(reader: Reader, value: Any) -> bytes | None:
    """The values as a file; None where no file of the format holds them."""
    try:
        return reader.write(value)
    except (pyarrow.ArrowException, ValueError, TypeError, OverflowError, LookupError):
        return None


def change_values(value: Any, rng: random.Random) -> Any:
    """A value of JSON with up to four of its parts replaced, removed, or written twice."""
    for _ in range(rng.randint(1, 4)):
        found = places(value)
        if not found or rng.random() < 0.02:
            return copy.deepcopy(rng.choice(VALUES_LIST))
        container, key = rng.choice(found)
        what = rng.randrange(5)
        if what == 0:
            del container[key]
        elif what == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        elif what == 2:
            other, name = rng.choice(found)
            container[key] = copy.deepcopy(other[name] if _has(other, name) else None)
        else:
            container[key] = copy.deepcopy(rng.choice(VALUES_LIST))
    return value


def _has(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def change_bytes(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Bytes with up to four changes at random places."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start = rng.randint(0, len(data))
        span = min(len(data) - start, rng.choice((1, 1, 2, 4, 8, 64)))
        what = rng.randrange(7)
        if what == 0 and span:
            data[start] ^= 1 << rng.randrange(8)
        elif what == 1:
            data[start : start + span] = rng.choice(_TOKENS)
        elif what == 2:
            data[start:start] = rng.choice(_TOKENS)
        elif what == 3:
            del data[start : start + span]
        elif what == 4:
            del data[start:]
        elif what == 5:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_INTEGERS) & ((1 << (8 * width)) - 1)
            data[start : start + width] = number.to_bytes(width, rng.choice(("little", "big")))
        else:
            other = rng.choice(others)
            cut = rng.randint(0, len(other))
            data[start:] = other[cut:]
    return bytes(data[:_MOST_BYTES])
