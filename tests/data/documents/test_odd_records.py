"""Records where one does not expect them: none is lost, none ends in a traceback."""

from __future__ import annotations

import json
import os
import subprocess
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alia_ctx.data.documents import DocumentCounts, SourceSpec, read_documents
from alia_ctx.data.tokens import tokenize_source
from alia_ctx.errors import DataError
from tests.text_data import save_tokenizer

BIG = "9" * 5000  # above what Python converts
A, B, C = (json.dumps({"text": letter, "id": 7}) for letter in "abc")


def texts(path: Path, **spec: Any) -> tuple[list[str], DocumentCounts]:
    counts = DocumentCounts()
    source = SourceSpec(inputs=[str(path)], **spec)
    return [d.text for d in read_documents(source, counts)], counts


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize(
    "content, expected",
    [
        (f"{A}\n[{B}, {C}]\n", "abc"),
        (f"{A}\n[\n{B},\n{C}\n]\n", "abc"),
        (f"{A}{B}\n{C}", "abc"),
        (f"{A} {B},{C}", "abc"),
        (f"[{A}][{B}]\n[[{C}]]", "abc"),
        (f"{A}\n[[{B}], [[{C}]]]", "abc"),
        (f"{A}\r\n{B}\r\n\r\n{C}\r\n", "abc"),
        (f"{A}\r{B}\r{C}\r", "abc"),
        (f"\ufeff{A}\n\ufeff{B}\n{C}", "abc"),
        (f"\ufeff[{A}]\n\ufeff[{B}, {C}]", "abc"),
        (f'{A}\n{{"n": {BIG}, "text": "b"}}\n{C}', "abc"),
        (f'[{A}, {{"n": -{BIG}, "text": "b"}}, {C}]', "abc"),
    ],
)
def test_all_records_are_read(
    tmp_path: Path, suffix: str, content: str, expected: str
) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.encode())
    found, counts = texts(path)
    ones = [text for text in found if text in "abc"]
    brackets = counts.left_out if suffix == "jsonl" else 0
    assert "".join(ones) == expected
    # Of an array over several lines in a file of lines the brackets are no JSON.
    assert brackets == (2 if suffix == "jsonl" and "[\n" in content else 0)


def test_what_has_no_text_is_counted_one_by_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{A}\n[{B}, {{"other": 1}}, 3, "x"]\n{A}\0\0\n')
    found, counts = texts(path)
    assert found == ["a", "b"]
    assert (counts.missing_text, counts.invalid_json) == (3, 1)
    ids = [d.id for d in read_documents(SourceSpec(inputs=[str(path)]))]
    assert len({*ids}) == 2 and ids[1].endswith("#0")


@pytest.mark.parametrize(
    "record",
    [
        {"text": "a", "id": int(BIG[:4000])},
        {"text": "a", "id": "\ud800"},
        {"text": "a", "\ud800": "\udfff"},
        {"text": "a", "id": [[[{"x": None}]]]},
    ],
)
def test_odd_identifiers(tmp_path: Path, record: dict[str, Any]) -> None:
    for name, content in {
        "a.jsonl": json.dumps(record),
        "a.json": json.dumps([record], indent=1),
    }.items():
        (tmp_path / name).write_text(content)
        spec = SourceSpec(inputs=[str(tmp_path / name)], id_key="id")
        [document] = read_documents(spec)
        document.id.encode()
    (tmp_path / "deep.jsonl").write_text(
        f'{{"text": "a", "id": {"[" * 900}1{"]" * 900}}}'
    )
    spec = SourceSpec(inputs=[str(tmp_path / "deep.jsonl")], id_key="id")
    assert [d.text for d in read_documents(spec, DocumentCounts())] in (["a"], [])


def parquet(path: Path, column: pa.Array, **others: pa.Array) -> Path:
    pq.write_table(pa.table({"text": column, **others}), path)
    return path


@pytest.mark.parametrize(
    "form",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_strings_of_every_form(tmp_path: Path, form: pa.DataType) -> None:
    column = pa.array(["één", None, "b", "één"], pa.string()).cast(form)
    path = parquet(tmp_path / "a.parquet", column)
    found, counts = texts(path)
    assert found == ["één", "b", "één"] and counts.missing_text == 1
    assert texts(path, id_key="text")[0] == found


def test_no_strings_and_no_single_column_are_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array([1, 2]))
    with pytest.raises(DataError, match="holds int64, not strings"):
        texts(path)
    table = pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"2 columns are called 'text'"):
        texts(tmp_path / "b.parquet")


@pytest.mark.parametrize(
    "ids",
    [pa.array([1], pa.timestamp("ns")), pa.array([1], pa.duration("ns"))],
    ids=str,
)
def test_nanoseconds_are_identifiers(tmp_path: Path, ids: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array(["a"]), id=ids)
    [document] = read_documents(SourceSpec(inputs=[str(path)], id_key="id"))
    assert document.text == "a" and document.id


def broken_strings(values: list[bytes | None], form: pa.DataType) -> pa.Array:
    """An array of a string type whose bytes are as they are, UTF-8 or not."""
    large = pa.types.is_large_string(form)
    raw = pa.array(values, pa.large_binary() if large else pa.binary())
    return raw.view(form)


