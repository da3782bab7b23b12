"""Every file of a directory is read or named: suffixes, containers, encodings, JSON forms."""

from __future__ import annotations

import bz2
import glob
import gzip
import json
import lzma
import os
import random
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
)
from alia_ctx.data.documents.json_values import json_values
from alia_ctx.errors import DataError
from tests.data.documents.test_documents import read_all, source
from tests.text_data import varied_texts, write_jsonl

PACKERS = {
    ".gz": gzip.compress,
    ".GZ": gzip.compress,
    ".gzip": gzip.compress,
    ".zst": zstandard.compress,
    ".zstd": zstandard.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".Bz2": bz2.compress,
}
TEXTS = varied_texts(40)
RECORDS = [{"name": f"doc-{n}", "text": text} for n, text in enumerate(TEXTS)]
FORMS = {
    "array": json.dumps(RECORDS),
    "array, a record a line": "[\n" + ",\n".join(map(json.dumps, RECORDS)) + "\n]\n",
    "array, indented": json.dumps(RECORDS, indent=2),
    "objects, indented": "\n".join(json.dumps(each, indent=1) for each in RECORDS),
    "lines": "\n".join(map(json.dumps, RECORDS)),
    "lines, CRLF and blank lines": "\r\n\r\n".join(map(json.dumps, RECORDS)),
    "two arrays": json.dumps(RECORDS[:3]) + "\n" + json.dumps(RECORDS[3:], indent=3),
}


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".JSON", ".NdJson"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_json_in_every_form(tmp_path: Path, form: str, suffix: str, bom: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes((bom + FORMS[form]).encode())
    texts, counts = read_all(source(path))
    assert texts == TEXTS and counts.left_out == 0


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("form", ["array, indented", "lines"])
def test_every_container(tmp_path: Path, form: str, suffix: str) -> None:
    pack, data = PACKERS[suffix], FORMS[form].encode()
    path = tmp_path / f"a.json{suffix}"
    path.write_bytes(pack(data[:999]) + pack(data[999:]))  # two streams in one file
    assert read_all(source(path))[0] == TEXTS
    for damaged in (
        pack(data)[:-6],
        pack(data) + b"what is that",
        pack(data[:999]) + pack(data[999:])[:-9],
        data,
    ):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=path.name):
            read_all(source(path))


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_container_is_known_by_its_content(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(PACKERS[suffix](FORMS["lines"].encode()))
    assert read_all(source(path), 300)[0] == TEXTS


def test_a_single_pretty_printed_object_is_a_record(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"text": "rain", "more": [1, {"a": 2}]}, indent=4))
    (document,) = read_documents(source(path))
    assert document.text == "rain" and document.id == f"{path}#0"


def test_values_do_not_depend_on_how_the_bytes_come(tmp_path: Path) -> None:
    class Dribble:
        def __init__(self, data: bytes, seed: int) -> None:
            self.data, self.chance = data, random.Random(seed)

        def read(self, size: int, /) -> bytes:
            size = self.chance.choice([1, 2, 3, 7, 50])
            piece, self.data = self.data[:size], self.data[size:]
            return piece

        readline = seek = read

    values = [{"text": 'a "b" \\ [1]'}, {}, [], [{"x": "é日"}], "s,]", None, {"t": {}}]
    for seed in range(30):
        text = json.dumps(values, ensure_ascii=False, indent=seed % 3 or None)
        found = list(json_values(Dribble(text.encode(), seed), "a", 1000))
        assert found == values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"text": "a"}, {"text": "b"}', "record 2 .*ends inside an array"),
        ('[{"text": "a"}, {"text": "b', "record 1 .*unterminated string"),
        ('[{"text": "a"}, {"text": b}]' + " " * 500, "record 1 .*expecting value"),
        ("[\n" * 100_000, "record 0 .*is nested too deeply"),
        ('[{"text": "' + "x" * 4_000_000, "record 0 .*longer than max_document"),
    ],
)
def test_broken_json_names_file_and_record(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"a\.json: {message}"):
        read_all(source(path, max_document_bytes=1000))


