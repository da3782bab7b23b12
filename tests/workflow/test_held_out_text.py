"""Text that models are measured on: which documents are kept, and of which source each is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TextEncoder, TokenStore, tokenize_source
from alia_ctx.errors import DataError
from alia_ctx.workflow import held_out_text
from alia_ctx.workflow.held_out_text import ReadText, haystack_texts, stored_text
from alia_ctx.workflow.named_models import _notes
from tests.evaluated_model import write_text, write_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("text")
    write_tokenizer(root, write_text(root / "books"))
    (root / "brief").mkdir()
    for number in range(5):
        text = (root / "books" / f"{number}.txt").read_text()
        (root / "brief" / f"{number}.md").write_text(text[: 300 * (number + 1)])
    return root


def encoder(root: Path) -> TextEncoder:
    return TextEncoder(root / "tokenizer", append_eos=False, prepend_bos=False)


def test_documents_are_read_until_there_are_enough(folder: Path) -> None:
    text = ReadText([str(folder / "books")], encoder(folder), [64, 256], 2)
    assert text.sources == () and set(text.lengths) == {256}
    assert 2 <= len(text.lengths) <= 6
    again = ReadText([str(folder / "books")], encoder(folder), [64, 256], 2)
    assert again.fingerprint == text.fingerprint
    other = ReadText([str(folder / "books")], encoder(folder), [64, 255], 2)
    assert other.fingerprint != text.fingerprint


def test_each_input_is_a_source(folder: Path) -> None:
    names = [str(folder / "books"), str(folder / "brief")]
    text = ReadText(names, encoder(folder), [64, 4096], 3)
    assert text.sources == tuple(names)
    assert set(text.sources_of(range(len(text.lengths)))) == {0, 1}
    for number, length in enumerate(text.lengths):
        assert 64 <= length == len(text.document(number, 0, 9999))


def test_text_that_is_too_short_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match=r"brief: no document has 9,999 tokens"):
        ReadText([str(folder / "brief")], encoder(folder), [9999], 3)


def test_a_store_knows_which_input_each_document_is_from(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [str(folder / "books"), str(folder / "brief" / "*.md")]
    spec = SourceSpec(inputs=inputs)
    tokenize_source(spec, "held_out", folder / "tokenizer", tmp_path, workers=1)
    store = TokenStore(tmp_path / "held_out")
    monkeypatch.setattr(held_out_text, "open_store", lambda run, name: store)
    run: Any = SimpleNamespace(evaluation=SimpleNamespace(held_out=spec))
    text = stored_text(run)
    assert text.sources == tuple(inputs)
    assert text.sources_of(range(11)) == [0] * 6 + [1] * 5


@pytest.fixture
def by_input(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Any, TokenStore]]:
    """Files of so many records each, tokenised from inputs below `tmp_path`."""

    def made(files: dict[str, int], inputs: list[str]) -> tuple[Any, TokenStore]:
        for name, records in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = [json.dumps({"text": f"record {n} " * 9}) for n in range(records)]
            path.write_text("\n".join(lines))
        spec = SourceSpec(inputs=inputs)
        out = tmp_path / "tokens"
        tokenize_source(spec, "held_out", folder / "tokenizer", out, workers=1)
        store = TokenStore(out / "held_out")
        monkeypatch.setattr(held_out_text, "open_store", lambda run, name: store)
        run: Any = SimpleNamespace(evaluation=SimpleNamespace(held_out=spec))
        return run, store

    monkeypatch.chdir(tmp_path)
    return made


@pytest.mark.parametrize(
    ("files", "inputs", "counts"),
    [
        (
            {"wiki/a.jsonl": 3, "books/top.jsonl": 5, "books/es/x.jsonl": 2},
            ["wiki/*.jsonl", "books/**/*.jsonl"],
            [3, 7],
        ),
        (
            {"h/a.jsonl": 3, "h/deep/x.jsonl": 4},
            ["h/*.jsonl", "h/deep/*.jsonl"],
            [3, 4],
        ),
        ({"h/a.jsonl": 3, "g/a.jsonl": 4}, ["./h/**", "./g/**"], [3, 4]),
        ({"h/a.jsonl": 3, "h/.b.jsonl": 4}, ["h", "h/.b.jsonl"], [3, 4]),
        ({"[a]/x.jsonl": 2, "a/x.jsonl": 5}, ["[a]/x.jsonl", "a"], [2, 5]),
        ({"h/a.jsonl": 3, "h/b.jsonl": 4}, ["h/b.jsonl", "h"], [4, 3]),
        ({"h/caf\udce9.jsonl": 3, "g/a.jsonl": 4}, ["g", "h"], [4, 3]),
        ({"h/a.jsonl": 3, "h/b.jsonl": 4}, ["h/../h/b.jsonl", "h/a.jsonl"], [4, 3]),
    ],
)
def test_a_file_is_of_the_input_that_found_it(
    by_input: Callable[..., tuple[Any, TokenStore]],
    tmp_path: Path,
    files: dict[str, int],
    inputs: list[str],
    counts: list[int],
) -> None:
    """Also where the text is gone since, and in a store that does not say what found it."""
    run, store = by_input(files, inputs)

    def found() -> list[int]:
        of = stored_text(run).sources_of(range(store.n_documents))
        return [of.count(number) for number in range(len(inputs))]

    assert found() == counts
    stated = store.sidecar.pop("found_by")
    assert found() == counts
    store.sidecar["found_by"] = stated
    for name in files:
        (tmp_path / name).unlink()
    assert found() == counts
    store.sidecar.pop("found_by")
    assert not stored_text(run).sources  # nobody knows any more


def test_inputs_that_are_written_otherwise_find_the_same_files(
    by_input: Callable[..., tuple[Any, TokenStore]],
) -> None:
    run, store = by_input({"h/a.jsonl": 3, "g/a.jsonl": 4}, ["h", "g"])
    run.evaluation.held_out = SourceSpec(inputs=["g/*.jsonl", "h/*.jsonl"])
    text = stored_text(run)
    assert text.sources == ("g/*.jsonl", "h/*.jsonl")
    assert text.sources_of(range(store.n_documents)) == [1] * 3 + [0] * 4


def test_a_haystack_is_the_text_that_was_tokenised(folder: Path) -> None:
    from transformers import AutoTokenizer

    text = ReadText([str(folder / "books")], encoder(folder), [200], 4)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    made = haystack_texts(text, tokenizer, 300)
    assert len(made) == 2  # 200 tokens each
    assert (folder / "books" / "0.txt").read_text().startswith(made[0])


def test_the_haystack_of_a_length_is_the_same_whatever_else_is_read(
    folder: Path,
) -> None:
    """Short documents are in it, and those that are cut are as for longer ones."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    inputs = [str(folder / "brief"), str(folder / "books")]
    made = [
        haystack_texts(ReadText(inputs, encoder(folder), lengths, n), tokenizer, 300)
        for lengths, n in (([300], 9), ([64, 300], 1), ([300, 900], 2), ([900], 1))
    ]
    assert all(texts == made[0] for texts in made) and made[0]


def test_what_cannot_be_read_is_counted_with_examples(
    folder: Path, tmp_path: Path
) -> None:
    """Broken lines, lines without text, copies: what `tokenize` says of them too."""
    book = (folder / "books" / "0.txt").read_text()
    good = json.dumps({"text": book})
    lines = [good, '{"text": "half', json.dumps({"body": "x"}), '{"text": ""}', good]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    text = ReadText([str(tmp_path / "a.jsonl")], encoder(folder), [64], 9)
    counts = text.counts
    assert (counts.invalid_json, counts.missing_text, counts.empty) == (1, 1, 1)
    assert counts.left_out == 3 and len(counts.examples) == 3
    assert "a.jsonl" in counts.examples[0]
    assert len(text.lengths) == 1 and text.copies == 1
    model: Any = SimpleNamespace(name="m", context=64)
    asked: Any = SimpleNamespace(contexts=(64,), evaluators=("positions",))
    on: Any = SimpleNamespace(text=text, length=64)
    said = "\n".join(_notes([model], asked, (64,), lambda name: on))
    assert "3 documents of" in said and "1 invalid_json" in said
    assert all(example in said for example in counts.examples)
    assert "1 documents are equal to another" in said
