"""How long a checkpoint keeps training waiting: saved in the background, over saved while
training waits.

    python benchmarks/save_stall.py [--hidden 1024] [--saves 6]

Both go through the trainer's checkpoint manager, write the same state to the same
disk in the same run, in turns, and retire the checkpoint before. A background save
stalls twice: when it copies what it will write, and when it commits; in between,
updates run, and how much longer than usual they take is said too. A blocking save is
the whole.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.run import CheckpointConfig, EngineConfig, OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.checkpoint_manager import CheckpointManager

CONTEXT = 512
ROPE = RopeSpec("default", 10000.0)


def save(
    manager: CheckpointManager, number: int, train: Callable[[], None]
) -> tuple[float, list[float]]:
    """Seconds that training waited, and those of the updates trained meanwhile."""
    model = manager.engine.model  # type: ignore[attr-defined]
    manager.begin(Manifest("bench", number, model, ROPE, CONTEXT))
    updates = []
    while manager.is_writing:
        started = time.perf_counter()
        train()
        updates.append(time.perf_counter() - started)
    manager.finish(must_succeed=True)
    return manager.take_seconds(), updates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--saves", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hidden = arguments.hidden
    model = ModelSpec(6, hidden, 3 * hidden, 8, 4, hidden // 8, 8192)
    engine_config = EngineConfig(precision="fp32")
    rows = [PackedRow.from_documents([np.arange(CONTEXT) % 8000], CONTEXT)]
    with tempfile.TemporaryDirectory() as folder, Distributed(engine_config):
        engine = MegatronEngine(
            model, ROPE, CONTEXT, Layout(), engine_config, OptimizerConfig()
        )
        managers = {
            background: CheckpointManager(
                engine,
                Path(folder) / str(background),
                CheckpointConfig(keep_last=1, background=background),
                print,
                lambda: None,
            )
            for background in (True, False)
        }
        waited: dict[bool, list[float]] = {True: [], False: []}
        usual, beside = [], []
        for number in range(2 * arguments.saves + 2):
            started = time.perf_counter()
            engine.train_update(rows, 1e-4)
            usual.append(time.perf_counter() - started)
            background = number % 2 == 0
            seconds, updates = save(
                managers[background], number, lambda: engine.train_update(rows, 1e-4)
            )
            if number < 2:  # the first of each takes memory that is kept
                continue
            waited[background].append(seconds)
            beside += updates
        size = sum(
            p.stat().st_size for p in managers[True].root.rglob("*") if p.is_file()
        )
        managers[True].save(
            Manifest("bench", number + 1, model, ROPE, CONTEXT)
        )  # waits for the sweeping
        managers[False].save(Manifest("bench", number + 1, model, ROPE, CONTEXT))
    print(
        f"{model.parameters():,} parameters, {size / 1e9:.2f} GB a checkpoint, medians "
        f"of {arguments.saves} saves"
    )
    medians = {
        background: statistics.median(times) for background, times in waited.items()
    }
    for background, way in (
        (False, "a blocking save"),
        (True, "one in the background"),
    ):
        low, high = min(waited[background]), max(waited[background])
        print(
            f"training waited {medians[background]:.2f} s ({low:.2f} to {high:.2f}) for {way}"
        )
    print(f"ratio {medians[True] / medians[False]:.2f} (aim: below 0.25)")
    print(
        f"an update takes {statistics.median(usual):.2f} s, beside a save "
        f"{statistics.median(beside):.2f} s"
    )


if __name__ == "__main__":
    main()
