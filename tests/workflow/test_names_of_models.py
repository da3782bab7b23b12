"""Each model has a name, and so a folder, of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.workflow.evaluated_models import EvaluatedModel, named_apart


def model(name: str) -> EvaluatedModel:
    return EvaluatedModel(name, Path(name), {}, 8, 8, None, None, None)


@pytest.mark.parametrize(
    ("names", "apart"),
    [
        (["a", "b"], ["a", "b"]),
        (["a", "a"], ["a", "a (2)"]),
        (["a", "a", "a (2)"], ["a", "a (3)", "a (2)"]),
        (["a (2)", "a", "a"], ["a (2)", "a", "a (3)"]),
        (["a", "a", "a (2)", "a (2)"], ["a", "a (3)", "a (2)", "a (2) (2)"]),
        (["a", "a (2)", "a", "a (3)", "a"], ["a", "a (2)", "a (4)", "a (3)", "a (5)"]),
        ([".imported"], ["imported"]),
        ([".imported", "imported"], ["imported", "imported (2)"]),
        (["..", "", "/"], ["model", "model (2)", "_"]),
    ],
)
def test_names_are_unique_over_all(names: list[str], apart: list[str]) -> None:
    made = named_apart([model(name) for name in names])
    assert [m.name for m in made] == apart
    assert [m.path for m in made] == [Path(name) for name in names]
