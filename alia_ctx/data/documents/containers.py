"""Opening compressed files, with errors that name the file."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import IO, Any, Literal, Protocol

from alia_ctx.errors import DataError

Compression = Literal["gzip", "zstd", "xz", "bzip2"]
COMPRESSIONS: dict[str, Compression] = {
    ".gz": "gzip",
    ".gzip": "gzip",
    ".zst": "zstd",
    ".zstd": "zstd",
    ".xz": "xz",
    ".bz2": "bzip2",
}
# First bytes: RFC 1952; RFC 8878 (a frame, a skippable frame); the .xz file format 2.1.1;
# bzip2 with the magic number of its first block, or of the end of an empty stream.
_MAGIC: dict[Compression, re.Pattern[bytes]] = {
    "gzip": re.compile(rb"\x1f\x8b\x08"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18"),
    "xz": re.compile(rb"\xfd7zXZ\x00"),
    "bzip2": re.compile(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)"),
}
_BLOCK = 1 << 20


class ByteStream(Protocol):
    """What all our readers of bytes can do."""

    def read(self, size: int, /) -> bytes: ...
    def readline(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


# What mends a wrong name of the text's field: of a source, or of `evaluate --text`.
SET_TEXT_KEY = "set text_key (of `evaluate`: --text-key)"


def chat_remedy(names: Collection[str]) -> str:
    """What else to do where the fields of a record are those of a conversation."""
    if {"messages", "conversations", "chat", "answers"}.isdisjoint(names):
        return ""
    return "; a run's source of conversations is given `chat: {}`"


def compression_of(name: str) -> Compression | None:
    """The compression of a file by its first bytes, whatever it is called."""
    try:
        with open(name, "rb") as stream:
            start = stream.read(16)
    except OSError as error:
        raise _unreadable(name, error) from error
    return next((kind for kind, magic in _MAGIC.items() if magic.match(start)), None)


@contextmanager
def open_bytes(name: str) -> Iterator[ByteStream]:
    """The file's bytes, decompressed.

    What goes wrong while reading becomes a DataError, and so does a file that its suffix
    calls compressed and that is not.
    """
    with open_counted(name) as (stream, _):
        yield stream


@contextmanager
def open_counted(name: str) -> Iterator[tuple[ByteStream, IO[bytes]]]:
    """As `open_bytes`, with the file itself, whose `tell` says how much was read of it."""
    try:
        with open(name, "rb") as raw, _decompressed(name, raw) as stream:
            yield stream, raw
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{name}: broken or cut-off compressed file ({error}); restore or remove it"
        ) from error
    except OSError as error:
        if "too much memory" in str(error):  # zstd's words for a big window
            raise DataError(
                f"{name}: was compressed with a window of more than 128 MiB (zstd --long "
                "above 27), which is not read; compress it again: `zstd -dc "
                "--long=31 FILE | zstd --long=27 -o NEW`"
            ) from error
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: OSError) -> DataError:
    return DataError(f"{name}: cannot be read ({error}); restore or remove it")


def _decompressed(name: str, raw: IO[bytes]) -> Any:
    compression = compression_of(name)
    suffix = next((s for s in COMPRESSIONS if name.lower().endswith(s)), None)
    if suffix is not None and compression is None:
        raise DataError(
            f"{name}: is not compressed, or broken from its first byte, although it is "
            f"called {suffix}; rename, restore or remove it"
        )
    if compression == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if compression == "bzip2":
        return io.BufferedReader(_Decompressed(raw, bz2.BZ2Decompressor), _BLOCK)
    if compression == "xz":
        return io.BufferedReader(_Decompressed(raw, lzma.LZMADecompressor), _BLOCK)
    if compression == "zstd":
        import pyarrow as pa

        # Arrow's reader has bounded output and an error on a cut-off frame;
        # zstandard's have one or the other.
        return io.BufferedReader(
            pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd"), _BLOCK
        )
    return io.BufferedReader(raw)  # type: ignore[arg-type]


class _Decompressed(io.RawIOBase):
    """All streams of a file, one after another.

    BZ2File and LZMAFile take what follows the first stream and is none for the end of
    the file (trailing_error in CPython's module _compression): a damaged second stream
    would be lost without a word.
    """

    def __init__(self, raw: IO[bytes], make: Callable[[], Any]) -> None:
        self._raw, self._make, self._decoder = raw, make, make()

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        piece: bytes | None = b""
        while piece == b"":
            piece = self._next(len(target))
        if piece is None:
            return 0
        target[: len(piece)] = piece
        return len(piece)

    def _next(self, size: int) -> bytes | None:
        """At most `size` bytes, perhaps none yet; None at the end."""
        if self._decoder.eof:
            rest = self._decoder.unused_data or self._raw.read(_BLOCK)
            while rest and not (rest := rest.lstrip(b"\0")):  # padding of .xz
                rest = self._raw.read(_BLOCK)
            if not rest:
                return None
            self._decoder = self._make()
            return bytes(self._decoder.decompress(rest, size))
        block = self._raw.read(_BLOCK) if self._decoder.needs_input else b""
        if self._decoder.needs_input and not block:
            raise EOFError("its last stream has no end")
        return bytes(self._decoder.decompress(block, size))
