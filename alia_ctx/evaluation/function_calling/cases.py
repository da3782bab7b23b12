"""BFCL's cases, from the files of the package `bfcl-eval` or of a folder.

A version's files are `BFCL_vN_CATEGORY.json` (JSON lines) and, beside them in
`possible_answer/`, the accepted calls under the same names. Version 4 says
`simple_python`, version 3 says `simple`, and its Java and JavaScript are called `java`
and `javascript`.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling.checker import TYPES, WITH_ITEMS, Language
from alia_ctx.evaluation.function_calling.tools import tools_of
from alia_ctx.files import file_checksum, parse_json

# Ours and version 4's names -> older versions' names of the same files.
CATEGORIES: dict[str, tuple[str, ...]] = {
    "simple_python": ("simple",),
    "simple_java": ("java",),
    "simple_javascript": ("javascript",),
    "multiple": (),
    "parallel": (),
    "parallel_multiple": (),
    "live_simple": (),
    "live_multiple": (),
    "live_parallel": (),
    "live_parallel_multiple": (),
    "live_relevance": (),
    "irrelevance": (),
    "live_irrelevance": (),
}
_FILE = re.compile(r"BFCL_(v\d+)_(\w+)\.json")
_FORM = "its form is in docs/function-calling-evaluation.md, or get the files anew"
_GET = "`pip download --no-deps bfcl-eval`, unpack it, and name its bfcl_eval/data"


@dataclass(frozen=True)
class Case:
    """A question to a model.

    Args:
        functions: as the benchmark documents them.
        accepted: for each call that is wanted {function: {parameter: [values]}}; None
            where it only counts whether there is a call.
    """

    id: str
    category: str
    messages: tuple[dict[str, Any], ...]
    functions: tuple[dict[str, Any], ...]
    accepted: tuple[dict[str, dict[str, list[Any]]], ...] | None

    @property
    def language(self) -> Language:
        return language_of(self.category)

    @property
    def wants_call(self) -> bool:
        return "irrelevance" not in self.category


@dataclass(frozen=True)
class CaseSet:
    """Cases in the order of their files, and what they were read from.

    Args:
        sizes: category -> how many cases its file has, whatever the limit.
        statement: version and checksums of all files of the ten categories, so that it
            does not depend on which of them are asked for.
    """

    directory: Path
    version: str
    cases: tuple[Case, ...]
    sizes: dict[str, int]
    statement: dict[str, Any]


def language_of(category: str) -> Language:
    """The language whose types a category's functions have."""
    name = category.removeprefix("simple_")
    return (
        "java" if name == "java" else "javascript" if name == "javascript" else "python"
    )


def read_cases(
    directory: Path | None = None,
    categories: Sequence[str] = (),
    limit: int | None = None,
) -> CaseSet:
    """The cases of `categories` (default: all), the first `limit` of each; of the
    installed `bfcl-eval` without a `directory`.

    ConfigError where there are no data or no such categories; DataError where a file is
    damaged, or asks for types that the rules do not know.
    """
    directory = _folder(directory)
    version, files = _files(directory)
    chosen = _chosen(categories, files, directory)
    cases: list[Case] = []
    sizes = {}
    seen: set[str] = set()  # by their ids answers are kept, of all categories together
    for category in chosen:
        read = _category(category, files[category], seen)
        sizes[category] = len(read)
        cases += read[:limit]
    answers = [_answers(file) for file in files.values()]
    checksums = {
        str(file.relative_to(directory)): file_checksum(file)
        for file in [*files.values(), *answers]
        if file.is_file()
    }
    statement = {"suite": "bfcl", "version": version, "files": checksums}
    return CaseSet(directory, version, tuple(cases), sizes, statement)


def _folder(directory: Path | None) -> Path:
    if directory is not None:
        # A wheel's or a checkout's folder will do as well.
        for inside in ("", "data", "bfcl_eval/data"):
            if any(
                _FILE.fullmatch(f.name) for f in (directory / inside).glob("*.json")
            ):
                return directory / inside
        problem = Problem("--data", directory, "has no BFCL_v*_*.json", f"{_GET}")
        raise ConfigError("", [problem])
    found = importlib.util.find_spec("bfcl_eval")  # nothing of it is imported
    if found is None or not found.submodule_search_locations:
        rule = "is needed, as bfcl-eval is not installed here"
        remedy = f"`make venv-bfcl`, and --bfcl-env .venv-bfcl; or {_GET} for --data"
        raise ConfigError("", [Problem("--data", None, rule, remedy)])
    return Path(next(iter(found.submodule_search_locations)), "data")


