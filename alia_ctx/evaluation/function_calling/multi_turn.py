"""Scores of BFCL's multi-turn categories, from the files that `bfcl evaluate` writes.

These conversations run programs of the benchmark's; it does so itself, in an
environment of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.evaluation.function_calling.scores import MULTI_TURN, NO_ANSWER, Score
from alia_ctx.files import parse_json

_FILE = re.compile(rf"BFCL_(v\d+)_({'|'.join(MULTI_TURN)})_score\.json")
# What bfcl-eval keeps in place of answers where the server refused the request itself.
_REFUSED = re.compile(r"Error during inference: Error code: 4(00|13|22)\b")


def read_multi_turn(directory: Path) -> dict[str, Score]:
    """Category -> score, of the score files anywhere below a directory.

    ConfigError where there are none, or two of a category (of several models: name one
    model's folder); DataError where one is damaged.
    """
    files: dict[str, list[Path]] = {}
    for file in sorted(directory.rglob("BFCL_v*_score.json")):
        if match := _FILE.fullmatch(file.name):
            files.setdefault(match[2], []).append(file)
    problems = [
        Problem(
            "--multi-turn",
            directory,
            f"has {len(found)} score files of {category}",
            f"name the folder of one model, as {found[0].parent}",
        )
        for category, found in files.items()
        if len(found) > 1
    ]
    if not files:
        rule = "has no score files of multi-turn categories"
        remedy = "name the folder that `bfcl evaluate` wrote (its --score-dir)"
        problems.append(Problem("--multi-turn", directory, rule, remedy))
    if problems:
        raise ConfigError("", problems)
    return {name: _score(files[name][0]) for name in MULTI_TURN if name in files}


def _score(file: Path) -> Score:
    """The first line says how many are right; the others are the wrong ones."""
    try:
        with open(file, encoding="utf-8") as stream:
            head = parse_json(stream.readline())
            wrong = [parse_json(line) for line in stream if line.strip()]
        reasons = [_reason(line) for line in wrong]
        refused = [str(line["model_result"]) for line in wrong if _is_refused(line)]
        score = Score(
            head["correct_count"],
            head["total_count"],
            tuple(Counter(reasons).most_common()),
            " ".join(refused[0].split())[:300] if refused else "",
            file.name.split("_")[1],
        )
        if not isinstance(score.right, int) or score.right + len(wrong) != score.total:
            detail = f"{score.right} right and {len(wrong)} wrong of {score.total}"
            raise ValueError(detail)
        if score.total < 1:
            raise ValueError("no cases")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: is no score file of bfcl-eval ({error}); run `bfcl evaluate` again"
        ) from error
    return score


def _is_refused(wrong: dict[str, Any]) -> bool:
    return _REFUSED.match(str(wrong.get("model_result"))) is not None


def _reason(wrong: dict[str, Any]) -> str:
    """Why a conversation is wrong, in the benchmark's words; a refusal is its own."""
    if _is_refused(wrong):
        return NO_ANSWER
    said = (wrong.get("error") or {}).get("error_type") or "multi_turn"
    return str(said).removeprefix("multi_turn:")
