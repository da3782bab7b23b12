"""Statements of what an artefact was made from: sealed, compared, and told apart in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alia_ctx.errors import AliaError
from alia_ctx.identity import (
    IdentityError,
    differences,
    require_same,
    sealed,
    statement,
    statement_checksum,
    unsealed,
)
from alia_ctx.spec.rope import RopeSpec

# Without 1.0 and True, which Python takes for 1.
leaves = st.none() | st.integers() | st.text() | st.sampled_from([0.5, -1e-7, 1e300])
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
statements = st.dictionaries(st.text(max_size=4), values, max_size=4)


@given(statements, values)
def test_what_is_sealed_survives_a_file(made_from: Any, content: Any) -> None:
    document = json.loads(json.dumps(sealed(made_from, content)))
    assert unsealed(document, "it", "make it") == (made_from, content)


@given(statements, statements)
def test_equal_statements_and_only_those_do_not_differ(a: Any, b: Any) -> None:
    assert differences(a, a) == []
    assert bool(differences(a, b)) == (_typed(a) != _typed(b))
    assert (statement_checksum(a) == statement_checksum(b)) == (_typed(a) == _typed(b))


def _typed(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def test_what_is_missing_is_not_the_word_for_it() -> None:
    assert differences({"a": "nothing"}, {}) == ["a: nothing there, nothing now"]
    assert differences({"a": 8}, {"a": 8.0}) == []
    assert differences({"a": 1}, {"a": True}) == ["a: 1 there, true now"]


def test_the_order_of_names_does_not_matter_and_that_of_lists_does() -> None:
    assert statement_checksum({"a": 1, "b": 2}) == statement_checksum({"b": 2, "a": 1})
    assert differences({"a": [1, 2]}, {"a": [2, 1]}) == ["a: [1, 2] there, [2, 1] now"]


def test_differences_are_named_by_their_dotted_path() -> None:
    then = {"optimizer": {"beta1": 0.9, "beta2": 0.95}, "seed": 1, "old": {"x": 1}}
    now = {"optimizer": {"beta1": 0.9, "beta2": 0.99}, "seed": 2, "new": None}
    assert differences(then, now) == [
        "optimizer.beta2: 0.95 there, 0.99 now",
        "seed: 1 there, 2 now",
        'old: {"x": 1} there, nothing now',
        "new: nothing there, null now",
    ]


def test_dataclasses_tuples_and_paths_are_as_they_would_be_read() -> None:
    assert statement({"rope": RopeSpec("default", 10000.0), "at": Path("a"), "t": (1, 2)}) == {
        "rope": {**vars(RopeSpec("default", 10000.0))}, "at": "a", "t": [1, 2],
    }  # fmt: skip
    with pytest.raises(TypeError):
        statement({"set": {1}})
    with pytest.raises(ValueError):
        statement({"rate": math.nan})


@pytest.mark.parametrize(
    "document",
    [None, 3, [], {}, {"edges": [0, 64]}, {"made_from": {}}, {"content": {}}],
)
def test_what_says_nothing_of_itself_is_refused_with_the_way_out(document: Any) -> None:
    with pytest.raises(
        IdentityError, match=r"(?s)x.json:.*does not say.*\nrun `make x`"
    ):
        unsealed(document, "x.json", "run `make x`")


@pytest.mark.parametrize("place", ["made_from", "content", "checksum"])
def test_what_was_changed_since_is_refused(place: str) -> None:
    document = sealed({"seed": 1}, {"loss": 2.0})
    document[place] = {"seed": 2} if place != "checksum" else "0" * 32
    with pytest.raises(IdentityError, match="checksum differs"):
        unsealed(document, "x.json", "run `make x`")


def test_one_error_names_what_differs_and_what_to_do() -> None:
    require_same({"a": 1}, {"a": 1}, "the export x", "run `make x`")
    with pytest.raises(AliaError) as caught:
        require_same({"a": 1, "b": 1}, {"a": 2, "b": 3}, "the export x", "run `make x`")
    assert str(caught.value).splitlines() == [
        "the export x was made from something else:",
        "  a: 1 there, 2 now",
        "  b: 1 there, 3 now",
        "run `make x`",
    ]