def _files(directory: Path) -> tuple[str, dict[str, Path]]:
    """(version, category -> its file), of the one version that the folder has."""
    named = [(m, f) for f in directory.glob("*.json") if (m := _FILE.fullmatch(f.name))]
    versions = sorted({match[1] for match, _ in named})
    if len(versions) != 1:
        rule = f"has data of {', '.join(versions) or 'no version'}"
        remedy = "name a folder of one version"
        raise ConfigError("", [Problem("--data", directory, rule, remedy)])
    by_name = {match[2]: file for match, file in named}
    files = {
        category: next(by_name[name] for name in (category, *older) if name in by_name)
        for category, older in CATEGORIES.items()
        if any(name in by_name for name in (category, *older))
    }
    return versions[0], files


def _chosen(
    categories: Sequence[str], files: dict[str, Path], directory: Path
) -> list[str]:
    problems = [
        Problem(
            "--categories",
            name,
            "is no single-turn category"
            if name not in CATEGORIES
            else f"is not among the files of {directory}",
            f"there are {', '.join(files)}",
        )
        for name in categories
        if name not in files
    ]
    missing = [name for name in CATEGORIES if name not in files]
    if not categories and missing:
        rule = f"has no files of {', '.join(missing)}"
        remedy = "name a whole folder, or choose --categories that it has"
        problems.append(Problem("--data", directory, rule, remedy))
    if problems:
        raise ConfigError("", problems)
    return [name for name in files if not categories or name in categories]


def _answers(file: Path) -> Path:
    return file.parent / "possible_answer" / file.name


def _category(category: str, file: Path, seen: set[str]) -> list[Case]:
    """The cases of a file, whose ids join those that were `seen` in others."""
    rows = _lines(file)
    if not rows:
        raise DataError(f"{file}: holds no cases; {_GET} again")
    accepted: list[Any] = [None] * len(rows)
    if "relevance" not in category:
        answers = _lines(_answers(file))
        ids = [row.get("id") for row in rows]
        if ids != [answer.get("id") for answer in answers]:
            raise DataError(
                f"{_answers(file)}: its ids are not those of {file}; {_GET} again"
            )
        accepted = [answer.get("ground_truth") for answer in answers]
    cases = []
    for number, (row, wanted) in enumerate(zip(rows, accepted, strict=True), 1):
        try:
            case = Case(
                row["id"],
                category,
                tuple(message for turn in row["question"] for message in turn),
                tuple(row["function"]),
                None if wanted is None else tuple(wanted),
            )
            _require_known(case, needs_answers="relevance" not in category)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            lacks = isinstance(error, KeyError) and error.args
            told = f"has no {error.args[0]}" if lacks else str(error)
            raise DataError(
                f"{file}, line {number}: is no BFCL case ({told}); {_FORM}"
            ) from error
        if case.id in seen:
            raise DataError(f"{file}, line {number}: the id {case.id} is there twice")
        seen.add(case.id)
        cases.append(case)
    return cases


def _lines(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); {_GET} again") from error
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{file}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {number}: no object")
        rows.append(row)
    return rows


def _require_known(case: Case, needs_answers: bool) -> None:
    """An error of those for foreign JSON (ValueError, KeyError, ...) where the case could
    not be asked, or the checker not judge it.
    """
    if not isinstance(case.id, str) or not case.messages:
        raise ValueError("no id or no question")
    for message in case.messages:
        if not (
            isinstance(message["role"], str) and isinstance(message["content"], str)
        ):
            raise ValueError("a message without role and text")
    known = TYPES[case.language]
    for function in case.functions:
        for name, schema in function["parameters"]["properties"].items():
            kinds = [_kind(name, schema)]
            if kinds[0] in WITH_ITEMS:
                kinds.append(_kind(f"items of {name}", schema["items"]))
            if needs_answers and not set(kinds) <= set(known):
                raise ValueError(f"{name} is of type {' of '.join(kinds)}")
        required = function["parameters"].get("required", [])
        if not isinstance(required, list):
            raise ValueError(f"required is no list: {required!r}")
    tools = tools_of(case.functions, case.language)
    # Half of a surrogate pair, which JSON can spell, is no text to a tokenizer.
    json.dumps([case.messages, tools], ensure_ascii=False).encode()
    if needs_answers and (not case.accepted or not case.functions):
        raise ValueError("no accepted calls")
    functions = {function["name"] for function in case.functions}
    for call in case.accepted or ():
        ((name, parameters),) = call.items()
        if name not in functions:
            raise ValueError(f"{name} is accepted, and is none of the functions")
        if not all(isinstance(values, list) for values in parameters.values()):
            raise ValueError("accepted values are no lists")


def _kind(name: str, schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if not isinstance(kind, str):
        raise ValueError(f"{name} has not one type by its name, but {kind!r}")
    return kind
