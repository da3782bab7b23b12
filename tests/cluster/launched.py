"""A cluster file, and what stands in the batch files that are made with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

SLURM = {"scheduler": "slurm", "account": "abc", "qos": "fast", "gres": "gpu:2"}


def cluster(folder: Path, launch: dict[str, Any], **sizes: int) -> Path:
    path = folder / "cluster.yaml"
    document = {"cluster": {"nodes": 2, "ranks_per_node": 2, **sizes}, "launch": launch}
    path.write_text(yaml.safe_dump(document))
    return path


def options(text: str) -> dict[str, str]:
    """The options of a batch file's header, as sbatch reads them."""
    words = re.findall(r"^#SBATCH --(\S+?)(?:=(.*))?$", text, re.MULTILINE)
    return {name: value.strip('"') for name, value in words}


def commands(folder: Path, **scripts: str) -> None:
    (folder / "bin").mkdir(exist_ok=True)
    for name, script in scripts.items():
        file = folder / "bin" / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
