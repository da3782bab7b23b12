"""Verdicts on values that we chose, by the benchmark's rules as its documents tell them.

`test_agreement.py` puts the same table to the original.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from alia_ctx.evaluation.function_calling import check_calls
from alia_ctx.evaluation.function_calling.checker import Language

# (language, type, type of items, accepted values, right values, wrong values)
Rule = tuple[Language, str, str | None, list[Any], list[Any], list[Any]]
RULES: list[Rule] = [
    # Numbers: an int is a float, a float is no int, a truth is neither.
    ("python", "integer", None, [7], [7], [8, 7.0, "7", True, None, [7], {}, -7]),
    ("python", "integer", None, [1], [1], [True, 1.0, "1", 0]),
    ("python", "float", None, [7.5, 7], [7.5, 7, 7.0], ["7.5", 8, None, True, [7.5]]),
    ("python", "float", None, [1.0], [1, 1.0], [True, 1.0000001, "1.0"]),
    ("python", "boolean", None, [True], [True], [False, 1, "true", "True", None, 1.0]),
    ("python", "boolean", None, [False], [False], [True, 0, "", None]),
    # Texts: case, blanks and some punctuation do not count, other letters do.
    (
        "python",
        "string",
        None,
        ["New York, NY"],
        ["New York, NY", "new york ny", "NEWYORKNY", "New-York, N.Y.", "n^e*w york/ny"],
        ["New York", "New York, NY!", "New York; NY", "New\nYork, NY", "New\tYork NY"],
    ),
    ("python", "string", None, ["it's"], ["it's", 'it"s', "IT'S"], ["its", "it`s"]),
    ("python", "string", None, ["a", "b"], ["a", "B", " b "], ["ab", "c", ["a"], 1]),
    ("python", "string", None, ["", "a"], ["a", "", " ", "-"], ["b", None]),
    ("python", "string", None, ["é"], ["é", "É"], ["e", "e\u0301"]),
    # Lists: in order, texts normalised, elements of one type.
    (
        "python",
        "array",
        "integer",
        [[1, 2], [3]],
        [[1, 2], [3]],
        [[2, 1], [1], [1, 2, 3], ["1", 2], [1.0, 2], [], 1, "1, 2", None],
    ),
    (
        "python",
        "array",
        "string",
        [["Ana", "B. C"]],
        [["Ana", "B. C"], ["ana", "bc"], ["A-na", "B C"]],
        [["B. C", "Ana"], ["Ana"], ["Ana", 1], ["Ana", None], "Ana, B. C"],
    ),
    ("python", "array", "string", [["a"], ""], [["a"], []], [["b"], "a"]),
    ("python", "array", "float", [[1.5, 2.5]], [[1.5, 2.5]], [[1.5], [2.5, 1.5]]),
    # A whole number stays one inside a list, where nothing makes a float of it; where the
    # accepted ones are whole too, it has their type.
    ("python", "array", "float", [[1.0, 2.0]], [[1.0, 2.0]], [[1, 2], [1, 2.0]]),
    ("python", "array", "float", [[1, 2]], [[1, 2], [1.0, 2.0]], [["1", "2"]]),
    (
        "python",
        "array",
        "array",
        [[[1, 2], [3]]],
        [[[1, 2], [3]]],
        [[[1, 2]], [1, 2, 3]],
    ),
    ("python", "array", "array", [[["a b"]]], [[["a b"]]], [[["AB"]]]),
    ("python", "array", "boolean", [[True]], [[True]], [[1], [False], ["true"]]),
    (
        "python",
        "tuple",
        "float",
        [[1.5, 2.5]],
        [[1.5, 2.5]],
        [[2.5, 1.5], "(1.5, 2.5)"],
    ),
    # Objects: each key has its accepted values; "" lets it be left out.
    (
        "python",
        "dict",
        None,
        [{"city": ["Rome"], "days": [2, 3], "note": ["x", ""]}],
        [
            {"city": "Rome", "days": 2},
            {"days": 3, "city": "r-o-m-e", "note": "X"},
            {"city": "ROME", "days": 2.0},
        ],
        [
            {"city": "Rome"},
            {"city": "Rome", "days": 4},
            {"city": "Rome", "days": "2"},
            {"city": "Rome", "days": 2, "more": 1},
            {"City": "Rome", "days": 2},
            {"city": ["Rome"], "days": 2},
            {},
            [],
            "city: Rome",
        ],
    ),
    (
        "python",
        "dict",
        None,
        [{"a": [[1, 2]]}],
        [{"a": [1, 2]}],
        [{"a": [2, 1]}, {"a": 1}],
    ),
    # Lists inside of objects are compared as they are written.
    ("python", "dict", None, [{"a": [["X y"]]}], [{"a": ["X y"]}], [{"a": ["xy"]}]),
    ("python", "dict", None, ["", {"a": [1]}], [{"a": 1}], [{}, {"a": 2}]),
    (
        "python",
        "array",
        "dict",
        [[{"a": [1]}, {"a": [2], "b": ["x", ""]}]],
        [[{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2, "b": "X"}]],
        [[{"a": 2}, {"a": 1}], [{"a": 1}], [], [{"a": 1}, {"a": 2}, {"a": 3}], [1, 2]],
    ),
    # `any` is a text; another type only where the accepted ones have it.
    ("python", "any", None, ["x"], ["x", "X"], [1, None]),
    ("python", "any", None, [5], [5], ["5", 6]),
    # The name of a variable in place of a value is compared to the letter.
    ("python", "integer", None, ["count"], ["count"], ["Count", "c", 3]),
    ("python", "array", "integer", ["items"], ["items"], ["Items", [1], []]),
    ("python", "dict", None, ["config"], ["config"], ["CONFIG", {}, {"a": 1}]),
    ("python", "string", None, [None, "a"], [None], ["b", 1]),
    # Java: a text that holds source.
    ("java", "integer", None, [50], ["50"], [50, "50L", "50.0", "fifty", "", None]),
    ("java", "long", None, [50], ["50L", "50l"], ["50", 50, "50.0L"]),
    ("java", "float", None, [1.5], ["1.5f", "1.5F", "15e-1f"], ["1.5", 1.5, "1.5d"]),
    ("java", "double", None, [2.0], ["2.0", "2", "2e0"], ["2.0f", 2.0, "two"]),
    ("java", "boolean", None, [True], ["true"], ["True", "false", True, "1"]),
    ("java", "String", None, ["a b"], ["a b", "AB"], ['"a b"', 1, ["a b"]]),
    ("java", "any", None, ["obj"], ["obj", "OBJ"], ["other", 1]),
    (
        "java",
        "ArrayList",
        "String",
        [["a", "b"]],
        [
            'new ArrayList<>(Arrays.asList("a", "b"))',
            'new ArrayList<String>(Arrays.asList("A","B"))',
            'new ArrayList<String>() {{ add("a"); add("b"); }}',
        ],
        [
            ["a", "b"],
            'Arrays.asList("a", "b")',
            'List.of("a", "b")',
            'new ArrayList<>(Arrays.asList("b", "a"))',
            "new ArrayList<>()",
        ],
    ),
    ("java", "ArrayList", "integer", [[]], [], ["[]", "null"]),
    (
        "java",
        "Array",
        "integer",
        [[1, 2]],
        ["new int[]{1, 2}", "new Integer[] {1,2}"],
        ["{1, 2}", "new int[]{2, 1}", "[1, 2]", [1, 2], "new int[2]"],
    ),
    (
        "java",
        "HashMap",
        None,
        [{"limit": [50], "on": [True]}],
        [
            'new HashMap<String, Object>() {{ put("limit", 50); put("on", true); }}',
            'new HashMap<>() {{put("on", true);put("limit", 50);}}',
        ],
        [
            'new HashMap<String, Object>() {{ put("limit", "50"); put("on", true); }}',
            'new HashMap<String, Object>() {{ put("limit", 50); }}',
            "new HashMap<>()",
            'Map.of("limit", 50, "on", true)',
            {"limit": 50, "on": True},
        ],
    ),
    # JavaScript, the same.
    ("javascript", "String", None, ["a b"], ["a b", '"a b"', "'A-B'"], ["a c", 1]),
    ("javascript", "integer", None, [3], ["3"], [3, "3n", "3.0", "three"]),
    ("javascript", "Bigint", None, [3], ["3n"], ["3", 3]),
    ("javascript", "float", None, [3.5, 3.0], ["3.5", "3"], ["3.5f", 3.5, "35e-1"]),
    ("javascript", "Boolean", None, [False], ["false"], ["False", False, "0"]),
    (
        "javascript",
        "array",
        "String",
        [["x", "y"]],
        ["['x', 'y']", '["X","y"]', "new Array('x', 'y')", "[x, y]"],
        ["['y', 'x']", "x, y", ["x", "y"], "[]"],
    ),
    (
        "javascript",
        "array",
        "float",
        [[1.5, 2.0]],
        ["[1.5, 2]"],
        ["[1.5]", "[1.5, 'a']"],
    ),
    (
        "javascript",
        "dict",
        None,
        [{"a": [1], "b": ["x"]}],
        ["{a: 1, b: 'x'}", '{"b": "X", "a": 1}'],
        ["{a: 1}", "{a: 2, b: 'x'}", "{}", {"a": 1, "b": "x"}],
    ),
]


def verdicts() -> Iterator[tuple[dict[str, Any], bool]]:
    """(a question as the original takes it, whether the answer is right)."""
    for language, kind, items, accepted, right, wrong in RULES:
        schema: dict[str, Any] = {"type": kind, "description": ""}
        if items is not None:
            schema["items"] = {"type": items}
        parameters = {"type": "dict", "properties": {"p": schema}, "required": ["p"]}
        function = {"name": "f", "description": "", "parameters": parameters}
        for value, truth in [(v, True) for v in right] + [(v, False) for v in wrong]:
            yield (
                {
                    "functions": [function],
                    "calls": [["f", {"p": value}]],
                    "accepted": [{"f": {"p": accepted}}],
                    "language": language,
                    "category": "simple",
                    "rename": False,
                },
                truth,
            )


def ours(question: dict[str, Any]) -> bool:
    return check_calls(
        question["functions"],
        [(name, arguments) for name, arguments in question["calls"]],
        question["accepted"],
        question["language"],
    ).right


def test_values() -> None:
    table = list(verdicts())
    assert len(table) > 200
    differing = [
        (question["calls"], question["accepted"], truth)
        for question, truth in table
        if ours(question) != truth
    ]
    assert not differing


def function(name: str, required: tuple[str, ...] = (), **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "dict", "properties": properties, "required": list(required)}
    return {"name": name, "description": "", "parameters": parameters}


PLAY = function("a.play", ("song",), song="string", times="integer")
STOP = function("stop", (), when="string")
ONE = [{"a.play": {"song": ["x"], "times": [2, ""]}}]
BOTH = [*ONE, {"a.play": {"song": ["y"], "times": [3]}}, {"stop": {"when": ["now"]}}]
X, Y = ("a.play", {"song": "x"}), ("a.play", {"song": "y", "times": 3})
NOW = ("stop", {"when": "now"})


@pytest.mark.parametrize(
    ("calls", "accepted", "reason"),
    [
        ([X], ONE, ""),
        ([("a.play", {"song": "x", "times": 2})], ONE, ""),
        ([("a.play", {"times": 2})], ONE, "missing_required"),
        ([("a.play", {"song": "x", "loud": True})], ONE, "unexpected"),
        ([("a.play", {"song": "x", "times": 4})], ONE, "wrong_value"),
        ([("a.play", {"song": 1})], ONE, "wrong_type"),
        ([("a_play", {"song": "x"})], ONE, "wrong_function"),
        ([("A.PLAY", {"song": "x"})], ONE, "wrong_function"),
        ([], ONE, "wrong_count"),
        ([X, X], ONE, "wrong_count"),
        ([("a.play", {"song": "y"})], [BOTH[1]], "missing_optional"),
        ([X, Y, NOW], BOTH, ""),
        ([NOW, Y, X], BOTH, ""),
        ([X, X, NOW], BOTH, "wrong_value"),
        ([X, NOW], BOTH, "wrong_count"),
    ],
)
def test_calls(calls: Any, accepted: Any, reason: str) -> None:
    verdict = check_calls([PLAY, STOP], calls, accepted, "python")
    assert (verdict.right, verdict.reason) == (not reason, reason), verdict


def test_each_accepted_call_takes_the_first_that_fits() -> None:
    """As the original does, even where another choice would have served all."""
    f = function("f", a="integer")
    accepted = [{"f": {"a": [1, 2]}}, {"f": {"a": [1]}}]
    one, two = ("f", {"a": 1}), ("f", {"a": 2})
    assert check_calls([f], [two, one], accepted, "python").right
    assert not check_calls([f], [one, two], accepted, "python").right


def test_names_as_the_model_saw_them() -> None:
    def rename(name: str) -> str:
        return name.replace(".", "_")

    seen = [("a_play", {"song": "x"})]
    assert check_calls([PLAY], seen, ONE, "python", rename=rename).right
    assert not check_calls([PLAY], [X], ONE, "python", rename=rename).right


@pytest.mark.parametrize("value", [[{}], {"a": {"b": 1}}, [None], {"a": [1]}, 10**400])
@pytest.mark.parametrize("kind", ["dict", "array", "float", "string"])
def test_odd_values_are_wrong_and_nothing_worse(value: Any, kind: str) -> None:
    schema = {"type": kind, "items": {"type": "dict"}}
    parameters = {"properties": {"p": schema}, "required": []}
    odd: list[Any] = [{"a": {"b": [2]}}, [{"a": [2]}], "", 7, None]
    for accepted in (odd, odd[::-1]):
        f = {"name": "f", "parameters": parameters}
        check_calls([f], [("f", {"p": value})], [{"f": {"p": accepted}}], "python")
