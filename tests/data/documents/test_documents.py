"""Reading documents: every format, any cut, dirty input counted or refused, memory bounded."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from alia_ctx.data.documents import (
    DocumentCounts,
    SourceSpec,
    find_inputs,
    plan_shards,
    read_documents,
    read_slice,
)
from alia_ctx.errors import DataError
from tests.text_data import varied_texts, write_jsonl


def read_all(
    spec: SourceSpec, shard_bytes: int = 64 << 20
) -> tuple[list[str], DocumentCounts]:
    counts = DocumentCounts()
    shards = plan_shards(find_inputs(spec.inputs).files, spec, shard_bytes)
    texts = [
        document.text
        for shard in shards
        for part in shard
        for document in read_slice(part, spec, counts)
    ]
    return texts, counts


def source(path: Path, **fields: object) -> SourceSpec:
    return SourceSpec(inputs=[str(path)], **fields)  # type: ignore[arg-type]


def test_formats_hold_the_same_documents(tmp_path: Path) -> None:
    texts = varied_texts(40)
    plain = write_jsonl(tmp_path / "a.jsonl", texts)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    frames = [
        zstandard.compress(plain.read_bytes()[:500]),
        zstandard.compress(plain.read_bytes()[500:]),
    ]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    pq.write_table(
        pa.table({"text": texts, "other": list(range(40))}),
        tmp_path / "a.parquet",
        row_group_size=7,
    )
    for name in ("a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"):
        found, counts = read_all(source(tmp_path / name))
        assert found == texts, name
        assert counts.documents == 40 and counts.left_out == 0


@pytest.mark.parametrize("suffix", [".txt", ".md", ".rst", ".txt.gz", ".md.zst"])
def test_a_text_file_is_one_document(tmp_path: Path, suffix: str) -> None:
    text = "Línia u\nlinia dos\r\n\n"
    data = b"\xef\xbb\xbf" + text.encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(
        Path("x" + suffix).suffix, bytes
    )(data)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed)
    document = next(iter(read_documents(source(path))))
    assert document.text == text and document.id == document.file == str(path)


@pytest.mark.parametrize("shard_bytes", [1, 7, 50, 64, 199, 1000, 10**6])
def test_any_cut_of_json_lines_gives_each_line_once(
    tmp_path: Path, shard_bytes: int
) -> None:
    texts = varied_texts(60)
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    path.write_bytes(
        path.read_bytes().rstrip(b"\n")
    )  # a last line without an end is a line
    assert read_all(source(path), shard_bytes)[0] == texts


@pytest.mark.parametrize("shard_bytes", [100, 1000, 10**6])
def test_any_cut_of_parquet_gives_each_row_once(
    tmp_path: Path, shard_bytes: int
) -> None:
    texts = varied_texts(50)
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=6)
    assert read_all(source(tmp_path / "a.parquet"), shard_bytes)[0] == texts


def test_ids_come_from_the_key_or_the_place(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["one", "two"])
    assert [each.id for each in read_documents(source(path, id_key="name"))] == [
        "doc-0",
        "doc-1",
    ]
    first = len(path.read_bytes().splitlines(keepends=True)[0])
    assert [each.id for each in read_documents(source(path))] == [
        f"{path}@0",
        f"{path}@{first}",
    ]
    pq.write_table(
        pa.table({"text": ["one", "two"], "n": [7, 8]}), tmp_path / "a.parquet"
    )
    assert [
        each.id for each in read_documents(source(tmp_path / "a.parquet", id_key="n"))
    ] == ["7", "8"]
    assert [
        each.id[-2:] for each in read_documents(source(tmp_path / "a.parquet"))
    ] == ["#0", "#1"]


def test_dirty_lines_are_counted_by_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "   "}',
        b'{"text": "caf\xe9"}',  # Latin-1
        '{"text": "wide"}'.encode("utf-16"),
        b'{"text": "lone \\ud800 surrogate"}',
        b'{"text": null}',
        b'{"body": "elsewhere"}',
        b'["text"]',
        b"",
        b'{"text": "' + b"x" * 400 + b'"}',
        b'{"text": "' + b"y" * 120 + b'"}',
        b'{"text": "also go',  # cut off
    ]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n".join(lines))
    texts, counts = read_all(source(path, max_document_bytes=100))
    assert texts == ["good"]
    assert (
        counts.empty,
        counts.invalid_json,
        counts.missing_text,
        counts.too_long,
    ) == (1, 1, 3, 2)
    assert counts.invalid_utf8 == 3
    assert counts.documents == 1 and counts.left_out == 10
    assert any(
        example.startswith("too_long: ") and str(path) in example
        for example in counts.examples
    )


def test_dirty_parquet_values_are_counted(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"caf\xe9", b"", None, b"x" * 200], pa.binary())
    column = pa.Array.from_buffers(
        pa.string(), 5, raw.buffers()
    )  # Arrow does not check what a string column holds
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    texts, counts = read_all(source(tmp_path / "a.parquet", max_document_bytes=100))
    assert texts == ["good"]
    assert (
        counts.invalid_utf8,
        counts.empty,
        counts.missing_text,
        counts.too_long,
    ) == (1, 1, 1, 1)


def test_text_files_that_are_too_long_or_no_utf8_are_counted(tmp_path: Path) -> None:
    (tmp_path / "big.txt").write_text("x" * 101)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "fine.txt").write_text("x" * 100)
    texts, counts = read_all(source(tmp_path, max_document_bytes=100))
    assert texts == ["x" * 100]
    assert (counts.too_long, counts.invalid_utf8, counts.empty) == (1, 1, 1)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_huge_line_is_skipped_in_bounded_memory(tmp_path: Path, suffix: str) -> None:
    # 96 MB in one line against a limit of 1 MB: what holds here holds for 2 GB, as
    # nothing grows with the line
    path = tmp_path / f"a.jsonl{suffix}"
    huge = b'{"text": "' + b"x" * (96 << 20) + b'"}\n'
    data = b'{"text": "before"}\n' + huge + b'{"text": "after"}\n'
    path.write_bytes(
        {".gz": lambda d: gzip.compress(d, 1), ".zst": zstandard.compress}.get(
            suffix, bytes
        )(data)
    )
    del huge, data
    tracemalloc.start()
    texts, counts = read_all(source(path, max_document_bytes=1 << 20))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["before", "after"] and counts.too_long == 1
    assert peak < 16 << 20


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.jsonl.gz", lambda d: gzip.compress(d)[:-20]),
        ("b.jsonl.gz", lambda d: b"this is no gzip"),
        (
            "c.jsonl.gz",
            lambda d: gzip.compress(d)[:40] + b"\xff" * 40 + gzip.compress(d)[80:],
        ),
        ("d.jsonl.zst", lambda d: zstandard.compress(d)[:-9]),
        ("e.jsonl.zst", lambda d: b"this is no zstd"),
        ("f.parquet", lambda d: b"PAR1 and nothing else"),
        ("g.parquet", lambda d: b""),
    ],
)
def test_broken_containers_are_errors_that_name_the_file(
    tmp_path: Path, name: str, damage: object
) -> None:
    path = write_jsonl(tmp_path / "plain.jsonl", varied_texts(200))
    broken = tmp_path / name
    broken.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with pytest.raises(DataError, match=name):
        read_all(source(broken))


def test_cut_off_parquet_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": varied_texts(500)}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"a\.parquet.*Parquet"):
        read_all(source(tmp_path / "a.parquet"))


def test_missing_column_and_key_name_what_there_is(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "url": ["y"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"'text'.*body, url"):
        read_all(source(tmp_path / "a.parquet"))
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match="int64, not strings"):
        read_all(source(tmp_path / "b.parquet"))
    (tmp_path / "c.jsonl").write_text(json.dumps({"body": "x", "url": "y"}) + "\n")
    with pytest.raises(DataError, match=r"key 'text'.*'body', 'url'"):
        read_all(source(tmp_path / "c.jsonl"))


def test_inputs_are_found_sorted_once_and_the_rest_is_told(tmp_path: Path) -> None:
    for name in (
        "b/two.txt",
        "b/one.jsonl.gz",
        "a.md",
        "b/picture.png",
        "b/.hidden/x.txt",
        "table.parquet.gz",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = find_inputs(
        [str(tmp_path / "b"), str(tmp_path / "**" / "*.txt"), str(tmp_path / "a.md")]
    )
    assert [Path(each).name for each in found.files] == [
        "one.jsonl.gz",
        "two.txt",
        "a.md",
    ]
    assert {Path(name).name: why for name, why in found.ignored.items()} == {
        "picture.png": "no reader for .png",
        ".hidden": "hidden directory",
    }


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.pdf").write_bytes(b"x")
    for pattern in ("empty", "missing.txt", "*.jsonl", "x.pdf"):
        with pytest.raises(DataError, match="give files"):
            find_inputs([str(tmp_path / pattern)])


def test_source_problems(tmp_path: Path) -> None:
    fine = write_jsonl(tmp_path / "a.jsonl", ["x"])
    assert source(fine).problems("data.sources.a") == []
    missing = source(tmp_path / "b.jsonl").problems("data.sources.a")
    assert [each.key for each in missing] == [
        "data.sources.a.inputs"
    ] and "b.jsonl" in str(missing[0])
    assert SourceSpec().problems("s")[0].key == "s.inputs"
    assert {
        each.key for each in SourceSpec(store=str(tmp_path / "no")).problems("s")
    } == {"s.store"}
    assert "together" in SourceSpec(inputs=[str(fine)], store="x").problems("s")[0].rule
    assert (
        source(fine, max_document_bytes=0).problems("s")[0].key
        == "s.max_document_bytes"
    )


def test_counts_add_up_and_keep_few_examples() -> None:
    total = DocumentCounts()
    for part in range(4):
        counts = DocumentCounts(documents=2)
        for number in range(3):
            counts.leave_out("empty", f"{part}-{number}")
        total.add(counts)
    assert (total.documents, total.empty, total.left_out) == (8, 12, 12)
    assert total.examples == [
        "empty: 0-0",
        "empty: 0-1",
        "empty: 0-2",
        "empty: 1-0",
        "empty: 1-1",
    ]
