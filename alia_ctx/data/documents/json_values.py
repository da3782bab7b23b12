"""JSON values one after another, or in arrays, over any number of lines, as a stream."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

from alia_ctx.data.documents.containers import ByteStream
from alia_ctx.errors import DataError

_BLOCK = 1 << 20
# A byte order mark stands where files that begin with one were joined.
_SEPARATORS = re.compile("[ \\t\\r\\n,\ufeff]*")
# Python refuses to convert longer ones (sys.int_info.default_max_str_digits).
_LONGEST_INTEGER = 4300
# json's message for input that ends inside a string gives the string's start; other
# messages about an early end point at most this far from it.
_NEAR_END = 64


def _integer(digits: str) -> int | str:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else digits


_DECODER = json.JSONDecoder(parse_int=_integer)


def values_of(line: str) -> Iterator[object]:
    """The values of a line, which are mostly one; ValueError where it is no JSON."""
    position = _SEPARATORS.match(line).end()  # type: ignore[union-attr]
    while position < len(line):
        value, position = _DECODER.raw_decode(line, position)
        yield value
        position = _SEPARATORS.match(line, position).end()  # type: ignore[union-attr]


def records(value: object) -> Iterator[object]:
    """What a value holds: itself, or what stands in its arrays."""
    pending = [value]
    while pending:
        first = pending.pop()
        if isinstance(first, list):
            pending.extend(reversed(first))
        else:
            yield first


def json_values(
    stream: ByteStream,
    name: str,
    limit: int,
    decoder: json.JSONDecoder = _DECODER,
) -> Iterator[object]:
    """The values of a stream, those of arrays at the top level one by one, as `decoder`
    reads them.

    Holds one value and a block at a time. Bytes that are no UTF-8 become lone surrogates
    inside strings. DataError where the text is no JSON, ends inside a value or an array,
    or a value takes more than `limit` characters: what follows could not be found.
    """
    decode = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape").decode
    scan = decoder.raw_decode
    text, position, count, ended, in_array = "", 0, 0, False, False
    block = _BLOCK
    while True:
        position = _SEPARATORS.match(text, position).end()  # type: ignore[union-attr]
        rest = text[position : position + 1]
        if not rest and ended:
            if in_array:
                raise _broken(name, count, "ends inside an array")
            return
        if rest == ("]" if in_array else "["):
            in_array = not in_array
            position += 1
            continue
        try:
            if not rest:
                raise json.JSONDecodeError("nothing yet", text, position)
            value, position = scan(text, position)
        except RecursionError as error:
            raise _broken(name, count, "is nested too deeply") from error
        except json.JSONDecodeError as error:
            inside = error.msg.startswith("Unterminated string")
            if ended or not (inside or error.pos >= len(text) - _NEAR_END):
                raise _broken(name, count, error.msg) from error
            if len(text) - position > limit:
                raise _broken(
                    name, count, "is longer than max_document_bytes"
                ) from error
            data = stream.read(block)
            ended = not data
            text = text[position:] + decode(data, ended)
            # Twice as much each time, as the value is scanned anew from its start.
            position, block = 0, 2 * block
            continue
        yield value
        count, block = count + 1, _BLOCK


def _broken(name: str, count: int, what: str) -> DataError:
    return DataError(
        f"{name}: record {count} (the first is 0) {what[:1].lower() + what[1:]}; repair "
        "the file, or convert it to JSON lines"
    )
