"""Programs of these tests that run on ranks of their own and write what they found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.paths import ROOT


def write_results(out: Path, results: dict[str, Any]) -> None:
    """Of the first rank, also once its process group is gone. FileExistsError where a second
    one writes: what is read would be that of whichever came last.
    """
    if int(os.environ["RANK"]) == 0:
        with out.open("x") as file:
            json.dump(results, file)


def results_of(module: str, out: Path, *, ranks: int, timeout: float) -> dict[str, Any]:
    """What `python -m MODULE OUT` writes as JSON on so many ranks."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "alia_ctx.cli.launch", "--standalone"),
            *(f"--nproc-per-node={ranks}", "-m", module, str(out)),
        ],
        cwd=ROOT,
        env={**os.environ, "NCCL_NVLS_ENABLE": "0"},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(out.read_text()))
