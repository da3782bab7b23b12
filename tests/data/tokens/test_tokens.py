"""Token stores: Megatron's format, exact tokens, and what is refused."""

from __future__ import annotations

import json
import struct
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TokenStore, token_dtype, tokenize_source, write_store
from alia_ctx.errors import DataError
from tests.data.tokens.stores import SHARD, TEXTS, files_of
from tests.text_data import write_jsonl


def test_store_holds_the_tokens_of_each_document(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    report = tokenize_source(
        spec, "a", tokenizer_dir, tmp_path / "out", prepend_bos=True, shard_bytes=SHARD
    )
    store = TokenStore(report.prefix)
    tokenizer = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    assert store.n_documents == len(TEXTS) == report.counts.documents
    for number, text in enumerate(TEXTS):
        assert store.document(number).tolist() == [
            1,
            *tokenizer.encode(text, add_special_tokens=False).ids,
            2,
        ]
    assert report.tokens == store.n_tokens == int(store.lengths.sum())
    assert store.dtype == np.uint16
    assert report.shards > 3
    store.verify()
    table = pq.read_table(tmp_path / "out" / "a.documents.parquet").to_pydict()
    assert table["id"] == [f"doc-{number}" for number in range(len(TEXTS))]
    assert set(table["file"]) == set(spec.inputs)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.bin", "a.documents.parquet", "a.idx", "a.json"]


def test_megatron_reads_our_store_and_we_read_megatrons(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    report = tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out")
    ours = TokenStore(report.prefix)
    theirs = indexed.IndexedDataset(str(report.prefix))
    assert len(theirs) == ours.n_documents
    assert np.array_equal(theirs.document_indices, np.arange(ours.n_documents + 1))
    for number in range(0, ours.n_documents, 17):
        assert np.array_equal(theirs[number], ours.document(number))
    # documents of several sequences, an empty one, four bytes a token
    documents = [[[5, 6], [7]], [[8, 9, 10]], [], [[11], [12, 13], [14]]]
    builder = indexed.IndexedDatasetBuilder(str(tmp_path / "m.bin"), dtype=np.int32)
    for document in documents:
        for sequence in document:
            builder.add_item(torch.IntTensor(sequence))
        builder.end_document()
    builder.finalize(str(tmp_path / "m.idx"))
    store = TokenStore(tmp_path / "m.idx")
    flat = [list(chain(*document)) for document in documents]
    assert store.lengths.tolist() == [len(each) for each in flat]
    assert [store.document(number).tolist() for number in range(4)] == flat
    assert store.document(3, 1, 3).tolist() == [12, 13]


def test_workers_and_repetition_do_not_change_a_byte(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        tokenize_source(
            spec,
            "a",
            tokenizer_dir,
            tmp_path / name,
            workers=workers,
            shard_bytes=SHARD,
        )
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_shard_size_does_not_change_the_tokens(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    for shard_bytes in (500, SHARD, 1 << 20):
        tokenize_source(
            spec,
            str(shard_bytes),
            tokenizer_dir,
            tmp_path / "out",
            shard_bytes=shard_bytes,
        )
    stores = {
        (tmp_path / "out" / f"{size}{kind}").read_bytes()
        for size in (500, SHARD, 1 << 20)
        for kind in (".bin",)
    }
    assert len(stores) == 1


def test_a_finished_store_is_left_alone_and_another_refused(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    out = tmp_path / "out"
    first = tokenize_source(spec, "a", tokenizer_dir, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    again = tokenize_source(spec, "a", tokenizer_dir, out)
    assert again.unchanged and not first.unchanged and again.tokens == first.tokens
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with pytest.raises(DataError, match=r"differs:\n  special_ids: .*there.*asked"):
        tokenize_source(spec, "a", tokenizer_dir, out, append_eos=False)
    write_jsonl(Path(spec.inputs[0]), TEXTS[:10])
    with pytest.raises(DataError, match="inputs: 1 added, removed or changed"):
        tokenize_source(spec, "a", tokenizer_dir, out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert (
        tokenize_source(spec, "a", tokenizer_dir, out, overwrite=True).counts.documents
        == 10
    )
    assert TokenStore(out / "a").n_documents == 10


def test_a_foreign_store_is_not_overwritten(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    write_store(tmp_path / "out" / "a", [np.arange(5)], 300)
    with pytest.raises(DataError, match="not ours"):
        tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out")
    tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out", overwrite=True)
    assert TokenStore(tmp_path / "out" / "a").n_documents == len(TEXTS)


def test_dirt_is_reported_and_nothing_left_is_an_error(
    tmp_path: Path, tokenizer_dir: Path
) -> None:
    path = tmp_path / "dirty.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": ""}\n{"text": "caf\xe9"}\nhalf a li')
    spec = SourceSpec(inputs=[str(path)])
    counts = tokenize_source(spec, "d", tokenizer_dir, tmp_path / "out").counts
    assert (
        counts.documents,
        counts.empty,
        counts.invalid_utf8,
        counts.invalid_json,
    ) == (1, 1, 1, 1)
    assert (
        json.loads((tmp_path / "out" / "d.json").read_text())["counts"]["invalid_json"]
        == 1
    )
    path.write_bytes(b'{"text": ""}\n\n')
    with pytest.raises(DataError, match=r"no usable document.*1 empty"):
        tokenize_source(spec, "e", tokenizer_dir, tmp_path / "out")
    assert not (tmp_path / "out" / "e.bin").exists()


def test_wrong_tokenizer_directories(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    def run(directory: Path, **options: bool) -> None:
        tokenize_source(spec, "a", directory, tmp_path / "out", **options)

    with pytest.raises(DataError, match="no such tokenizer directory"):
        run(tmp_path / "missing")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="no tokenizer that transformers can load"):
        run(broken)
    nameless = tmp_path / "nameless"
    nameless.mkdir()
    (nameless / "tokenizer.json").write_bytes(
        (tokenizer_dir / "tokenizer.json").read_bytes()
    )
    with pytest.raises(DataError, match="names no eos_token"):
        run(nameless)
    assert not (tmp_path / "out").exists()
    run(nameless, append_eos=False)
    empty = tmp_path / "nothing"
    empty.mkdir()
    with pytest.raises(DataError, match="no tokenizer that transformers can load"):
        tokenize_source(spec, "b", empty, tmp_path / "out")


def test_directories_without_tokenizer_json_go_through_transformers(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    content = json.loads((tokenizer_dir / "tokenizer.json").read_text())["model"]
    directory = tmp_path / "slow"
    directory.mkdir()
    (directory / "vocab.json").write_text(json.dumps(content["vocab"]))
    (directory / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(each) for each in content["merges"])
    )
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "eos_token": "</s>",
        "bos_token": "<s>",
        "unk_token": "<unk>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenize_source(spec, "fast", tokenizer_dir, tmp_path / "out")
    tokenize_source(spec, "slow", directory, tmp_path / "out")
    assert (tmp_path / "out" / "fast.bin").read_bytes() == (
        tmp_path / "out" / "slow.bin"
    ).read_bytes()


def _damage(prefix: Path, kind: str) -> None:
    data, index = prefix.with_suffix(".bin"), prefix.with_suffix(".idx")
    raw = bytearray(index.read_bytes())
    if kind == "short bin":
        data.write_bytes(data.read_bytes()[:-2])
    elif kind == "no bin":
        data.unlink()
    elif kind == "empty idx":
        index.write_bytes(b"")
    elif kind == "short idx":
        index.write_bytes(raw[:-8])
    elif kind == "magic":
        raw[0] ^= 1
        index.write_bytes(raw)
    elif kind == "version":
        index.write_bytes(raw[:9] + struct.pack("<Q", 2) + raw[17:])
    elif kind == "float":
        index.write_bytes(raw[:17] + b"\x07" + raw[18:])


@pytest.mark.parametrize(
    "kind",
    ["short bin", "no bin", "empty idx", "short idx", "magic", "version", "float"],
)
def test_broken_stores_are_refused_at_opening(tmp_path: Path, kind: str) -> None:
    prefix = tmp_path / "s"
    write_store(prefix, [np.arange(10), np.arange(3)], 300)
    _damage(prefix, kind)
    with pytest.raises(DataError, match=str(prefix)):
        TokenStore(prefix)


def test_sequences_out_of_order_are_refused(tmp_path: Path) -> None:
    prefix = tmp_path / "s"
    write_store(prefix, [np.arange(4), np.arange(4)], 300)
    raw = bytearray(prefix.with_suffix(".idx").read_bytes())
    raw[42:58] = struct.pack("<qq", 8, 8)  # byte offsets of both sequences
    prefix.with_suffix(".idx").write_bytes(raw)
    with pytest.raises(DataError, match="one after another"):
        _ = TokenStore(prefix).lengths


def test_fingerprint_and_verify_see_a_changed_token(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    prefix = tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out").prefix
    before = TokenStore(prefix).fingerprint
    assert TokenStore(prefix).fingerprint == before
    data = bytearray(prefix.with_suffix(".bin").read_bytes())
    data[len(data) // 2] ^= 1
    prefix.with_suffix(".bin").write_bytes(data)
    assert TokenStore(prefix).fingerprint != before
    with pytest.raises(DataError, match="checksum"):
        TokenStore(prefix).verify()


def test_dtype_is_megatrons_choice() -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    for vocabulary in (300, 65_499, 65_500, 256_000):
        assert token_dtype(vocabulary) == indexed.DType.optimal_dtype(vocabulary)
