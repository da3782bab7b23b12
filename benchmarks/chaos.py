"""Kill a stage with SIGKILL at random moments, resume it each time, and compare with one
that ran through.

    python benchmarks/chaos.py [--kills 20] [--ranks 2] [--seed 0]

Weights and optimizer state must be bit-identical in the end, and so must every line of
the log. Saves happen every few updates, so many of the kills fall into one.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from alia_ctx import checkpoint
from tests.small_run import (
    alia,
    command,
    environment,
    metrics,
    state_checksums,
    write_run,
)

UPDATES = 240


def last(folder: Path) -> Path:
    return checkpoint.list_checkpoints(folder / "out/stages/short/checkpoints")[-1]


def begin(folder: Path) -> Path:
    folder.mkdir()
    path = write_run(folder, tokens=64 * 8 * UPDATES)
    assert alia("pack", str(path), "--stage", "short").returncode == 0
    return path


def kill_after(path: Path, ranks: int, seconds: float) -> tuple[bool, bool]:
    """Start training and kill all of its processes `seconds` after its first update.
    Returns whether
    it still ran, and whether it was saving.
    """
    log = path.parent / "out/stages/short/metrics.jsonl"
    before = log.read_text().count("\n") if log.is_file() else 0
    process = subprocess.Popen(
        command("train", str(path), "--stage", "short", ranks=ranks),
        env=environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not (
        log.is_file() and log.stat().st_mtime > time.time() - 0.5
    ):
        time.sleep(0.02)
    deadline = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    ended = process.poll() is not None
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    process.wait()
    after = log.read_text().count("\n") if log.is_file() else 0
    saving = any((path.parent / "out/stages/short/checkpoints").glob("*.incomplete"))
    print(
        f"  killed at log line {after} (was {before}){', during a save' * saving}",
        flush=True,
    )
    return not ended, saving


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory() as root:
        calm, wild = Path(root) / "calm", Path(root) / "wild"
        result = alia(
            "train",
            str(begin(calm)),
            "--stage",
            "short",
            ranks=arguments.ranks,
            timeout=1800,
        )
        assert result.returncode == 0, result.stderr
        path = begin(wild)
        kills = [
            kill_after(path, arguments.ranks, random.uniform(0.0, 0.8))
            for _ in range(arguments.kills)
        ]
        result = alia(
            "train", str(path), "--stage", "short", ranks=arguments.ranks, timeout=1800
        )
        assert result.returncode == 0, result.stderr
        same_state = state_checksums(last(calm)) == state_checksums(last(wild))
        keys = ("update", "loss", "gradient_norm", "tokens", "rows")
        logs = [
            [[line[k] for k in keys] for line in metrics(folder)]
            for folder in (calm, wild)
        ]
    killed, saving = (sum(each) for each in zip(*kills, strict=True))
    print(f"{killed} kills in {UPDATES} updates, {saving} of them during a save")
    print(f"state bit-identical: {same_state}; log identical: {logs[0] == logs[1]}")
    return 0 if same_state and logs[0] == logs[1] else 1


if __name__ == "__main__":
    sys.exit(main())
