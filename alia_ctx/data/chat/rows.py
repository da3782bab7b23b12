"""Files -> rows: lines of JSON, values of JSON arrays, rows of Parquet, each with its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from alia_ctx.data.chat.conversation import RowError
from alia_ctx.data.chat.forms.beside import TOOLS_COLUMNS
from alia_ctx.data.chat.forms.calls import ARGUMENT_KEYS
from alia_ctx.data.chat.forms.unread import RECORD_COLUMNS
from alia_ctx.data.chat.json_text import Decoder, parse
from alia_ctx.data.documents.containers import ByteStream, open_bytes
from alia_ctx.data.documents.inputs import format_of
from alia_ctx.data.documents.json_values import json_values
from alia_ctx.data.documents.parquet import NoValue, column_values, parquet_file
from alia_ctx.data.documents.slices import json_form
from alia_ctx.errors import DataError

_BATCH = 64
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """A row as it was read: `where` is FILE:LINE (the first is 1), or FILE#RECORD (the
    first is 0) of an array or of Parquet; `value` the bytes of a line, or the record;
    `fault` (reason, detail) why it can be none.
    """

    where: str
    value: Any
    fault: tuple[str, str] | None = None

    def record(self) -> Any:
        """The record; RowError where it is none."""
        if self.fault is not None:
            raise RowError(*self.fault)
        if not isinstance(self.value, bytes):
            return self.value
        try:
            text = self.value.removeprefix(_BOM).decode("utf-8")
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} of the line is no UTF-8"
            raise RowError("invalid_utf8", detail) from error
        try:
            return parse(text)
        except ValueError as error:
            raise RowError("invalid_json", str(error)) from error


def read_rows(file: str, max_bytes: int, id_key: str | None = None) -> Iterator[Row]:
    """The rows of a file in order. A line above `max_bytes` is a row with a fault.

    DataError where the file cannot be read to its end, holds no records, or holds tools
    or arguments as structures of Arrow, whose nulls cannot be told from those written.
    """
    form = format_of(file)
    if form == "text":
        raise DataError(
            f"{file}: is text, and conversations are records; give JSON lines, a JSON "
            "array or Parquet"
        )
    if form == "parquet":
        yield from _parquet_rows(file, id_key)
        return
    with open_bytes(file) as stream:
        if json_form(file, form) == "json":
            yield from _values(stream, file, max_bytes)
        else:
            yield from _lines(stream, file, max_bytes)


def _values(stream: ByteStream, file: str, max_bytes: int) -> Iterator[Row]:
    decoder = Decoder()
    for number, value in enumerate(json_values(stream, file, max_bytes, decoder)):
        fault = ("invalid_json", decoder.faults[0]) if decoder.faults else None
        yield Row(f"{file}#{number}", value, fault)
        decoder.faults.clear()


def _lines(stream: ByteStream, file: str, max_bytes: int) -> Iterator[Row]:
    number = 0
    while line := stream.readline(max_bytes + 1):
        number += 1
        where = f"{file}:{number}"
        if len(line) > max_bytes and not line.endswith(b"\n"):
            while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
                pass
            detail = f"the line is above {max_bytes:,} bytes (max_document_bytes)"
            yield Row(where, None, ("too_long", detail))
        elif line.strip():
            yield Row(where, line)


def _parquet_rows(file: str, id_key: str | None) -> Iterator[Row]:
    import pyarrow as pa

    try:
        with parquet_file(file) as parquet:
            schema = parquet.schema_arrow
            known = [name for name in schema.names if name in RECORD_COLUMNS]
            if not known:
                raise DataError(
                    f"{file}: no column of conversations, only "
                    f"{', '.join(schema.names)}; convert it to JSON lines of messages"
                )
            for name in known:
                _require_no_structures(file, name, schema.field(name))
            columns = [
                name
                for name in schema.names
                if name in (*known, id_key) or _may_say(schema.field(name).type)
            ]
            number = 0
            for batch in parquet.iter_batches(batch_size=_BATCH, columns=columns):
                for row in _python_rows(batch):
                    yield _parquet_row(f"{file}#{number}", row)
                    number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{file}: cannot be read as Parquet ({error}); restore or remove the file"
        ) from error


def _may_say(kind: Any) -> bool:
    """Whether a column that no reader knows may have tools or a prompt: no number has."""
    import pyarrow as pa

    types = pa.types
    plain = types.is_primitive(kind) or types.is_decimal(kind) or types.is_null(kind)
    return not (plain or types.is_binary(kind) or types.is_large_binary(kind))


def _python_rows(batch: Any) -> Iterator[Any]:
    """Rows as mappings; one that Python cannot hold is a NoValue by itself, but where
    only its name is none, or a column that no reader knows.
    """
    names = batch.schema.names
    for values in zip(*map(column_values, batch.columns), strict=True):
        row = dict(zip(names, values, strict=True))
        for name in names:
            if name not in RECORD_COLUMNS and isinstance(row[name], NoValue):
                row[name] = None
        wrong = [value for value in row.values() if isinstance(value, NoValue)]
        yield wrong[0] if wrong else row


def _parquet_row(where: str, row: Any) -> Row:
    if not isinstance(row, NoValue):
        return Row(where, row)
    if isinstance(row.error, UnicodeDecodeError):
        return Row(where, None, ("invalid_utf8", "a string of the row is no UTF-8"))
    return Row(
        where, None, ("unparsable_messages", f"Python cannot hold a value: {row.error}")
    )


def _require_no_structures(file: str, place: str, field: Any) -> None:
    """Tools and arguments are no structures: Arrow gives each the keys of all."""
    import pyarrow as pa

    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    if not pa.types.is_struct(kind):
        return
    if field.name in (*TOOLS_COLUMNS, *ARGUMENT_KEYS):
        raise DataError(
            f"{file}: {place} holds structures, in which Arrow has given every object the "
            "keys of all others; write them as JSON text, one string a row"
        )
    for inner in (kind.field(i) for i in range(kind.num_fields)):
        _require_no_structures(file, f"{place}.{inner.name}", inner)