@pytest.mark.parametrize(
    "ids",
    [
        broken_strings([b"one", b"\xff", b"three"], pa.string()),
        pa.DictionaryArray.from_arrays(
            pa.array([0, 1, 2]),
            broken_strings([b"one", b"\xff", b"three"], pa.string()),
        ),
        broken_strings([b"one", b"\xff", b"three"], pa.string()).cast(pa.string_view()),
        pa.array([0, 2**62, 0], pa.timestamp("us")),
        pa.array([0, 2**62, 0], pa.timestamp("ms")),
        pa.array([0, 2**30, 0], pa.date32()),
        pa.array([0, 10**18, 0], pa.duration("s")),
        pa.array([[0], [2**30], [0]], pa.list_(pa.date32())),
        pa.StructArray.from_arrays(
            [broken_strings([b"one", b"\xff", b"three"], pa.string())], ["x"]
        ),
    ],
    ids=lambda ids: str(ids.type),
)
def test_an_identifier_that_python_cannot_hold_is_that_of_its_row_alone(
    tmp_path: Path, ids: pa.Array
) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array(["a", "b", "c"]), id=ids)
    found = [*read_documents(SourceSpec(inputs=[str(path)], id_key="id"))]
    assert [d.text for d in found] == ["a", "b", "c"]
    assert found[1].id == f"{path}#1"
    assert not {found[0].id, found[2].id} & {f"{path}#{n}" for n in range(3)}


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([None, None], pa.null()),
        pa.array([b"\xff", b"\x00"]),
        pa.array([Decimal("1.50"), None], pa.decimal128(10, 2)),
        pa.array([1, 2], pa.timestamp("us", "Mars/Phobos")),
        pa.array([1, 2], pa.time64("ns")),
        pa.array([{"x": b"\xff"}, None]),
        pa.array([[(1, 2)], []], pa.map_(pa.int32(), pa.int32())),
        pa.array([float("nan"), float("inf")]),
    ],
    ids=lambda ids: str(ids.type),
)
def test_identifiers_of_every_type(tmp_path: Path, ids: pa.Array) -> None:
    path = parquet(tmp_path / "a.parquet", pa.array(["a", "b"]), id=ids)
    found = [*read_documents(SourceSpec(inputs=[str(path)], id_key="id"))]
    assert [d.text for d in found] == ["a", "b"] and all(d.id for d in found)


@pytest.mark.parametrize("index", [pa.int8(), pa.int32(), pa.int64(), None], ids=str)
@pytest.mark.parametrize("form", [pa.string(), pa.large_string()], ids=str)
def test_one_text_that_is_no_utf8_does_not_stop_the_others(
    tmp_path: Path, index: pa.DataType | None, form: pa.DataType
) -> None:
    values: list[bytes | None] = ["één".encode(), b"\xff\xfe", None, b"b"]
    if index is None:
        column = broken_strings(values, form)
    else:
        words = broken_strings([v for v in values if v is not None], form)
        column = pa.DictionaryArray.from_arrays(pa.array([0, 1, None, 2], index), words)
    found, counts = texts(parquet(tmp_path / "a.parquet", column))
    assert found == ["één", "b"]
    assert (counts.invalid_utf8, counts.missing_text) == (1, 1)
    assert counts.examples[0] == f"invalid_utf8: {tmp_path / 'a.parquet'}#1"


@pytest.mark.parametrize("window, read", [(24, True), (27, True), (30, False)])
def test_big_windows_of_zstd(tmp_path: Path, window: int, read: bool) -> None:
    zstandard = pytest.importorskip("zstandard")
    options = zstandard.ZstdCompressionParameters(
        window_log=window, enable_ldm=True, compression_level=1
    )
    path = tmp_path / "a.jsonl.zst"
    # Without its size a frame states the window that it was asked for.
    with open(path, "wb") as raw:
        compressor = zstandard.ZstdCompressor(compression_params=options)
        with compressor.stream_writer(raw) as stream:
            stream.write(f"{A}\n{B}\n".encode())
    if read:
        assert texts(path)[0] == ["a", "b"]
    else:
        with pytest.raises(DataError, match=r"--long=27"):
            texts(path)


def test_the_remedy_for_big_windows_works(tmp_path: Path) -> None:
    try:
        subprocess.run(["zstd", "--version"], check=True, capture_output=True)
    except OSError:
        pytest.skip("no zstd program")
    new = tmp_path / "new.jsonl.zst"
    script = f"zstd -qc --long=31 | zstd -dc --long=31 | zstd -q --long=27 -o {new}"
    subprocess.run(["sh", "-c", script], input=f"{A}\n".encode(), check=True)
    assert texts(new)[0] == ["a"]


def test_a_file_whose_name_is_no_utf8(tmp_path: Path) -> None:
    """Linux allows any bytes; the store says it in a way that every reader reads."""
    folder = tmp_path / "texts"
    folder.mkdir()
    name = os.fsencode(folder) + b"/caf\xe9.jsonl"
    with open(name, "w") as stream:
        stream.write("\n".join([*(A, B) * 9, "no json"]))
    (folder / os.fsdecode(b"x\xff.csv")).write_text("1")
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    spec = SourceSpec(inputs=[str(folder)])
    for _ in range(2):
        report = tokenize_source(spec, "a", tokenizer, tmp_path / "out")
        "\n".join(report.remarks()).encode("utf-8", "backslashreplace")
    assert report.unchanged and report.counts.documents == 18
    table = pq.read_table(tmp_path / "out/a.documents.parquet")
    assert table["file"][0].as_py().endswith("caf\\xe9.jsonl")
