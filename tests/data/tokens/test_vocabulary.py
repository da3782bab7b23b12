"""No token id beyond the model's vocabulary gets past the tokenizer or the store."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import (
    TokenStore,
    tokenize_source,
    vocabulary_problems,
    write_index,
    write_store,
)
from alia_ctx.data.tokens import vocabulary as module
from alia_ctx.errors import DataError
from tests import tokenizers as families
from tests.text_data import varied_texts, write_jsonl


def foreign_store(prefix: Path, documents: list[list[int]], dtype: type) -> TokenStore:
    """A store in any of the format's integer types, as other software may write it."""
    flat = [token for document in documents for token in document]
    prefix.with_suffix(".bin").write_bytes(np.array(flat, dtype).tobytes())
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        lengths = np.array([len(document) for document in documents])
        write_index(stream, lengths, np.dtype(dtype))
    return TokenStore(prefix)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int32, np.int64])
def test_ids_beyond_the_vocabulary_are_refused(tmp_path: Path, dtype: type) -> None:
    store = foreign_store(tmp_path / "s", [[3, 100, 7], [9]], dtype)
    assert store.largest_token_id() == 100
    store.check_vocabulary(101)
    with pytest.raises(DataError, match=r"s\.bin: holds token id 100.*0 to 99"):
        store.check_vocabulary(100)
    if np.iinfo(dtype).min < 0:
        negative = foreign_store(tmp_path / "n", [[3, -2, 7], [9]], dtype)
        with pytest.raises(DataError, match=r"n\.bin: holds token id -2"):
            negative.check_vocabulary(1000)


def test_a_bos_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [np.array([5000, 1, 2])], 5001)
    with pytest.raises(DataError, match="5000"):
        store.check_vocabulary(199)


def test_an_empty_store_fits_everything(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [], 100)
    assert store.largest_token_id() == -1
    store.check_vocabulary(1)


def test_all_blocks_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)
    for seed in range(20):
        tokens = np.random.default_rng(seed).integers(-50, 50, 1 + 3 * seed)
        assert module.token_range(tokens) == (tokens.min(), tokens.max())


def test_the_answer_is_kept_for_this_very_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_store(tmp_path / "s", [[3, 100, 7], [9]], np.int32).largest_token_id()
    with monkeypatch.context() as patched:
        patched.setattr(module, "token_range", None)  # a second look would fail
        assert TokenStore(tmp_path / "s").largest_token_id() == 100
    foreign_store(tmp_path / "s", [[3, 200, 7], [9]], np.int32)
    assert TokenStore(tmp_path / "s").largest_token_id() == 200
    (tmp_path / "s.range.json").write_text("{half")
    assert TokenStore(tmp_path / "s").largest_token_id() == 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_no_obstacle(tmp_path: Path) -> None:
    store = foreign_store(tmp_path / "s", [[3, 100]], np.int32)
    tmp_path.chmod(0o500)
    try:
        assert store.largest_token_id() == 100
    finally:
        tmp_path.chmod(0o700)


def test_our_stores_know_their_range_and_a_changed_file_is_read(tmp_path: Path) -> None:
    directory = families.save(families.byte_level(), tmp_path / "t")
    inputs = [str(write_jsonl(tmp_path / "a.jsonl", varied_texts(30)))]
    report = tokenize_source(
        SourceSpec(inputs=inputs), "a", directory, tmp_path / "out", shard_bytes=700
    )
    store = TokenStore(report.prefix)
    assert store.sidecar["token_range"]["largest"] == store.tokens.max()  # type: ignore[index]
    assert store.largest_token_id() == store.tokens.max()
    assert not (tmp_path / "out" / "a.range.json").exists()
    raw = bytearray(store.data_path.read_bytes())
    raw[40:42] = struct.pack("<H", 60_000)
    store.data_path.write_bytes(raw)
    with pytest.raises(DataError, match="60000"):
        TokenStore(report.prefix).check_vocabulary(1000)


@pytest.mark.parametrize("place", ["decoder", "added_tokens", "tokenizer"])
def test_a_tokenizer_with_ids_beyond_the_model(tmp_path: Path, place: str) -> None:
    tokenizer = families.byte_level()
    size = tokenizer.get_vocab_size()
    if place == "tokenizer":
        tokenizer.add_tokens(["<pad2>"])
    directory = families.save(tokenizer, tmp_path / "t")
    if place == "added_tokens":
        (directory / "added_tokens.json").write_text(json.dumps({"<pad2>": size}))
        config = {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "</s>"}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    elif place == "decoder":
        config = json.loads((directory / "tokenizer_config.json").read_text())
        config["added_tokens_decoder"] = {str(size): {"content": "<pad2>"}}
        (directory / "tokenizer_config.json").write_text(json.dumps(config))
    problems = vocabulary_problems(directory, size)
    assert [problem.key for problem in problems] == ["tokenizer"]
    assert f"beyond the model's {size} " in str(problems[0])
    assert f"'<pad2>' {size}" in str(problems[0]) or place == "added_tokens"
    assert vocabulary_problems(directory, size + 8) == []
    spec = SourceSpec(inputs=[str(write_jsonl(tmp_path / "a.jsonl", ["rain"]))])
    with pytest.raises(DataError, match="ids beyond the model's"):
        tokenize_source(spec, "a", directory, tmp_path / "out", vocab_size=size)
    assert not (tmp_path / "out").exists()


def test_modes_beside_text_are_refused_by_name(tmp_path: Path) -> None:
    write_store(tmp_path / "s", [np.arange(10), np.arange(3)], 300)
    index = tmp_path / "s.idx"
    plain = index.read_bytes()
    index.write_bytes(plain + b"\0\0")  # every sequence is text
    assert TokenStore(tmp_path / "s").n_documents == 2
    index.write_bytes(plain + b"\0\1")
    with pytest.raises(DataError, match=r"s\.idx: .*modes 1 .*multimodal"):
        TokenStore(tmp_path / "s")


def test_megatrons_multimodal_dataset_is_refused(tmp_path: Path) -> None:
    indexed = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    import torch

    builder = indexed.IndexedDatasetBuilder(
        str(tmp_path / "m.bin"), dtype=np.int32, multimodal=True
    )
    for mode in (0, 2):
        builder.add_item(torch.IntTensor([5, 6]), mode=mode)
        builder.end_document()
    builder.finalize(str(tmp_path / "m.idx"))
    with pytest.raises(DataError, match="multimodal"):
        TokenStore(tmp_path / "m")
