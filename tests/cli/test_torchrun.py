"""Under plain torchrun a user's mistake is one line of ours, and the root cause in torchrun's
own summary.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.small_run import environment


def test_a_mistake_is_said_once_and_is_the_root_cause(tmp_path: Path) -> None:
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    train = ["-m", "alia_ctx.cli", "train", str(tmp_path / "no.yaml"), "--stage", "s"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, *train],
        capture_output=True,
        text=True,
        timeout=180,
        env=environment(),
        check=False,
    )
    assert done.returncode != 0
    message = f"ConfigError: {tmp_path}/no.yaml: no such file; `alia-ctx init HF_DIR` writes one"
    ours, _, summary = done.stderr.partition("alia_ctx.cli FAILED")
    said = [line for line in ours.splitlines() if "ConfigError" in line]
    assert said == [f"rank 0: {message}"]
    assert message in summary.partition("Root Cause")[2].replace("\n", " ")
