"""The original checker in its own process, and where its environment is."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.paths import ROOT

ENVIRONMENT = Path(os.environ.get("BFCL_VENV", ROOT / ".venv-bfcl"))
PYTHON = ENVIRONMENT / "bin" / "python"
WHY_NOT = f"{ENVIRONMENT}: no environment of bfcl-eval; make it with `make venv-bfcl`"
ORACLE = Path(__file__).with_name("bfcl_oracle.py")


def data_folder() -> Path:
    """Of the environment's `bfcl-eval`."""
    return next(ENVIRONMENT.glob("lib/python3.*/site-packages/bfcl_eval/data"))


def ask(questions: Iterable[dict[str, Any]], seconds: float = 540) -> list[Any]:
    """The original's answers, in order."""
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [str(PYTHON), str(ORACLE)],
            input=lines,
            capture_output=True,
            text=True,
            timeout=seconds,
            # Where it makes folders as it is imported.
            env={**os.environ, "BFCL_PROJECT_ROOT": scratch, "PYTHONPATH": ""},
        )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
