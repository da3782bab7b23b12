"""Stores of conversations: what lies in them, whoever made them, and when they are believed."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from alia_ctx.data.chat import (
    ChatEncoder,
    chat_settings,
    read_record,
    require_same_chat,
    write_chat_store,
)
from alia_ctx.data.documents import ChatSpec, SourceSpec
from alia_ctx.data.tokens import (
    TextEncoder,
    TokenStore,
    require_same_options,
    require_same_source,
)
from alia_ctx.errors import DataError
from tests.data.chat.conversations import FORMS, cases
from tests.data.chat.tokenizers import save_chat_tokenizer

BAD = {"messages": [{"role": "user", "content": "u"}]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer("byte level", tmp_path_factory.mktemp("t") / "t")


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Rows of all forms, in a plain file and a compressed one; one row is bad."""
    folder = tmp_path / "in"
    folder.mkdir()
    rows = [case.record for form in FORMS for case in cases(form, 6)]
    lines = [json.dumps(row) for row in [*rows[:20], BAD, *rows[20:]]]
    (folder / "a.jsonl").write_text("\n".join(lines[:30]))
    with gzip.open(folder / "b.jsonl.gz", "wt") as stream:
        stream.write("\n".join(lines[30:]))
    return folder


def source(inputs: Path, **chat: Any) -> SourceSpec:
    return SourceSpec(inputs=[str(inputs)], chat=ChatSpec(**chat))


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_documents_are_the_conversations_with_their_weights(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    report = write_chat_store(source(inputs), "chat", tokenizer, tmp_path / "out")
    store = TokenStore(tmp_path / "out" / "chat")
    store.verify()
    assert store.weights is not None
    encoder = ChatEncoder(tokenizer, ChatSpec())
    expected = [
        encoder.encode(read_record(case.record))
        for form in FORMS
        for case in cases(form, 6)
    ]
    assert store.n_documents == len(expected) == report.counts.conversations
    ends = np.cumsum([0, *store.lengths])
    for number, encoded in enumerate(expected):
        assert np.array_equal(store.document(number), encoded.ids)
        span = store.weights[ends[number] : ends[number + 1]]
        assert np.array_equal(span, encoded.trained)
    assert report.counts.trained_tokens == sum(int(e.trained.sum()) for e in expected)
    names = pq.read_table(tmp_path / "out" / "chat.documents.parquet").to_pydict()
    assert names["id"][0] == f"{inputs}/a.jsonl:1"
    assert names["file"][-1] == f"{inputs}/b.jsonl.gz"
    [left] = (tmp_path / "out" / "chat.left_out.jsonl").read_text().splitlines()
    assert json.loads(left) == {
        "where": f"{inputs}/a.jsonl:21",
        "reason": "no_answer",
        "detail": "the last turn is user; nothing answers it",
    }
    told = "\n".join(report.remarks())
    assert "1 rows left out: 1 no_answer" in told
    assert f"{inputs}/a.jsonl:21" in told


@pytest.mark.long
def test_workers_do_not_matter(
    inputs: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alia_ctx.data.chat.blocks._ROWS", 8)
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        write_chat_store(source(inputs), "chat", tokenizer, out, workers=workers)
    one, two = files(tmp_path / "out-1"), files(tmp_path / "out-2")
    assert one == two
    assert set(one) == {
        *("chat.bin", "chat.idx", "chat.weights", "chat.json"),
        *("chat.documents.parquet", "chat.left_out.jsonl", "chat.said"),
    }


def test_a_finished_store_is_left_and_another_refused(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = write_chat_store(source(inputs), "chat", tokenizer, out)
    before = files(out)
    again = write_chat_store(source(inputs), "chat", tokenizer, out)
    assert (again.unchanged, again.counts) == (True, first.counts)
    own = tmp_path / "own.jinja"
    shipped = Path(write_chat_store.__code__.co_filename).parent / "templates"
    own.write_text((shipped / "chatml-tools.jinja").read_text() + "\n{#- other -#}\n")
    for changed, told in (
        ({"train_on": "last_turn"}, "train_on"),
        ({"template": str(own)}, "template"),
        ({"max_tokens": 900}, "max_tokens"),
        ({"format": "openai"}, "form"),
    ):
        with pytest.raises(DataError, match=rf"differs:\n(.*\n)*?\s*{told}"):
            write_chat_store(source(inputs, **changed), "chat", tokenizer, out)
    assert files(out) == before
    write_chat_store(
        source(inputs, train_on="last_turn"), "chat", tokenizer, out, overwrite=True
    )
    assert files(out)["chat.weights"] != before["chat.weights"]
    assert files(out)["chat.bin"] == before["chat.bin"]
    settings = chat_settings(source(inputs), tokenizer)
    with pytest.raises(DataError, match="train_on: last_turn there, assistant now"):
        require_same_chat(source(inputs), out / "chat", settings.encoder)
    last = source(inputs, train_on="last_turn")
    require_same_chat(last, out / "chat", chat_settings(last, tokenizer).encoder)


def test_a_store_of_conversations_may_be_given_as_one(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    """Its template puts BOS and EOS, so a run's own count for nothing; what both have does."""
    write_chat_store(source(inputs), "chat", tokenizer, tmp_path)
    given, prefix = SourceSpec(store=str(tmp_path / "chat")), tmp_path / "chat"
    for eos in (True, False):
        for asked in ("split", "keep"):
            options: Any = {
                "append_eos": eos,
                "prepend_bos": False,
                "special_tokens": asked,
            }
            encoder = partial(TextEncoder, tokenizer, **options)
            if asked == "split":
                require_same_source(given, prefix, encoder, "bought")
                require_same_options(given, prefix, **options)
                continue
            with pytest.raises(
                DataError, match=r"special_tokens: split .*keep asked\n"
            ):
                require_same_source(given, prefix, encoder, "bought")
            with pytest.raises(
                DataError, match=r"special_tokens: split .*keep asked\n"
            ):
                require_same_options(given, prefix, **options)
    other = save_chat_tokenizer("llama", tmp_path / "other")
    encoder = partial(TextEncoder, other, append_eos=True, prepend_bos=False)
    with pytest.raises(DataError, match="tokenizer: ") as told:
        require_same_source(given, prefix, encoder, "bought")
    assert "source bought has it by `store`" in str(told.value)
    assert "--source" not in str(told.value)


def test_what_fails_leaves_the_old_store_whole(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    write_chat_store(source(inputs), "chat", tokenizer, out)
    before = files(out)
    strict = source(inputs, strict=True)
    anew = source(inputs, strict=True, train_on="last_turn")
    for spec in (strict, anew, source(inputs, max_tokens=3)):
        with pytest.raises(DataError, match=r"a\.jsonl:\d+: (no_answer|too_long)"):
            write_chat_store(spec, "chat", tokenizer, out, overwrite=True)
        assert files(out) == before
        assert not (out / "chat.work").exists()


def test_names_of_ids_come_from_the_records(tokenizer: Path, tmp_path: Path) -> None:
    rows = [{**case.record, "uid": n} for n, case in enumerate(cases("openai", 3))]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = SourceSpec(inputs=[str(path)], id_key="uid", chat=ChatSpec())
    write_chat_store(spec, "chat", tokenizer, tmp_path / "out")
    names = pq.read_table(tmp_path / "out" / "chat.documents.parquet").to_pydict()
    assert names["id"] == ["0", "1", "2"]


def test_a_lost_file_of_weights_is_said(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    write_chat_store(source(inputs), "chat", tokenizer, tmp_path)
    (tmp_path / "chat.weights").unlink()
    with pytest.raises(DataError, match=r"chat\.weights: is gone"):
        write_chat_store(source(inputs), "chat", tokenizer, tmp_path)


def test_stores_of_others_are_not_overwritten(
    inputs: Path, tokenizer: Path, tmp_path: Path
) -> None:
    (tmp_path / "chat.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="is not ours"):
        write_chat_store(source(inputs), "chat", tokenizer, tmp_path)
    assert (tmp_path / "chat.bin").read_bytes() == b"mine"
