"""Reading BFCL's files: versions, choices, and folders that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alia_ctx.errors import AliaError
from alia_ctx.evaluation.function_calling import CATEGORIES, read_cases
from tests.evaluation.function_calling.small_suite import write_lines, write_suite


@pytest.mark.parametrize("version", ["v3", "v4"])
def test_versions(version: str, tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "bfcl_eval" / "data", version)
    for given in (tmp_path, tmp_path / "bfcl_eval", folder):
        data = read_cases(given)
        assert data.directory == folder
        assert data.version == version
        assert data.sizes == dict.fromkeys(CATEGORIES, 2)
    languages = {case.category: case.language for case in data.cases}
    assert languages.pop("simple_java") == "java"
    assert languages.pop("simple_javascript") == "javascript"
    assert set(languages.values()) == {"python"}
    calls = {case.category: case.wants_call for case in data.cases}
    assert [c for c, wants in calls.items() if not wants] == [
        "irrelevance",
        "live_irrelevance",
    ]


def test_some_categories_and_few_cases(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "d", each=5)
    whole = read_cases(folder)
    data = read_cases(folder, ["parallel", "simple_java"], limit=3)
    assert [case.id for case in data.cases] == [
        *(f"simple_java_{i}" for i in range(3)),
        *(f"parallel_{i}" for i in range(3)),
    ]
    assert data.sizes == {"simple_java": 5, "parallel": 5}
    assert data.statement == whole.statement  # what was asked is one suite's


def test_the_statement_is_of_the_bytes(tmp_path: Path) -> None:
    one, two = (write_suite(tmp_path / name) for name in ("one", "two"))
    assert read_cases(one).statement == read_cases(two).statement
    file = two / "possible_answer" / "BFCL_v4_multiple.json"
    file.write_text(file.read_text().replace("[0]", "[9]"))
    assert read_cases(one).statement != read_cases(two).statement


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(AliaError, match=r"has no BFCL_v\*_\*.json; `pip download"):
        read_cases(tmp_path)
    with pytest.raises(AliaError, match="has no BFCL"):
        read_cases(tmp_path / "absent")
    folder = write_suite(tmp_path / "d")
    with pytest.raises(AliaError, match="no_such: is no single-turn category; there"):
        read_cases(folder, ["no_such"])
    (folder / "BFCL_v4_multiple.json").unlink()
    with pytest.raises(AliaError, match="has no files of multiple"):
        read_cases(folder)
    with pytest.raises(AliaError, match="multiple: is not among the files"):
        read_cases(folder, ["multiple"])
    assert read_cases(folder, ["parallel"]).sizes == {"parallel": 2}
    write_lines(folder / "BFCL_v3_multiple.json", [])
    with pytest.raises(AliaError, match="has data of v3, v4"):
        read_cases(folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"question"', '"questions"', "line 1: is no BFCL case"),
        ('"role"', '"rule"', "line 1: is no BFCL case"),
        ("{", "[", "line 1: no JSON"),
        ('"integer"', '"rational"', "n is of type rational"),
        ('"integer"', '["integer", "null"]', r"n has not one type .*\['integer"),
        ('{"type": "integer", ', '{"anyOf": [], ', "n has not one type .* None"),
        ('"type": "integer"', '"type": "array", "items": {}', "items of n has not"),
        ('"parameters"', '"params"', "line 1: is no BFCL case"),
        ("multiple_1", "multiple_0", "its ids are not those"),
        ('"id": "multiple_0"', '"id": 7', "its ids are not those"),
        ('"name"', '"title"', "line 1: is no BFCL case"),
        ('"name": "get.value"', '"name": 7', "line 1: is no BFCL case"),
        ('"required": ["n"]', '"required": 7', "line 1: .*required is no list"),
        ('"required": ["n"]', '"required": null', "line 1: .*required is no list"),
        ('"integer"', '"dict", "properties": [1]', "line 1: is no BFCL case"),
        ('"integer"', '"array", "items": {"type": "array", "items": {}}', "line 1: is"),
        ('"integer"', '"dict", "properties": {"a": 1}', "line 1: is no BFCL case"),
        ("multiple 0?", "\\ud800", "line 1: .*surrogates"),
        ("A value.", "\\udfff", "line 1: .*surrogates"),
    ],
)
def test_damaged_files(old: str, new: str, message: str, tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "d")
    file = folder / "BFCL_v4_multiple.json"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(AliaError, match=message) as error:
        read_cases(folder)
    assert "BFCL_v4_multiple.json" in str(error.value)


@pytest.mark.parametrize(
    "truth",
    [
        [{"get.values": {"n": [0]}}],
        None,
        [],
        [{}],
        [{"f": {"n": 1}}],
        [{"f": {}, "g": {}}],
        ["f"],
        [1],
    ],
)
def test_answers_that_are_none(truth: object, tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "d", each=1)
    file = folder / "possible_answer" / "BFCL_v4_multiple.json"
    file.write_text(json.dumps({"id": "multiple_0", "ground_truth": truth}))
    with pytest.raises(AliaError, match="line 1: is no BFCL case"):
        read_cases(folder)


def test_a_mark_of_the_byte_order_is_no_damage(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "d", each=1)
    whole = read_cases(folder)
    for file in folder.rglob("*.json"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_cases(folder).cases == whole.cases


def test_the_same_case_twice(tmp_path: Path) -> None:
    folder = write_suite(tmp_path / "d", each=1)
    for file in (folder, folder / "possible_answer"):
        path = file / "BFCL_v4_multiple.json"
        path.write_text(path.read_text() * 2)
    with pytest.raises(AliaError, match="the id multiple_0 is there twice"):
        read_cases(folder)


def test_the_same_id_in_two_categories(tmp_path: Path) -> None:
    """Answers are kept by ids: one would be asked, and the other scored by its answer."""
    folder = write_suite(tmp_path / "d")
    rows = (folder / "BFCL_v4_irrelevance.json").read_text()
    (folder / "BFCL_v4_live_relevance.json").write_text(rows)
    match = r"BFCL_v4_irrelevance.json, line 1: the id irrelevance_0 is there twice"
    with pytest.raises(AliaError, match=match):
        read_cases(folder)
    assert read_cases(folder, ["irrelevance"]).sizes == {"irrelevance": 2}


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_cases(content: str, tmp_path: Path) -> None:
    """Nothing would be asked, and its row stand there as not measured."""
    folder = write_suite(tmp_path / "d")
    for name in ("BFCL_v4_live_relevance.json", "BFCL_v4_parallel.json"):
        (folder / name).write_text(content)
        if (answers := folder / "possible_answer" / name).exists():
            answers.write_text(content)
        category = name.removeprefix("BFCL_v4_").removesuffix(".json")
        with pytest.raises(AliaError, match=f"{name}: holds no cases; `pip"):
            read_cases(folder, [category])


def test_without_data_its_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(AliaError, match=r"--data: is needed.*`make venv-bfcl`, and"):
        read_cases(None)
