"""JSON as it was written: the order of keys and the spelling of numbers survive."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any


class Number(float):
    """A number with a fraction or an exponent, and its text: 1e3 stays 1e3."""

    text: str

    def __new__(cls, text: str) -> Number:
        number = super().__new__(cls, text)
        number.text = text
        return number


class Decoder(json.JSONDecoder):
    """Reads values whole, and says in `faults` what is not to be believed of them: a key
    that an object has twice, NaN and infinities.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        super().__init__(
            parse_int=self._integer,
            parse_float=self._number,
            parse_constant=self._constant,
            object_pairs_hook=self._object,
        )

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            self.faults.append(f"an object has the key {twice!r} twice")
        return value

    def _integer(self, text: str) -> int:
        try:
            return int(text)
        except ValueError:  # Python converts none of thousands of digits
            self.faults.append(f"an integer has {len(text):,} digits")
            return 0

    def _number(self, text: str) -> Number:
        number = Number(text)
        if math.isinf(number):
            self.faults.append(f"{text} is beyond all numbers that are stored")
        return number

    def _constant(self, text: str) -> None:
        self.faults.append(f"{text} is no JSON")


def parse_at(text: str, position: int) -> tuple[Any, int]:
    """The value that begins at `position`, and where it ends. ValueError as of `parse`."""
    decoder = Decoder()
    try:
        value, end = decoder.raw_decode(text, position)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    if decoder.faults:
        raise ValueError(decoder.faults[0])
    return value, end


def parse(text: str) -> Any:
    """The value of a JSON text; ValueError where it is none, an object has a key twice,
    or a number is NaN or infinite.
    """
    value, end = parse_at(text, len(text) - len(text.lstrip(" \t\r\n")))
    if text[end:].strip(" \t\r\n"):
        raise ValueError(f"something follows the value: {text[end : end + 30]!r}")
    return value


_BLANKS = " \t\r\n"


def items_of(text: str) -> Iterator[tuple[str, Any]]:
    """The items of the text of an array that `parse` accepts: text as written, value."""
    position = text.index("[") + 1
    while (position := _past(text, position, _BLANKS + ",")) < len(text):
        if text[position] == "]":
            return
        value, end = parse_at(text, position)
        yield text[position:end], value
        position = end


def members_of(text: str) -> Iterator[tuple[str, str]]:
    """Names and values of the text of an object that `parse` accepts, as written."""
    position = text.index("{") + 1
    while (position := _past(text, position, _BLANKS + ",")) < len(text):
        if text[position] == "}":
            return
        name, end = parse_at(text, position)
        begin = _past(text, end, _BLANKS + ":")
        position = parse_at(text, begin)[1]
        yield name, text[begin:position]


def joined(members: dict[str, str]) -> str:
    """The text of an object with these names, and values as they are written."""
    pairs = (f"{write(name)}: {text}" for name, text in members.items())
    return f"{{{', '.join(pairs)}}}"


def _past(text: str, position: int, letters: str) -> int:
    while position < len(text) and text[position] in letters:
        position += 1
    return position


def write(value: Any) -> str:
    """One line of JSON, with numbers as `parse` read them and no character escaped that
    need not be; ValueError for what JSON has no form for, or is nested too deeply: a
    little less than what `parse` reads.
    """
    try:
        return "".join(_pieces(value))
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, Number):
        yield value.text
    elif isinstance(value, dict):
        yield "{"
        for index, (key, item) in enumerate(value.items()):
            if not isinstance(key, str):
                raise ValueError(f"the key {key!r} is no text")
            yield ", " if index else ""
            yield f"{json.dumps(key, ensure_ascii=False)}: "
            yield from _pieces(item)
        yield "}"
    elif isinstance(value, list | tuple):  # literals of Python have both
        yield "["
        for index, item in enumerate(value):
            yield ", " if index else ""
            yield from _pieces(item)
        yield "]"
    else:
        try:
            yield json.dumps(value, ensure_ascii=False, allow_nan=False)
        except TypeError as error:
            kind = type(value).__name__
            raise ValueError(f"JSON has no form for a {kind}") from error


def plain(value: Any) -> Any:
    """`value` with numbers of Python, as `json.loads` would have given it."""
    if isinstance(value, Number):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def leaves(value: Any) -> Iterator[Any]:
    """Everything in a value that is no array or object, keys included."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from leaves(item)
    elif isinstance(value, list):
        for item in value:
            yield from leaves(item)
    else:
        yield value
