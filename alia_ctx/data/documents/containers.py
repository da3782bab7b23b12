"""Opening compressed and Parquet files, with errors that name the file."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from alia_ctx.errors import DataError


class ByteStream(Protocol):
    """What all our readers of bytes can do."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


@contextmanager
def open_parquet(name: str, text_key: str, id_key: str | None) -> Iterator[Any]:
    """A pyarrow ParquetFile with these columns;

    DataError where it is broken, or lacks a column or strings in it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(name) as parquet:
            schema = parquet.schema_arrow
            for key in filter(None, (text_key, id_key)):
                if key not in schema.names:
                    raise DataError(
                        f"{name}: no column {key!r}, only {', '.join(schema.names)}; "
                        "set text_key/id_key"
                    )
            kind = schema.field(text_key).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(
                    f"{name}: column {text_key!r} holds {kind}, not strings; set text_key"
                )
            yield parquet
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{name}: cannot be read as Parquet ({error}); restore or remove the file"
        ) from error


@contextmanager
def open_bytes(name: str) -> Iterator[ByteStream]:
    """The file's bytes, decompressed by suffix;

    what goes wrong while reading becomes a DataError.
    """
    suffix = Path(name).suffix
    try:
        with open(name, "rb") as raw:
            if suffix == ".gz":
                with gzip.GzipFile(fileobj=raw) as stream:
                    yield stream
            elif suffix == ".zst":
                import pyarrow as pa

                # Arrow's reader has bounded output and an error on a cut-off frame;
                # zstandard's have one or the other.
                with io.BufferedReader(
                    pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), 1 << 20
                ) as stream:
                    yield stream
            else:
                yield raw
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{name}: broken or cut-off compressed file ({error}); restore or remove it"
        ) from error
    except OSError as error:
        raise DataError(
            f"{name}: cannot be read ({error}); restore or remove it"
        ) from error
