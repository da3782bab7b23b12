"""Held-out text that is missing or too short is said by `check`, and by `run` before it
trains.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from alia_ctx.config.evaluation import TASKS_IN_TEXT
from alia_ctx.config.held_out import held_out_notes
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.evaluation.retrieval import RULER
from tests.config.test_places import changed, problems_of, text_run
from tests.small_run import alia, write_run

SHORTEST, LONGEST = 64, 256  # the small run's contexts


def store_of(folder: Path, *lengths: int) -> str:
    documents = [np.full(length, 5) for length in lengths]
    write_store(folder / "short_text", documents, 200)
    return str(folder / "short_text")


@pytest.mark.parametrize(
    ("lengths", "right"), [((255, 10), False), ((255, 256), True), ((1,), False)]
)
def test_a_store_is_measured_in_tokens(
    tmp_path: Path, lengths: tuple[int, ...], right: bool
) -> None:
    path = write_run(tmp_path)
    changed(path, evaluation__held_out={"store": store_of(tmp_path, *lengths)})
    # Below the longest context it is a note, below the shortest one no stage can be measured.
    assert (problems_of(path, read_text=True) == []) is (max(lengths) >= SHORTEST)
    notes = held_out_notes(load_run(path))
    assert (notes == []) is right
    if not right:
        assert notes[0].key == "evaluation.held_out"
        assert f"{max(lengths)} tokens" in notes[0].rule


def held_out_text(tmp_path: Path, *characters: int) -> Path:
    path = text_run(tmp_path)
    lines = [f'{{"text": "{"a" * n}"}}\n' for n in characters]
    (tmp_path / "held" / "a.jsonl").write_text("".join(lines))
    return path


@pytest.mark.parametrize(
    ("characters", "right"),
    [((253,), False), ((10, 253, 20), False), ((10, 254), True), ((5000, 1), True)],
)
def test_text_that_is_no_store_yet_is_measured_in_bytes(
    tmp_path: Path, characters: tuple[int, ...], right: bool
) -> None:
    """With BOS and EOS 254 bytes may be 256 tokens, and 253 cannot."""
    path = held_out_text(tmp_path, *characters)
    assert (held_out_notes(load_run(path)) == []) is right
    assert problems_of(path) == []  # ranks that train do not read it


def test_bytes_count_and_not_characters(tmp_path: Path) -> None:
    path = held_out_text(tmp_path, 1)
    (tmp_path / "held" / "a.jsonl").write_text('{"text": "' + "ñ" * 127 + '"}\n')
    assert held_out_notes(load_run(path)) == []


def test_a_store_older_than_its_text_is_not_believed(tmp_path: Path) -> None:
    path = held_out_text(tmp_path, 5000)
    tokens = tmp_path / "run" / "out" / "tokens"
    tokens.mkdir(parents=True)
    write_store(tokens / "held_out", [np.full(10, 5)], 200)
    assert problems_of(path, read_text=True) != []
    (tmp_path / "held" / "a.jsonl").write_text(f'{{"text": "{"b" * 5000}"}}\n')
    assert problems_of(path, read_text=True) == []


def test_text_below_a_root_that_is_not_mounted_is_not_read(tmp_path: Path) -> None:
    path = held_out_text(tmp_path, 1)
    changed(
        path, root="/not/mounted", evaluation__held_out__inputs=["/not/mounted/held"]
    )
    assert load_run(path, read_text=True).evaluation.held_out is not None


def test_evaluation_in_training_needs_text(tmp_path: Path) -> None:
    path = changed(write_run(tmp_path), evaluation={"every_updates": 2})
    (problem,) = problems_of(path)
    assert problem.key == "evaluation.held_out"
    assert problems_of(path, "evaluation.every_updates=0") == []


@pytest.mark.parametrize(
    ("overrides", "needs"),
    [
        (["evaluation.during=[passkey, leak]"], False),
        (["evaluation.during=[retrieval]"], True),
        (["evaluation.during=[passkey, blocks]"], True),
        (
            [
                "evaluation.during=[retrieval]",
                "evaluation.retrieval.haystack=noise",
            ],
            False,
        ),
        (
            [
                "evaluation.during=[retrieval]",
                "evaluation.retrieval.tasks=[niah_single_1, vt, cwe]",
            ],
            False,
        ),
        (
            [
                "evaluation.during=[retrieval]",
                "evaluation.retrieval.tasks=[vt, niah_single_2]",
            ],
            True,
        ),
    ],
)
def test_only_what_reads_text_needs_it(
    tmp_path: Path, overrides: list[str], needs: bool
) -> None:
    path = changed(write_run(tmp_path), evaluation={"every_updates": 2})
    keys = [problem.key for problem in problems_of(path, *overrides)]
    assert keys == (["evaluation.held_out"] if needs else [])


def test_tasks_in_text_are_those_of_the_table() -> None:
    needles = {name: task for name, task in RULER.items() if task.form == "needles"}
    in_text = {name for name, task in needles.items() if task.haystack == "text"}
    assert set(TASKS_IN_TEXT) == in_text


def without_held_out(path: Path) -> Path:
    document = yaml.safe_load(path.read_text())
    del document["evaluation"]
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def test_run_refuses_before_it_does_anything(tmp_path: Path) -> None:
    path = without_held_out(write_run(tmp_path))
    checked = alia("check", str(path))
    assert checked.returncode == 0 and "evaluation.held_out" in checked.stdout
    done = alia("run", str(path))
    assert done.returncode == 2 and "evaluation.held_out" in done.stderr
    assert not (tmp_path / "out").exists()


def test_check_and_tokenize_say_that_text_is_too_short(tmp_path: Path) -> None:
    """Long enough in bytes, too short in tokens: known once it is tokenised."""
    path = held_out_text(tmp_path, 5000)
    for n in range(4):
        text = "".join(chr(97 + (i * 7 + n) % 26) for i in range(2000)) + "a" * 800
        with (tmp_path / "train" / "a.jsonl").open("a") as file:
            file.write(f'{{"text": "{text}"}}\n')
    files = [tmp_path / "train" / "a.jsonl"]
    changed(path, model__vocab_size=300, tokenizer=str(tmp_path / "bpe"))
    train_tokenizer(files, tmp_path / "bpe", 300)
    assert "note: evaluation.held_out" not in alia("check", str(path)).stdout
    for command in ("tokenize", "check"):
        done = alia(command, str(path))
        assert done.returncode == 0, done.stderr
        assert "note: evaluation.held_out" in done.stdout
        assert f"tokens, which is below the longest context, {LONGEST}" in done.stdout
