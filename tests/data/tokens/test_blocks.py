"""One big stream is read once and encoded by all workers, in blocks that a restart finds."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from alia_ctx.data.documents import Slice, SourceSpec, plan_shards
from alia_ctx.data.tokens import TokenizeProgress, TokenStore, source, tokenize_source
from alia_ctx.data.tokens import shards as module
from alia_ctx.errors import DataError
from tests.text_data import save_tokenizer, varied_texts, write_jsonl

TEXTS = varied_texts(150)
SHARD = 500


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "hf")


def write_stream(folder: Path, name: str) -> Path:
    """The same documents as one stream that cannot be cut."""
    path = folder / name
    plain = write_jsonl(folder / "plain.jsonl", TEXTS)
    records = [json.loads(line) for line in plain.read_text().splitlines()]
    data = plain.read_bytes()
    if name.endswith(".json"):
        path.write_text(json.dumps(records, indent=1))
    elif name.endswith(".parquet"):
        table = pa.table({key: [each[key] for each in records] for key in records[0]})
        pq.write_table(table, path)
    else:
        pack = {
            ".gz": lambda raw: gzip.compress(raw, mtime=0),
            ".zst": zstandard.compress,
            ".xz": lzma.compress,
            ".bz2": bz2.compress,
        }[path.suffix]
        path.write_bytes(pack(data))
    plain.unlink()
    return path


def tokens_of(prefix: Path) -> bytes:
    return prefix.with_suffix(".bin").read_bytes()


STREAMS = [
    "a.jsonl.gz",
    "a.jsonl.zst",
    "a.jsonl.xz",
    "a.json.bz2",
    "a.json",
    "a.parquet",
]


@pytest.mark.parametrize("name", STREAMS)
def test_blocks_hold_the_same_tokens_as_lines(
    tmp_path: Path, tokenizer_dir: Path, name: str
) -> None:
    plain = SourceSpec(inputs=[str(write_jsonl(tmp_path / "p.jsonl", TEXTS))])
    expected = tokenize_source(plain, "p", tokenizer_dir, tmp_path / "out")
    path = write_stream(tmp_path, name)
    spec = SourceSpec(inputs=[str(path)], id_key="name")
    (shard,) = plan_shards(spec.inputs, spec, SHARD)
    assert len(shard) == 1 and shard[0].block_bytes
    seen: list[TokenizeProgress] = []
    report = tokenize_source(
        spec,
        "s",
        tokenizer_dir,
        tmp_path / "out",
        shard_bytes=SHARD,
        progress=seen.append,
    )
    assert tokens_of(report.prefix) == tokens_of(expected.prefix)
    assert report.counts.documents == len(TEXTS) and report.tokens == expected.tokens
    TokenStore(report.prefix).verify()
    table = pq.read_table(tmp_path / "out" / "s.documents.parquet").to_pydict()
    assert table["id"] == [f"doc-{number}" for number in range(len(TEXTS))]
    done = [state.bytes_done for state in seen]
    assert len(seen) > 5 and done == sorted(done)
    last = seen[-1]
    assert (last.bytes_done, last.shards_done) == (last.bytes_total, 1)
    assert (last.documents, last.tokens) == (len(TEXTS), report.tokens)


def test_all_workers_encode_what_one_process_reads(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_stream(tmp_path, "a.jsonl.gz")
    spec = SourceSpec(inputs=[str(path)])
    alone = tmp_path / "alone"
    tokenize_source(spec, "a", tokenizer_dir, alone, shard_bytes=SHARD)
    submitted: list[str] = []
    real = module.ProcessPoolExecutor.submit

    def submit(pool: object, function: object, *arguments: object) -> object:
        submitted.append(function.__name__)  # type: ignore[attr-defined]
        return real(pool, function, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module.ProcessPoolExecutor, "submit", submit)
    monkeypatch.setattr(module, "_encode_piece", None)  # this process encodes nothing
    together = tmp_path / "together"
    tokenize_source(spec, "a", tokenizer_dir, together, workers=2, shard_bytes=SHARD)
    assert submitted == ["_work_on_block"] * len(submitted) and len(submitted) > 5
    for file in alone.iterdir():
        assert (together / file.name).read_bytes() == file.read_bytes()


class StopError(Exception):
    pass


def test_finished_blocks_are_found_by_the_next_run(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SourceSpec(inputs=[str(write_stream(tmp_path, "a.jsonl.zst"))])
    whole = tmp_path / "whole"
    tokenize_source(spec, "a", tokenizer_dir, whole, shard_bytes=SHARD)
    out = tmp_path / "out"
    calls: list[object] = []

    def stop(_state: object) -> None:
        calls.append(_state)
        if len(calls) == 4:
            raise StopError

    with pytest.raises(StopError):
        tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD, progress=stop)
    assert len(list((out / "a.work").glob("shard-*.json"))) == 4
    encoded: list[object] = []
    real = module._encode_piece

    def encode(job: module.Job, piece: str, items: list[module.Item]) -> module.Note:
        encoded.append(piece)
        return real(job, piece, items)

    monkeypatch.setattr(module, "_encode_piece", encode)
    tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD)
    assert encoded[0] == "000000-000004"
    for file in whole.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_damaged_block_is_named_and_made_again(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = SourceSpec(inputs=[str(write_stream(tmp_path, "a.jsonl.gz"))])
    tokenize_source(spec, "a", tokenizer_dir, tmp_path / "whole", shard_bytes=SHARD)
    out = tmp_path / "out"

    def run() -> None:
        tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD)

    with monkeypatch.context() as patched:
        patched.setattr(source, "_join", None)  # all blocks are there, nothing joined
        with pytest.raises(TypeError):
            run()
    block = out / "a.work" / "shard-000000-000003.bin"
    block.write_bytes(b"\x01" + block.read_bytes()[1:])
    with pytest.raises(DataError, match=r"000003\.bin: is not .*000003\.json and run"):
        run()
    block.with_suffix(".json").unlink()
    run()
    for file in (tmp_path / "whole").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


def test_a_stream_that_breaks_off_names_the_file_and_leaves_no_store(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    path = write_stream(tmp_path, "a.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-30])
    spec = SourceSpec(inputs=[str(path)])
    for workers in (1, 2):
        with pytest.raises(DataError, match=r"a\.jsonl\.gz: broken or cut-off"):
            tokenize_source(
                spec,
                "a",
                tokenizer_dir,
                tmp_path / "out",
                workers=workers,
                shard_bytes=SHARD,
            )
    assert not (tmp_path / "out" / "a.bin").exists()


def test_what_a_block_leaves_out_is_counted_once(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[3:3] = ['{"text": ""}', "{half", '{"body": 1}', '{"text": "see </s>"}']
    lines[90:90] = ["{half"] * 7
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    spec = SourceSpec(inputs=[str(path)])
    reports = [
        tokenize_source(
            spec,
            str(workers),
            tokenizer_dir,
            tmp_path / "out",
            workers=workers,
            shard_bytes=SHARD,
        )
        for workers in (1, 2)
    ]
    counts = reports[0].counts
    assert counts == reports[1].counts
    assert (counts.empty, counts.invalid_json, counts.missing_text) == (1, 8, 1)
    assert counts.documents == len(TEXTS) + 1 and counts.special_tokens == {"</s>": 1}


def test_who_reads_which_stream() -> None:
    def streams(sizes: list[int], workers: int, plain: int = 0) -> int:
        shards: list[module.Shard] = [
            (Slice("f", "jsonl", 0, None, size, 10),) for size in sizes
        ]
        shards += [(Slice("p", "jsonl", 0, None, 64),)] * plain
        return len(module._streams(shards, list(range(len(shards))), workers))

    assert streams([100], 2) == 1  # a single one is for all
    assert streams([100] * 32, 32) == 0  # one for each
    assert streams([100] * 40, 32) == 8  # a round for each, and what is left over
    assert streams([1000, *[10] * 64], 32) == 1  # one much bigger than the rest
    assert streams([], 4, plain=9) == 0


@pytest.mark.parametrize("kind", ["small gz", "text gz", "plain", "row groups"])
def test_what_needs_no_blocks_has_none(tmp_path: Path, kind: str) -> None:
    path = (
        tmp_path
        / {
            "small gz": "a.jsonl.gz",
            "text gz": "a.txt.gz",
            "plain": "a.jsonl",
            "row groups": "a.parquet",
        }[kind]
    )
    lines = "\n".join(json.dumps({"text": text}) for text in TEXTS)
    if kind == "row groups":
        pq.write_table(pa.table({"text": TEXTS}), path, row_group_size=1)
    elif kind == "plain":
        path.write_text(lines)
    else:
        path.write_bytes(gzip.compress(lines.encode()))
    spec = SourceSpec(inputs=[str(path)])
    size = path.stat().st_size
    for shard in plan_shards([str(path)], spec, 20 * size):
        assert all(part.block_bytes is None for part in shard)
