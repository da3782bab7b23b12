"""Source of Java and JavaScript that no model should write, and some do: endless rows,
blanks and digits. What ordinary source means is compared in `test_agreement.py`.
"""

from __future__ import annotations

from time import process_time

import pytest

from alia_ctx.evaluation.function_calling import check_calls
from alia_ctx.evaluation.function_calling.checker import Language
from alia_ctx.evaluation.function_calling.java_values import java_value
from alia_ctx.evaluation.function_calling.javascript_values import javascript_value

_DIGITS = "9" * 5_000  # Python converts 4,300


def test_rows_that_are_not_closed_take_no_time() -> None:
    """As a pattern with a choice at each `]`, 25 of them take seconds, and 40 a day."""
    begun = process_time()
    assert javascript_value("[" + "[1]," * 25, "array") == ["[1"]
    assert javascript_value("[" + "[1]," * 25 + "[2] x", "array") == ["[1"]
    assert javascript_value("new Array(" + "[1]," * 25, "array", "any") == (
        "new Array(" + "[1]," * 25
    )
    assert javascript_value("[" + "[1]," * 999 + "[2]]", "array")[-1] == [2]
    assert process_time() - begun < 1


def test_blanks_take_no_time() -> None:
    begun = process_time()
    blanks = " " * 3_000
    assert java_value("new HashMap<>() {" + blanks, "HashMap") == {}
    filled = f'new HashMap<>() {{{{ put("a", 1);{blanks}put("b", 2);{blanks}}}}}'
    assert java_value(filled, "HashMap") == {"a": 1, "b": 2}
    assert java_value("new ArrayList<>() {{" + blanks, "ArrayList", "integer") == []
    added = f"new ArrayList<>() {{{{{blanks}add(1);{blanks}}}}}"
    assert java_value(added, "ArrayList", "integer") == [1]
    assert process_time() - begun < 1


@pytest.mark.parametrize(
    ("language", "kind", "items", "source"),
    [
        ("java", "integer", None, _DIGITS),
        ("java", "long", None, f"{_DIGITS}L"),
        ("java", "Array", "integer", f"new int[] {{{_DIGITS}}}"),
        ("java", "ArrayList", "long", f"new ArrayList<>(Arrays.asList({_DIGITS}L))"),
        ("javascript", "integer", None, f"-{_DIGITS}"),
        ("javascript", "Bigint", None, f"{_DIGITS}n"),
        ("javascript", "array", "integer", f"[{_DIGITS}]"),
    ],
)
def test_numbers_beyond_python_are_wrong(
    language: Language, kind: str, items: str | None, source: str
) -> None:
    """The answer is kept: an error would come back whenever it is scored."""
    schema = {"type": kind} | ({"items": {"type": items}} if items else {})
    function = {"name": "f", "parameters": {"properties": {"n": schema}}}
    wanted = [{"f": {"n": [[1] if items else 1]}}]
    verdict = check_calls([function], [("f", {"n": source})], wanted, language)
    assert (verdict.right, verdict.reason) == (False, "wrong_type")


def test_digits_of_no_type() -> None:
    filled = f'new HashMap<>() {{{{ put("a", {_DIGITS}L); put("b", 2L); }}}}'
    assert java_value(filled, "HashMap") == {"a": f"{_DIGITS}L", "b": 2}
