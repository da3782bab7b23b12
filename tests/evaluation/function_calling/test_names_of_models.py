"""Models of one name beside one another: names, and folders of answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling.ledger import NAME
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia, save_small


def test_each_has_a_folder_of_its_own_in_any_order(tmp_path: Path) -> None:
    """As many folders above as tell them apart; none shares another one's folder."""
    suite = write_suite(tmp_path / "data")
    given = [tmp_path / name for name in ("x/m", "y/m", "x_m")]
    for directory in given:
        save_small(directory)
    out = tmp_path / "out"
    words = ["--data", suite, "--output", out, "--limit", 1]
    words += ["--categories", "multiple", "--max-new-tokens", 2]
    found = json.loads(alia("evaluate-calls", *given, *words, "--json"))
    names = list(found["models"])
    assert names[:2] == ["x/m", "y/m"]
    folders = [Path(model["answers"]) for model in found["models"].values()]
    assert len(set(folders)) == 3
    kept = {folder: (folder / NAME).read_bytes() for folder in folders[:2]}
    other = json.loads(alia("evaluate-calls", given[1], given[0], *words, "--json"))
    assert list(other["models"]) == ["y/m", "x/m"]
    assert kept == {folder: (folder / NAME).read_bytes() for folder in folders[:2]}
    with pytest.raises(AliaError, match="is named twice"):
        alia("evaluate-calls", given[0], tmp_path / "x/../x/m", *words)
