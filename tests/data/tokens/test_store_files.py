"""The files of a store, and files of others whose names are like theirs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.chat import write_chat_store
from alia_ctx.data.documents import ChatSpec, SourceSpec
from alia_ctx.data.tokens import (
    TokenStore,
    document_places,
    require_written,
    tokenize_source,
    write_store,
)
from alia_ctx.data.tokens.said import said_of
from alia_ctx.errors import AliaError, DataError
from tests.data.chat.tokenizers import save_chat_tokenizer

TALK = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "rare"}]
OF_TEXT = {"s.bin", "s.idx", "s.documents.parquet", "s.json"}
OF_CHAT = {*OF_TEXT, "s.weights", "s.said", "s.left_out.jsonl"}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer("byte level", tmp_path_factory.mktemp("t") / "t")


@pytest.fixture
def text(tmp_path: Path) -> SourceSpec:
    (tmp_path / "text.jsonl").write_text('{"text": "some text"}\n{"text": "more"}')
    return SourceSpec(inputs=[str(tmp_path / "text.jsonl")])


@pytest.fixture
def talks(tmp_path: Path) -> SourceSpec:
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": TALK}))
    return SourceSpec(inputs=[str(tmp_path / "talks.jsonl")], chat=ChatSpec())


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_text_in_the_place_of_conversations_is_a_store_of_text(
    tmp_path: Path, tokenizer: Path, text: SourceSpec, talks: SourceSpec
) -> None:
    out = tmp_path / "out"
    write_chat_store(talks, "s", tokenizer, out)
    write_chat_store(talks, "s.x", tokenizer, out)  # a source of its own
    theirs = names(out) - OF_CHAT
    assert names(out) == OF_CHAT | theirs
    with pytest.raises(DataError, match="differs"):
        tokenize_source(text, "s", tokenizer, out)
    assert names(out) == OF_CHAT | theirs
    tokenize_source(text, "s", tokenizer, out, overwrite=True)
    assert names(out) == OF_TEXT | theirs
    store = TokenStore(out / "s")
    store.verify()
    assert store.weights is None and said_of(store) is None
    write_chat_store(talks, "s", tokenizer, out, overwrite=True)
    assert names(out) == OF_CHAT | theirs and TokenStore(out / "s").weights is not None


def test_weights_that_an_earlier_release_left_are_mended_by_overwriting(
    tmp_path: Path, tokenizer: Path, text: SourceSpec, talks: SourceSpec
) -> None:
    out = tmp_path / "out"
    write_chat_store(talks, "s", tokenizer, out)
    left = {n: (out / n).read_bytes() for n in OF_CHAT - OF_TEXT}
    tokenize_source(text, "s", tokenizer, out, overwrite=True)
    for name, content in left.items():
        (out / name).write_bytes(content)
    with pytest.raises(DataError, match=r"again with --overwrite, or remove it"):
        require_written(out / "s")
    with pytest.raises(DataError, match="made for other tokens"):
        tokenize_source(text, "s", tokenizer, out)
    assert not tokenize_source(text, "s", tokenizer, out, overwrite=True).unchanged
    assert names(out) == OF_TEXT
    require_written(out / "s")
    assert tokenize_source(text, "s", tokenizer, out).unchanged


def test_files_of_others_stay_where_their_store_is_overwritten(
    tmp_path: Path, tokenizer: Path, text: SourceSpec
) -> None:
    out = tmp_path / "out"
    write_store(out / "s", [np.arange(9)], 300)
    for name in ("s.weights", "s.said", "s.left_out.jsonl", "s.txt"):
        (out / name).write_text("of others")
    tokenize_source(text, "s", tokenizer, out, overwrite=True)
    for name in ("s.weights", "s.said", "s.left_out.jsonl", "s.txt"):
        assert (out / name).read_text() == "of others"
    assert TokenStore(out / "s").weights is None


def test_a_work_of_the_other_kind_is_begun_anew_where_that_is_allowed(
    tmp_path: Path, tokenizer: Path, text: SourceSpec, talks: SourceSpec
) -> None:
    work = tmp_path / "s.work"
    work.mkdir()
    (work / "identity.json").write_text("{}")
    (work / "shard-000000.bin").write_bytes(b"")
    with pytest.raises(DataError, match=r"unfinished run of text.*--overwrite"):
        write_chat_store(talks, "s", tokenizer, tmp_path)
    write_chat_store(talks, "s", tokenizer, tmp_path, overwrite=True)
    assert not work.exists() and names(tmp_path) >= OF_CHAT
    work.mkdir()
    (work / "chat").touch()
    tokenize_source(text, "s", tokenizer, tmp_path, overwrite=True)
    assert not work.exists() and not (OF_CHAT - OF_TEXT) & names(tmp_path)
    work.mkdir()
    (work / "mine.txt").touch()
    (tmp_path / "s.json").unlink()
    with pytest.raises(AliaError):
        write_chat_store(talks, "s", tokenizer, tmp_path, overwrite=True)
    assert names(work) == {"mine.txt"}


RAW = [
    '{"text": "a"}\n{"text": "b"}\n',
    '{\n "text": "one record"\n}',
    '[{"identity": 1}]',
    '{"identity": "x"}\n{"identity": "y"}\n',
    "no JSON",
    "",
    "\ufeff{}",
]


@pytest.mark.parametrize("raw", RAW)
def test_json_beside_a_store_that_was_made_elsewhere_says_nothing_of_it(
    tmp_path: Path, raw: str
) -> None:
    documents = [np.arange(9), np.arange(5)]
    alone = write_store(tmp_path / "alone" / "s", documents, 300)
    store = write_store(tmp_path / "s", documents, 300)
    (tmp_path / "s.json").write_text(raw)
    for suffix in ("weights", "said", "documents.txt"):
        (tmp_path / f"s.{suffix}").write_text("of others")
    (tmp_path / "s.work").mkdir()
    (tmp_path / "s.work" / "notes.txt").touch()
    assert store.sidecar == {} and store.weights is None and said_of(store) is None
    assert alone.is_called(store.fingerprint) and store.largest_token_id() == 8
    require_written(tmp_path / "s")
    (tmp_path / "s.json").unlink()  # the folder alone
    assert TokenStore(tmp_path / "s").n_documents == 2


def test_no_more_than_the_beginning_of_a_corpus_is_read(tmp_path: Path) -> None:
    store = write_store(tmp_path / "s", [np.arange(9)], 300)
    with open(tmp_path / "s.json", "wb") as stream:
        stream.write(b'{"text": "a"}\n')
        stream.truncate(1 << 38)  # a hole: to read it would take 256 GiB
    assert store.sidecar == {}


def test_parquet_of_others_names_no_documents(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    store = write_store(tmp_path / "s", [np.arange(9), np.arange(5)], 300)
    nameless = [f"document 1 of {tmp_path}/s"]
    path = tmp_path / "s.documents.parquet"
    pq.write_table(pa.table({"text": ["a", "b"]}), path)
    assert document_places(store, [1]) == nameless
    path.write_text("no Parquet")
    assert document_places(store, [1]) == nameless


@pytest.mark.parametrize("left", ["", "{", "\0\0", '{"bin_checksum": "a'])
def test_a_broken_sidecar_of_ours_is_named(
    tmp_path: Path, tokenizer: Path, text: SourceSpec, left: str
) -> None:
    tokenize_source(text, "s", tokenizer, tmp_path)
    (tmp_path / "s.json").write_text(left)
    with pytest.raises(DataError, match=r"s\.json: broken .*--overwrite"):
        _ = TokenStore(tmp_path / "s").sidecar
    tokenize_source(text, "s", tokenizer, tmp_path, overwrite=True)
    TokenStore(tmp_path / "s").verify()


@pytest.mark.parametrize("name", ["a.bin", "a.idx", "a.json", "a.range", "a.work"])
def test_sources_may_be_called_like_files_of_each_other(
    tmp_path: Path, tokenizer: Path, text: SourceSpec, talks: SourceSpec, name: str
) -> None:
    """`a` of conversations, then text in its place, beside a source `a.bin` of text."""
    first = tokenize_source(text, name, tokenizer, tmp_path)
    assert TokenStore(tmp_path / name).prefix == tmp_path / name
    write_chat_store(talks, "a", tokenizer, tmp_path)
    tokenize_source(text, "a", tokenizer, tmp_path, overwrite=True)
    for prefix in (name, "a"):
        store = TokenStore(tmp_path / prefix)
        store.verify()
        require_written(tmp_path / prefix)
        assert store.n_tokens == first.tokens
    assert tokenize_source(text, name, tokenizer, tmp_path).unchanged


def test_a_prefix_may_be_given_as_one_of_its_files(tmp_path: Path) -> None:
    write_store(tmp_path / "a", [np.arange(9)], 300)
    for name in ("a", "a.bin", "a.idx"):
        assert TokenStore(tmp_path / name).prefix == tmp_path / "a"
    with pytest.raises(DataError, match=r"b\.idx does not exist"):
        TokenStore(tmp_path / "b.bin")
