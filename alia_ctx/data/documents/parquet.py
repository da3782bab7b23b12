"""Parquet files: opening them, and their values, some of which Python cannot hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from alia_ctx.data.documents.containers import SET_TEXT_KEY, chat_remedy
from alia_ctx.errors import DataError


class NoValue:
    """Stands for a value that Python cannot hold: a date beyond the year 9999, a string
    that is no UTF-8. `error` says why.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error


@contextmanager
def open_parquet(name: str, text_key: str, id_key: str | None) -> Iterator[Any]:
    """A pyarrow ParquetFile with these columns;

    DataError where it is broken, or lacks a column or strings in it.
    """
    import pyarrow as pa

    try:
        with parquet_file(name) as parquet:
            schema = parquet.schema_arrow
            for key in filter(None, (text_key, id_key)):
                columns = schema.names.count(key)
                if columns != 1:
                    remedy = SET_TEXT_KEY if key == text_key else "set id_key"
                    what = f"{columns} columns are" if columns else "no column is"
                    raise DataError(
                        f"{name}: {what} called {key!r}, the columns are "
                        f"{', '.join(schema.names)}; {remedy}, or rename one"
                        f"{chat_remedy(schema.names)}"
                    )
            column = schema.field(text_key).type
            if not _holds_strings(column):
                raise DataError(
                    f"{name}: column {text_key!r} holds {column}, not strings; "
                    f"{SET_TEXT_KEY} to one of {', '.join(schema.names)}"
                )
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: cannot be read as Parquet ({error}); restore or remove the file"
        ) from error


def _holds_strings(column: Any) -> bool:
    """Whether an Arrow type is a string, in any of the forms that Arrow has for them."""
    import pyarrow.types as types

    if types.is_dictionary(column):
        return _holds_strings(column.value_type)
    is_view = getattr(types, "is_string_view", lambda _: False)
    return bool(
        types.is_string(column) or types.is_large_string(column) or is_view(column)
    )


def parquet_file(name: str) -> Any:
    """A pyarrow ParquetFile in which one string that is no UTF-8 does not stop the rest."""
    import pyarrow.parquet as pq
    import pyarrow.types as types

    parquet = pq.ParquetFile(name)
    # Strings that were written as a dictionary with other than 32-bit indices are made
    # one again by a cast that refuses all where one is no UTF-8 (Arrow's
    # cpp/src/parquet/arrow/reader_internal.cc). Read as a dictionary they are not cast.
    coded = [
        field.name
        for field in parquet.schema_arrow
        if types.is_dictionary(field.type) and _holds_strings(field.type)
    ]
    if not coded:
        return parquet
    parquet.close()
    return pq.ParquetFile(name, read_dictionary=coded)


def column_values(column: Any) -> list[Any]:
    """An Arrow array as values of Python; NoValue where there is none."""
    # Arrow raises OverflowError, ValueError, UnicodeDecodeError, ... by what is wrong.
    try:
        return list(column.to_pylist())
    except Exception:
        pass
    try:  # nanoseconds, which Python's own types do not have
        if _is_nanoseconds(column.type):
            return list(column.cast("string").to_pylist())
    except Exception:
        pass
    return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return NoValue(error)


def _is_nanoseconds(form: Any) -> bool:
    return getattr(form, "unit", None) == "ns"
