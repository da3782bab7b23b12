"""Stand-ins for SLURM's commands and for Python, around the batch script."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.paths import ROOT

LAUNCH = ROOT / "launch"

# Each rank runs as srun would start it; RANK_SCRIPT stands for `alia-ctx train`.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do shift; done
export SLURM_PROCID=3 SLURM_LOCALID=1 SLURM_NTASKS=8
"$@" & rank=$!
trap 'kill -USR1 $rank' USR1
wait $rank; status=$?
while kill -0 $rank 2>/dev/null; do wait $rank; status=$?; done
exit $status
"""
PYTHON = """#!/usr/bin/env bash
echo "python $*" >> "$LOG"
[[ $3 == check ]] && exit "${CHECK_STATUS:-0}"
echo "env $RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR" >> "$LOG"
echo "port $MASTER_PORT" >> "$LOG"
eval "$RANK_SCRIPT"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$LOG"
[[ $1 == show ]] && printf 'node7\\nnode8\\n'
exit 0
"""


def stand_ins(tmp_path: Path) -> dict[str, str]:
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "77",
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_SUBMIT_DIR": str(tmp_path),
    }
    own = {"LOG": str(tmp_path / "log"), "ALIA_PYTHON": str(tmp_path / "python")}
    return {**os.environ, **slurm, **own, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


def start(
    cluster: dict[str, str], rank_script: str, *arguments: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["bash", str(LAUNCH / "slurm_stage.sbatch"), *arguments],
        env={**cluster, "RANK_SCRIPT": rank_script},
        stderr=subprocess.PIPE,
        text=True,
    )


def log(cluster: dict[str, str]) -> str:
    return Path(cluster["LOG"]).read_text() if Path(cluster["LOG"]).exists() else ""
