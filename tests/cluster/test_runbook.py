"""The runbook has a line for every message of the batch script and of `doctor`."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

PAGE = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
WORDS = " ".join(PAGE.replace("`", "").split())
SCRIPT = (ROOT / "launch/slurm_stage.sbatch").read_text(encoding="utf-8")
DOCTOR = [
    ROOT / "alia_ctx/cluster" / f"{n}.py" for n in ("software", "gpus", "disk", "links")
]
DOCTOR.append(ROOT / "alia_ctx/workflow/doctor.py")


def test_every_message_of_the_batch_script_has_a_line() -> None:
    messages = re.findall(r'echo "slurm_stage: ([^"]+)"', SCRIPT)
    assert len(messages) >= 8
    for message in messages:
        # In pieces between its variables, which the page cannot know.
        pieces = re.split(r"\$\{[^}]*\}|\$\w+|[:;]", message)
        known = [p for p in pieces if len(p.strip()) >= 12 and p.strip() in WORDS]
        assert known, message


def names(path: Path) -> set[str]:
    """What the findings that a file makes are called."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            makes = node.func.id in ("good", "weak", "broken", "_rate")
            if makes and node.args and isinstance(node.args[0], ast.Constant):
                found.add(str(node.args[0].value))
    return found


@pytest.mark.parametrize("path", DOCTOR, ids=lambda path: path.stem)
def test_every_line_of_doctor_has_one(path: Path) -> None:
    assert names(path)
    for name in names(path):
        assert f"`{name}`" in PAGE, name


@pytest.mark.parametrize(
    "words",
    [
        *("lost touch with other ranks after update", "no answer from"),
        *(
            "all ranks still answer: look at the network of",
            "waiting for other ranks in",
        ),
        *("nobody answers at the store of rank 0", "not waiting for others, in"),
        *("has a loss that is not finite", "times as long as the others' median"),
        *(
            "the ranks cannot meet at",
            "is writing to it; wait for it to end, or end it",
        ),
    ],
)
def test_messages_of_ranks_are_those_of_the_code(words: str) -> None:
    code = "".join(
        re.sub(r'"\s*\n\s*f?"', "", file.read_text(encoding="utf-8"))
        for file in (ROOT / "alia_ctx").rglob("*.py")
    )
    assert words in code, "the page tells of what is never said"
    assert words in WORDS


# Where what a person can read on a cluster is said: raised, or listed among problems.
SAYS = [
    *(ROOT / "alia_ctx/cluster").glob("*.py"),
    *(
        ROOT / f"alia_ctx/workflow/{name}.py"
        for name in ("launching", "jobs", "queued", "standing", "departed", "plan_work")
    ),
    *(
        ROOT / f"alia_ctx/train/{name}.py"
        for name in ("roll_call", "rendezvous", "stopping", "rank_watch", "agreement")
    ),
    *(ROOT / f"alia_ctx/data/packing/{name}.py" for name in ("place", "plan")),
]


LISTS = ("problems", "notes", "lines")


def _is_saying(node: ast.AST) -> bool:
    if isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr):
        return True
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        # Errors of Python's own are for programs.
        name = node.exc.func
        return not (isinstance(name, ast.Name) and hasattr(builtins, name.id))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        owner = node.func.value
        is_list = isinstance(owner, ast.Name) and owner.id in LISTS
        return is_list and node.func.attr in ("append", "add", "need")
    return False


def sayings(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line, what stands in it between values) of each message that a file makes."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if _is_saying(node):
            texts = [
                part.value
                for part in ast.walk(node)
                if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
            pieces = [
                " ".join(piece.replace("`", "").split())
                for text in texts
                for piece in re.split(r"[:;,()\n]", text)
            ]
            if whole := [p for p in pieces if len(p) >= 12 and " " in p]:
                yield node.lineno, whole


@pytest.mark.parametrize("path", SAYS, ids=lambda path: path.stem)
def test_every_message_of_what_runs_there_has_a_row(path: Path) -> None:
    missing = {
        line: pieces
        for line, pieces in sayings(path)
        if not any(piece in WORDS for piece in pieces)
    }
    assert not missing


def test_messages_are_found_where_they_are_made() -> None:
    assert sum(len(list(sayings(path))) for path in SAYS) >= 40


@pytest.mark.parametrize(
    "words",
    [
        *("Node count specification invalid", "DUE TO TIME LIMIT", "Invalid account"),
        *("Nodes required for job are DOWN, DRAINED", "scancel JOB"),
    ],
)
def test_words_of_slurm_have_a_row(words: str) -> None:
    assert words in WORDS
