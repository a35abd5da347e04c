"""Records of data files: one reader of JSON lines and JSON lists, and fields whose types are checked.

A field that is missing, null or of another type is an error that names the file, the record and the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from truthgate_eval.errors import DataError, shorten
from truthgate_eval.files import MAX_DATASET_BYTES, open_regular, read_json, read_json_lines, unreadable

_INT64 = range(-(2**63), 2**63)  # what a column of a Parquet file holds
_WHOLE_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class Record:
    """One record of a data file.

    Attributes:
        fields: Its fields by name, as the file has them.
        where: The file and the record's number, for messages.
    """

    fields: Mapping[str, Any]
    where: str

    @classmethod
    def of(cls, value: object, where: str) -> Record:
        """A record of a value that should be an object with named fields.

        Raises:
            DataError: The value is none.
        """
        if not isinstance(value, Mapping):
            raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
        return cls(value, where)

    def has(self, name: str) -> bool:
        """Whether the field is there; null and NaN, with which pandas marks a missing value, do not count."""
        value = self.fields.get(name)
        return value is not None and not (isinstance(value, float) and math.isnan(value))

    def require(self, *names: str, otherwise: str = "") -> None:
        """Raise `DataError` unless the record has all of these fields.

        Args:
            names: The fields.
            otherwise: What the message says after the names of the missing ones.
        """
        missing = [name for name in names if not self.has(name)]
        if missing:
            raise DataError(f"{self.where}: no {', '.join(missing)}{otherwise}")

    def text(self, name: str, *, blank: bool = False) -> str:
        """A text. A number counts as its digits, as where an answer or the id of an image is a number.

        Args:
            name: The field.
            blank: Whether it may be empty.

        Raises:
            DataError: The field is missing, of another type, or empty.
        """
        self.require(name)
        return as_text(self.fields[name], f"{self.where}: {name}", blank=blank)

    def optional_text(self, name: str) -> str | None:
        """A text, or None where the field is missing or empty.

        Raises:
            DataError: The field is of another type.
        """
        return (self.text(name, blank=True) or None) if self.has(name) else None

    def identifier(self, name: str) -> int | str:
        """A whole number that fits into 64 bits, or a text.

        Raises:
            DataError: The field is missing, or neither.
        """
        self.require(name)
        value = self.fields[name]
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # pandas writes 3.0 for 3 where another record has no number
        if isinstance(value, float) or (isinstance(value, int) and value not in _INT64):
            self.raise_error(name, "a whole number or a text")
        return value if isinstance(value, int) and not isinstance(value, bool) else self.text(name)

    def integer(self, name: str) -> int:
        """A whole number, or the text of one.

        Raises:
            DataError: The field is missing, or is no whole number.
        """
        (value,) = unify_identifiers([self.identifier(name)])
        return value if isinstance(value, int) else self.raise_error(name, "a whole number")

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of some texts, whatever their case and the spaces around them.

        Raises:
            DataError: The field is missing, or is none of them.
        """
        self.require(name)
        value = self.fields[name]
        cleaned = value.strip().lower() if isinstance(value, str) else value
        return cleaned if cleaned in choices else self.raise_error(name, " or ".join(choices))

    def raise_error(self, name: str, expected: str) -> NoReturn:
        """Raise `DataError` for a field's value.

        Args:
            name: The field.
            expected: What it should be.
        """
        raise DataError(f"{self.where}: {name} {shorten(self.fields[name])}, expected {expected}")


def as_text(value: object, where: str, *, blank: bool = False) -> str:
    """A value that should be a text, see `Record.text`.

    Raises:
        DataError: The value is of another type, empty, or has a lone surrogate.
    """
    is_number = math.isfinite(value) if isinstance(value, float) else isinstance(value, int)
    if not isinstance(value, str) and (not is_number or isinstance(value, bool)):
        raise DataError(f"{where} is {shorten(value)}, expected a text")
    text = str(value)
    if not blank and is_blank(text):
        raise DataError(f"{where} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # no file and no tokenizer takes them
        raise DataError(f"{where} has half of a character, a lone surrogate: {shorten(text)}") from error
    return text


def is_blank(text: str) -> bool:
    """Whether nothing of a text is seen: it is empty, or has spaces and characters without a shape only."""
    return not any(character.isprintable() and not character.isspace() for character in text)


def unify_identifiers(identifiers: Iterable[int | str]) -> Sequence[int | str]:
    """Identifiers of one column: numbers if all of them are written as whole numbers, and texts otherwise.

    A text such as 007 stays a text: as a number it would equal 7.

    Example:
        >>> unify_identifiers([1, "2"]), unify_identifiers([1, "a"]), unify_identifiers(["007"])
        ([1, 2], ['1', 'a'], ['007'])
    """
    texts = [str(identifier) for identifier in identifiers]
    if all(_WHOLE_NUMBER.fullmatch(text) and int(text) in _INT64 for text in texts):
        return [int(text) for text in texts]
    return texts


def read_records(path: Path) -> Iterator[Record]:
    """The records of a file of JSON lines, or of one JSON list of objects.

    Releases have both under the name `.json`. Lines are counted from 1, the records of a list from 0.

    Raises:
        DataError: The file cannot be read, or has neither format.
    """
    if _begins_with_bracket(path):
        for number, value in enumerate(read_json(path, most=MAX_DATASET_BYTES)):
            yield Record.of(value, f"{path}, record {number}")
        return
    for number, fields in read_json_lines(path):
        yield Record(fields, f"{path}, line {number}")


def _begins_with_bracket(path: Path) -> bool:
    with open_regular(path) as file:
        try:
            return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
        except OSError as error:
            raise unreadable(path, error) from error
