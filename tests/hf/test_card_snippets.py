"""The programs in a card that need no server run as they stand, on a model of random weights:
what it answers is noise, and read as what it is.

`make test-serve` has them on a model that has learnt the answer.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.hf.exports import snippets
from tests.hf.test_serving import WITHOUT_CALLS, export
from tests.paths import ROOT


def answer(program: str, model: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MODEL": str(model)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return dict(ast.literal_eval(done.stdout.splitlines()[-1]))


@pytest.mark.long
def test_of_a_model_that_makes_calls(tmp_path: Path) -> None:
    out = export(tmp_path, None, "chatml-tools")
    client, *programs = snippets(out / "README.md")
    assert "openai" in client and len(programs) == 2
    assert "pipeline(" in programs[0] and "AutoModelForCausalLM" in programs[1]
    for program in programs:
        assert "tools=tools" in program
        said = answer(program, out)
        assert said["role"] == "assistant" and said["content"]
    assert snippets(ROOT / "docs" / "serving.md") == [client, *programs]


@pytest.mark.long
def test_of_a_model_that_only_talks(tmp_path: Path) -> None:
    out = export(tmp_path, WITHOUT_CALLS, "tokenizer")
    _, program = snippets(out / "README.md")
    assert "tools" not in program
    assert answer(program, out)["content"]


def test_of_a_model_without_a_template(tmp_path: Path) -> None:
    assert snippets(export(tmp_path, None, None) / "README.md") == []