def test_dirty_records_of_an_array_cost_no_more_than_themselves(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(
        b'[{"text": "good"}, {"text": "caf\xe9"}, {"text": " "}, {"body": "x"}, 7,\n'
        b'{"text": "lone \\ud800"}, {"text": "' + b"y" * 150 + b'"}, {"text": "end"}]'
    )
    texts, counts = read_all(source(path, max_document_bytes=100))
    assert texts == ["good", "end"]
    assert (counts.invalid_utf8, counts.empty, counts.missing_text) == (2, 1, 2)
    assert counts.too_long == 1 and f"invalid_utf8: {path}#1" in counts.examples


def test_lines_that_are_no_json_at_all_are_an_error(tmp_path: Path) -> None:
    for content in (
        b"name,text\n1,rain\n2,more\n",
        b'{"text": "a",\n "b": 1}\n',
        'text: "é"\nand: more\n'.encode("latin-1"),
    ):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.jsonl: none of its \d lines is JSON"):
            read_all(source(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32", "utf-16-le"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("hello world, a text".encode(encoding))
    texts, counts = read_all(source(tmp_path / "a.txt"))
    assert texts == [] and counts.invalid_utf8 == 1
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    (tmp_path / "a.jsonl").write_bytes(lines.encode(encoding))
    with pytest.raises(DataError, match=r"a\.jsonl: .*(UTF-16|is JSON)"):
        read_all(source(tmp_path / "a.jsonl"))


def test_a_few_nul_characters_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one \0 two \0 three, and so on")
    assert len(read_all(source(tmp_path / "a.txt"))[0]) == 1


def test_every_file_of_a_directory_is_read_or_named(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    plain = write_jsonl(folder / "h.jsonl", ["rain"])
    for name, pack in (
        ("b.JSONL", bytes),
        ("c.jsonl.bz2", bz2.compress),
        ("d.jsonl.xz", lzma.compress),
        ("e.jsonl.gzip", gzip.compress),
        ("i.jsonl.zstd", zstandard.compress),
        ("j.TXT", bytes),
        ("m.Json", bytes),
    ):
        (folder / name).write_bytes(pack(plain.read_bytes()))
    pq.write_table(pa.table({"text": ["rain"]}), folder / "l.pq")
    left_out = {
        "f.csv": "no reader for .csv",
        "g.arrow": "no reader for .arrow",
        "k.parquet.gz": "Parquet in a compressed file, decompress it",
        "n.zip": ".zip is an archive, unpack it",
        "n.tar.gz": "no reader for .tar in .gz",
        "README": "no reader for a name without suffix",
        ".h.jsonl": "hidden file",
    }
    for name in left_out:
        (folder / name).write_bytes(b"x")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.txt").write_text("x")
    (folder / "sub").mkdir()
    (folder / "sub" / "a.txt").write_text("rain")
    (folder / "o").symlink_to("sub")
    (folder / "p.txt").symlink_to("nowhere")
    (folder / "q.jsonl").symlink_to("h.jsonl")
    os.link(folder / "sub" / "a.txt", folder / "sub" / "b.txt")
    os.mkfifo(folder / "r.txt")
    left_out |= {
        ".git": "hidden directory",
        "o": "link to a directory, not followed",
        "p.txt": "broken link",
        "q.jsonl": f"is the same file as {plain}",
        "r.txt": "no regular file",
        "sub/b.txt": f"is the same file as {folder}/sub/a.txt",
    }
    found = find_inputs([str(folder)])
    names = {
        str(Path(name).relative_to(folder)): w for name, w in found.ignored.items()
    }
    assert names == left_out
    counts = DocumentCounts()
    assert len(list(read_documents(source(folder), counts))) == 10 == len(found.files)
    assert counts.left_out == 0


def test_globs_name_what_they_match_and_leave_out(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["rain"])
    (tmp_path / "b.csv").write_text("x")
    (tmp_path / "sub").mkdir()
    found = find_inputs([str(tmp_path / "*")])
    assert {Path(name).name: why for name, why in found.ignored.items()} == {
        "b.csv": "no reader for .csv",
        "sub": "directory, give it by itself",
    }
    with pytest.raises(DataError, match=r"b\.csv \(no reader for \.csv\)"):
        find_inputs([str(tmp_path / "b.csv")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root lists every directory")
def test_a_directory_that_cannot_be_listed_is_an_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["rain"])
    (tmp_path / "locked").mkdir(0o000)
    with pytest.raises(DataError, match="locked: cannot be listed"):
        find_inputs([str(tmp_path)])


def test_shards_are_small_enough_for_many_workers(tmp_path: Path) -> None:
    """32 files of 2 MB, or one of 64, are work for dozens of workers either way."""
    line = json.dumps({"text": "x" * 4000}).encode() + b"\n"
    many = [tmp_path / f"{number}.jsonl" for number in range(8)]
    for path in many:
        path.write_bytes(line * 520)
    one = tmp_path / "one.jsonl"
    one.write_bytes(line * 520 * 8)
    spec = SourceSpec(inputs=[])
    assert len(plan_shards([str(path) for path in many], spec)) == 16
    assert len(plan_shards([str(one)], spec)) == 16
    packed = tmp_path / "one.jsonl.gz"
    packed.write_bytes(os.urandom(3 << 20))
    packed.write_bytes(gzip.compress(packed.read_bytes().hex().encode()))
    ((part,),) = plan_shards([str(packed)], spec)
    assert part.block_bytes == 1 << 20


@pytest.mark.parametrize(
    "pattern",
    [
        *("**", "**/*", "**/*.jsonl", "*/**/*.jsonl", "**/b/**/*.jsonl", "**/**/*.*"),
        *("**/[ab]/*", "**/.h/*.jsonl", "**/.*", "b/**/c.jsonl", "**/*/*/*", "?/**"),
        *(
            "**/b/*.jsonl",
            "**/none",
            "[*]/**/*",
            "**/b/**",
            "**x/*.jsonl",
        ),
    ],
)
def test_recursive_globs_match_what_globs_do(tmp_path: Path, pattern: str) -> None:
    """Where there are no links, exactly the files that Python's own glob finds."""
    names = "a b/b b/c b/b/c d/b/x/c .h/a b/.h/c .z *d/e ax/b x/b"
    for name in names.split():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}')
    expected = {
        name
        for name in glob.glob(f"{glob.escape(str(tmp_path))}/{pattern}", recursive=True)
        if Path(name).is_file()
    }
    try:
        found = find_inputs([f"{glob.escape(str(tmp_path))}/{pattern}"])
    except DataError:
        assert not expected
    else:
        assert {*found.files} == {n for n in expected if n.endswith(".jsonl")}
        assert {*found.ignored} == {n for n in expected if not n.endswith(".jsonl")}


def test_recursive_globs_follow_no_link_to_a_directory(tmp_path: Path) -> None:
    """Not in circles, not out of the tree; each link is named once, as below a directory."""
    tree, other = tmp_path / "tree", tmp_path / "other"
    (tree / "sub").mkdir(parents=True)
    other.mkdir()
    for path in (tree / "a.jsonl", tree / "sub" / "b.jsonl", other / "c.jsonl"):
        path.write_text('{"text": "a"}')
    (tree / "loop").symlink_to(tree)
    (tree / "sub" / "up").symlink_to("..")
    (tree / "out").symlink_to(other)
    links = {str(tree / "loop"), str(tree / "sub" / "up"), str(tree / "out")}
    for pattern in ("**", "**/*.jsonl", "**/*", "**/**/*.jsonl"):
        found = find_inputs([f"{tree}/{pattern}", str(tree)])
        assert {*found.files} == {f"{tree}/a.jsonl", f"{tree}/sub/b.jsonl"}
        told = {n: why for n, why in found.ignored.items() if n in links}
        assert told == dict.fromkeys(links, "link to a directory, not followed")
        assert not [n for n in found.ignored if "loop/" in n or "out/" in n]
    with pytest.raises(DataError, match="link to a directory, not followed"):
        find_inputs([f"{tree}/**/out/*.jsonl"])
    # as a directory, a link that is given by itself is what was asked for
    assert find_inputs([f"{tree}/out/**/*.jsonl"]).files == (f"{tree}/out/c.jsonl",)
