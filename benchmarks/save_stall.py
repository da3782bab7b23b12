"""How long a checkpoint keeps training waiting: saved in the background, over saved while training waits.

    python benchmarks/save_stall.py [--hidden 512] [--saves 4]

Both write the same state to the same disk in the same run, in turns. A background save stalls twice: when it
copies what it will write, and when it commits; in between, updates run. A blocking save is the whole of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint import Manifest
from alia_ctx.config import EngineConfig, OptimizerConfig
from alia_ctx.layout import Layout
from alia_ctx.mcore.engine import Distributed, MegatronEngine
from alia_ctx.model import ModelSpec, RopeSpec
from alia_ctx.packing import PackedRow

CONTEXT = 512
ROPE = RopeSpec("default", 10000.0)


def save(engine: MegatronEngine, final: Path, rows: list[PackedRow], *, background: bool) -> tuple[float, int]:
    """Seconds that training waited, and updates trained meanwhile."""
    manifest = Manifest("bench", 0, engine.model, ROPE, CONTEXT)
    started = time.perf_counter()
    temporary = checkpoint.begin(final)
    pending = engine.begin_save(temporary)
    stalled = time.perf_counter() - started
    updates = 0
    while background and not pending.done:
        engine.train_update(rows, 1e-4)
        updates += 1
    started = time.perf_counter()
    checkpoint.commit(temporary, final, manifest, known=pending.finish(), overwrite=True)
    return stalled + time.perf_counter() - started, updates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--saves", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hidden = arguments.hidden
    model = ModelSpec(6, hidden, 3 * hidden, 8, 4, hidden // 8, 8192)
    engine_config = EngineConfig(precision="fp32")
    with tempfile.TemporaryDirectory() as folder, Distributed(engine_config):
        engine = MegatronEngine(model, ROPE, CONTEXT, Layout(), engine_config, OptimizerConfig())
        rows = [PackedRow.from_documents([np.arange(CONTEXT) % 8000], CONTEXT)]
        engine.train_update(rows, 1e-4)
        times: dict[bool, list[float]] = {True: [], False: []}
        for number in range(2 * arguments.saves):
            seconds, updates = save(engine, Path(folder) / "ck", rows, background=number % 2 == 0)
            times[number % 2 == 0].append(seconds)
            if number % 2 == 0:
                print(
                    f"background save {number // 2 + 1}: training waited {seconds:.2f} s, {updates} updates meanwhile"
                )
        size = sum(p.stat().st_size for p in (Path(folder) / "ck").rglob("*") if p.is_file())
    blocking, background = statistics.median(times[False]), statistics.median(times[True])
    print(f"{model.parameters():,} parameters, {size / 1e9:.2f} GB a checkpoint")
    print(
        f"blocking {blocking:.2f} s, background {background:.2f} s, ratio {background / blocking:.2f} (aim: below 0.25)"
    )


if __name__ == "__main__":
    main()
