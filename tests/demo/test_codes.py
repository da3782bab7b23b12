"""Documents with codes: what is asked stands in them, before the question, once."""

from __future__ import annotations

import json
import re
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.tokens import TokenStore
from alia_ctx.demo import codes
from alia_ctx.demo.codes import CodeWriter, Part, as_tokens, build_codes
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import LANGUAGES

LINES = [f"Line number {n} says that there is nothing to see." for n in range(40)]
NEEDLE = re.compile(r"^The code of (\S+) is (\d{7})\.$", re.MULTILINE)
ASKED = re.compile(r"^The code of (\S+) is (\d{7})$", re.MULTILINE)


def encode(text: str) -> list[int]:
    """A token a character."""
    return [ord(letter) for letter in text]


def text_of(parts: list[Part]) -> str:
    return "".join(part.text for part in parts)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("length", "each"), [(600, 600), (3000, 400), (9000, 250)])
def test_what_is_asked_was_said_before(seed: int, length: int, each: int) -> None:
    writer = CodeWriter(encode, seed, training=True)
    parts = list(writer.document(cycle(LINES), length, each))
    text = text_of(parts)
    said = {m[1]: (m[2], m.start()) for m in NEEDLE.finditer(text)}
    asked = {m[1]: (m[2], m.start()) for m in ASKED.finditer(text)}
    assert len(said) == len(asked) == length // each and len(text) <= length
    for key, (value, place) in asked.items():
        assert said[key][0] == value and said[key][1] < place
    # what can be known is the leads and the answers, and nothing else
    known = "".join(part.text for part in parts if part.is_known)
    assert known == "".join(f"The code of {k} is {v}" for k, (v, _) in asked.items())


@pytest.mark.parametrize("kind", ["twice", "drill"])
def test_said_twice(kind: str) -> None:
    writer = CodeWriter(encode, 3, training=True)
    for _ in range(20):
        parts = (
            writer.twice(cycle(LINES), 800) if kind == "twice" else writer.drill(800)
        )
        half = len(parts) // 2
        first, second = parts[:half], parts[half:]
        assert sorted(p.text for p in first) == sorted(p.text for p in second)
        assert all(p.is_known for p in second) and not any(p.is_known for p in first)
        assert len(text_of(parts)) <= 800
        if kind == "drill":
            assert len({len(p.text) for p in parts}) == 1 and half >= 8


def test_names_of_training_are_none_of_evaluation() -> None:
    adjectives, nouns = set(LANGUAGES["en"].adjectives), set(LANGUAGES["en"].nouns)
    for training, first in ((True, nouns), (False, adjectives)):
        writer = CodeWriter(encode, 1, training=training)
        text = text_of(list(writer.document(cycle(LINES), 20_000, 300)))
        keys = [m[1].split("-") for m in NEEDLE.finditer(text)]
        assert len(keys) > 50
        assert all(a in first and b in nouns and a != b for a, b in keys)
    assert not adjectives & nouns


def test_weights_are_those_of_the_targets() -> None:
    parts = [Part("ab"), Part("cd", True), Part("e")]
    tokens, weights = as_tokens(parts, encode, begin=1, end=2)
    assert tokens.tolist() == [1, *encode("abcde"), 2]
    assert weights.tolist() == [0, 0, 0, 1, 1, 0, 0]


def test_no_room() -> None:
    with pytest.raises(DataError, match="tokens more with this tokenizer"):
        CodeWriter(encode, 0, training=True).document(cycle(LINES), 150, 150)


@pytest.mark.long
def test_the_demos_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"codes128": (500, 4000), "codes1k": (1024, 6000), "codes5k": (5120, 6000)}
    monkeypatch.setattr(codes, "STORES", sizes)
    monkeypatch.setattr(codes, "_CODES_EACH", 300)  # so few words are cut in letters
    text = tmp_path / "text"
    text.mkdir()
    records = [json.dumps({"text": "\n".join(LINES)})] * 3
    for name in ("docs", "heldout"):
        (text / f"{name}.jsonl").write_text("\n".join(records) + "\n")
    train_tokenizer([text / "docs.jsonl"], tmp_path / "tokenizer", 380, numbers=3000)
    build_codes(text, tmp_path / "tokenizer", tmp_path / "codes")
    for name, (length, tokens) in sizes.items():
        store = TokenStore(tmp_path / "codes" / name)
        assert store.lengths.max() <= length and store.n_tokens >= tokens
        weights = np.asarray(store.weights)
        assert 0.02 < weights.mean() < 0.6
    held_out = (text / codes.HELD_OUT_FILE).read_text().splitlines()
    assert len(held_out) == 3
    for line in held_out:
        found = json.loads(line)["text"]
        assert len(NEEDLE.findall(found)) == len(ASKED.findall(found)) > 10


def test_numbers_are_cut_in_pairs(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"text": "some words of text " * 50}) + "\n")
    train_tokenizer([file], tmp_path / "pairs", 480, numbers=5000)
    reader = Tokenizer.from_file(str(tmp_path / "pairs/tokenizer.json"))
    known = reader.get_vocab()
    assert sum(f"{n:02d}" in known for n in range(100)) > 80
    assert len(reader.encode("is 1234567").tokens) <= 7
