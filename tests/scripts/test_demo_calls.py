"""A small model learns to call functions of which it has seen no conversation."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from scripts.demo_calls import read_call
from tests.paths import ROOT


def test_an_answer_is_one_call_and_nothing_else() -> None:
    call = {"name": "add_mux", "arguments": {"size": 3}}
    told = f"<tool_call>\n{json.dumps(call)}\n</tool_call><|im_end|>"
    assert read_call(told) == call
    for wrong in (
        f"{told}{told}",
        f"Here: {told}",
        told.replace("<|im_end|>", ""),
        told.replace("}}", "}"),
    ):
        assert read_call(wrong) is None


@pytest.mark.slow
def test_it_calls_functions_that_it_has_not_seen() -> None:
    if not (ROOT / "runs/tiny/text").is_dir():
        pytest.skip("the demo's text is not here; run `make demo` first")
    done = subprocess.run(
        [sys.executable, "scripts/demo_calls.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=3600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = (figures(stage, done.stdout) for stage in ("x8", "fc"))
    assert before == {"calls": 200, "greedy": 0, "hits": 0}
    assert after["calls"] == 200
    assert min(after["greedy"], after["hits"]) >= 0.95 * after["calls"]


def figures(stage: str, printed: str) -> Any:
    found = re.search(rf"^{stage}: (\{{.*\}})$", printed, re.MULTILINE)
    assert found is not None, printed[-2000:]
    return json.loads(found[1])
