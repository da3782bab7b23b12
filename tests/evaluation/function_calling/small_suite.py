"""A folder of BFCL's form with a few cases of ours in each category."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from alia_ctx.evaluation.function_calling.cases import CATEGORIES


def write_suite(folder: Path, version: str = "v4", each: int = 2) -> Path:
    """`each` cases a category; case i wants `get.value` of i, twice in parallel ones."""
    (folder / "possible_answer").mkdir(parents=True)
    for category, older in CATEGORIES.items():
        name = older[0] if older and version != "v4" else category
        file = f"BFCL_{version}_{name}.json"
        rows, answers = [], []
        for index in range(each):
            rows.append(row(category, index))
            truth = [{"get.value": {"n": [n]}} for n in wanted(category, index)]
            answers.append({"id": rows[-1]["id"], "ground_truth": truth})
        write_lines(folder / file, rows)
        if "relevance" not in category:
            write_lines(folder / "possible_answer" / file, answers)
    return folder


def row(category: str, index: int) -> dict[str, Any]:
    parameters = {
        "type": "dict",
        "properties": {"n": {"type": "integer", "description": "Which."}},
        "required": ["n"],
    }
    function = {
        "name": "get.value",
        "description": "A value.",
        "parameters": parameters,
    }
    question = [[{"role": "user", "content": f"{category} {index}?"}]]
    return {"id": f"{category}_{index}", "question": question, "function": [function]}


def wanted(category: str, index: int) -> list[int]:
    return [index, index + 1] if "parallel" in category else [index]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
