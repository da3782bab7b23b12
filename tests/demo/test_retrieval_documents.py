"""The demo's documents in which a code is told once and needed later."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.demo import retrieval
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import make_sample
from tests.paths import ROOT

CODE = re.compile(r"The code of (\S+) is (\d+)")


def texts_of(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text().splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return retrieval.write_retrieval_documents(tmp_path_factory.mktemp("text"))


def test_each_document_tells_one_code_and_needs_it_later(
    files: dict[str, Path],
) -> None:
    for source in (*retrieval.TRAINED, retrieval.HELD_OUT):
        most = 0
        for text in texts_of(files[source.name]):
            found = CODE.findall(text)
            assert len(set(found)) == 1 and len(found) >= 2
            assert len(found[0][1]) == retrieval.DIGITS
            most = max(most, len(found) - 1)
        assert most == max(source.again)


def test_held_out_documents_tell_other_codes(files: dict[str, Path]) -> None:
    def told(*names: str) -> set[tuple[str, str]]:
        return {
            CODE.findall(text)[0] for name in names for text in texts_of(files[name])
        }

    trained = told(*(source.name for source in retrieval.TRAINED))
    held_out = told(retrieval.HELD_OUT.name)
    assert len(held_out) > 15 and not held_out & trained


def test_documents_have_the_tokens_that_they_are_made_for(
    files: dict[str, Path], tmp_path: Path
) -> None:
    """Counted by a tokenizer as the demo trains it: a document fits its context, and a
    held-out one is longer than the longest.
    """
    from transformers import AutoTokenizer

    training = [files[source.name] for source in retrieval.TRAINED]
    train_tokenizer(training, tmp_path / "tokenizer", 690)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    run = load_run(ROOT / "configs/tiny.yaml")
    contexts = [stage.context for stage in run.stages.values()]
    for source, context in zip(retrieval.TRAINED, contexts, strict=True):
        some = texts_of(files[source.name])[:200]
        longest = max(len(ids) for ids in tokenizer(some).input_ids)
        assert context / 2 < longest + 2 <= context  # with BOS and EOS
        assert longest > max(source.longest * 0.85, source.shortest)
    held_out = tokenizer(texts_of(files[retrieval.HELD_OUT.name])).input_ids
    assert min(map(len, held_out)) >= contexts[-1]


def test_the_demo_asks_for_codes_as_it_tells_them() -> None:
    run = load_run(ROOT / "configs/tiny.yaml")
    assert run.evaluation.retrieval.digits == retrieval.DIGITS


def test_questions_are_those_of_the_passkey_task(files: dict[str, Path]) -> None:
    """The sentences that a model is trained on are, but for key and code, those that it
    is asked.
    """

    def encode(text: str) -> list[int]:
        return [ord(letter) for letter in text]

    sample = make_sample("passkey", 600, encode, seed=1, digits=retrieval.DIGITS)
    asked = "".join(map(chr, sample.tokens)).splitlines()
    trained = texts_of(files["retrieval_1024"])
    one = next(text for text in trained if "What is" in text and "Bread" in text)
    [(key, code)] = set(CODE.findall(one))
    [(other_key, other_code)] = set(CODE.findall("\n".join(asked)))
    known = {line.replace(key, "KEY").replace(code, "CODE") for line in one.split("\n")}
    own = [line.replace(other_key, "KEY").replace(other_code, "CODE") for line in asked]
    missing = [line for line in own if line not in known]
    assert len(missing) <= 1  # the line of noise that is cut off


def test_equal_seeds_give_equal_files(files: dict[str, Path], tmp_path: Path) -> None:
    again = retrieval.write_retrieval_documents(tmp_path)
    for name, file in files.items():
        assert again[name].read_bytes() == file.read_bytes()


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        retrieval.write_retrieval_documents(tmp_path / "file" / "text")
