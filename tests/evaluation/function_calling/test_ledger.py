"""Answers on disk: going on, what was made otherwise, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import Answer, AnswerLedger
from alia_ctx.identity import IdentityError

MADE = {"model": {"weights": "1"}, "settings": {"temperature": 0.0}}
FIRST, SECOND = Answer("été \ud800", (("f", "{}"),), tokens=3), Answer("", cut=True)


def written(folder: Path) -> Path:
    ledger = AnswerLedger(folder, MADE)
    ledger.add([("a", FIRST), ("b", SECOND)])
    return ledger.path


def test_answers_are_there_again(tmp_path: Path) -> None:
    written(tmp_path / "m")
    ledger = AnswerLedger(tmp_path / "m", MADE)
    assert ledger.answers == {"a": FIRST, "b": SECOND}
    ledger.add([("c", FIRST)])
    assert set(AnswerLedger(tmp_path / "m", MADE).answers) == {"a", "b", "c"}


def test_a_cut_line_is_forgotten_wherever_it_is_cut(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for size in range(last + 1, len(whole), 7):
        path.write_bytes(whole[:size])
        ledger = AnswerLedger(tmp_path, MADE)
        assert set(ledger.answers) == {"a"}
        ledger.add([("b", SECOND)])
        assert path.read_bytes() == whole


def test_another_setting_is_named_and_nothing_lost(tmp_path: Path) -> None:
    path = written(tmp_path)
    with open(path, "ab") as stream:
        stream.write(b'{"id"')
    before = path.read_bytes()
    other = {**MADE, "settings": {"temperature": 0.2}}
    with pytest.raises(
        IdentityError, match=r"settings.temperature: 0.0 there, 0.2 now"
    ):
        AnswerLedger(tmp_path, other)
    assert path.read_bytes() == before


def test_damage(tmp_path: Path) -> None:
    path = written(tmp_path)
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for number, old, new in (
        (1, "made_from", "made"),
        (2, '"tokens": 3', '"tokens": 4'),
        (2, "{", ""),
        (3, '"cut": true', '"cut": false'),
    ):
        changed = list(lines)
        changed[number - 1] = changed[number - 1].replace(old, new, 1)
        path.write_text("".join(changed))
        with pytest.raises(AliaError, match=f"line {number}: is damaged") as error:
            AnswerLedger(tmp_path, MADE)
        assert ("remove that line" in str(error.value)) == (number > 1)
    del lines[1]
    path.write_text("".join(lines))
    whole_again = AnswerLedger(tmp_path, MADE)
    assert len(whole_again.answers) == len(lines) - 1
    path.write_text('{"made_from"')
    with pytest.raises(AliaError, match="first line is not whole"):
        AnswerLedger(tmp_path, MADE)
