"""Saves that fail, and what is in their way: the best checkpoint is lost by none, and what
would keep the last one from being written is said before anything is trained.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import workflow
from alia_ctx.checkpoint import directory
from alia_ctx.checkpoint.background_save import BackgroundSave
from alia_ctx.errors import CheckpointError
from alia_ctx.train import trainer as trainer_module
from tests.small_run import state_checksums
from tests.workflow.scenarios import Run, in_small_run

UPDATES = 10
MEASURED = [
    *("evaluation.every_updates=1", "evaluation.best={metric: loss, mode: max}"),
    *(f"stages.short.tokens={UPDATES * 512}", "checkpoint.every_updates=3"),
]
# The best so far: 1, 3, 4, 6; without 4: 1, 3, 5, 6; without 6: 4 to the end.
VALUES = {1: 2.0, 2: 1.0, 3: 3.0, 4: 5.0, 5: 4.0, 6: 6.0, 7: 2.5, 8: 2.0, 9: 2.0, 10: 1}


@contextmanager
def patched(owner: Any, name: str, value: Any) -> Any:
    real = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield real
    finally:
        setattr(owner, name, real)


class Stage(Run):
    """Stage `short` of a run of its own, in which evaluations give what they are told."""

    @property
    def checkpoints(self) -> Path:
        return self.output / "stages" / "short" / "checkpoints"

    def measured(
        self, values: Mapping[int, float], obstructed: Iterable[int] = (), *more: str
    ) -> dict[str, Any]:
        """Train it where the saves of some updates meet something in their way."""
        workflow.pack(self.config(*MEASURED, *more), "short")
        for update in obstructed:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            name = f"update-{update:08d}.incomplete"
            (self.checkpoints / name).write_text("in the way")
        real = trainer_module.judged

        def told(rule: Any, before: Any, update: int, line: Any) -> Any:
            line["metrics"]["loss"] = values[update]
            return real(rule, before, update, line)

        with patched(trainer_module, "judged", told):
            said = self.train("short", *MEASURED, *more)
        return {"said": said, "names": self.names(), "best": self.best()}

    def names(self) -> list[int]:
        return [
            int(path.name[-8:])
            for path in sorted(self.checkpoints.glob("update-????????"))
        ]

    def best(self) -> dict[int, int]:
        """By update of a checkpoint that is there, what its manifest names as the best."""
        manifests = {
            update: json.loads(
                (self.checkpoints / f"update-{update:08d}/manifest.json").read_text()
            )
            for update in self.names()
        }
        return {
            update: manifest["extra"]["best"]["update"]
            for update, manifest in manifests.items()
        }


def best_scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")

    def stage(name: str) -> Stage:
        return Stage(path, Path(folder, name))

    blocking = "checkpoint.background=false"
    seen = {
        "none fails": stage("a").measured(VALUES),
        "6 cannot begin": stage("b").measured(VALUES, [6]),
        "6 cannot begin, blocking": stage("c").measured(VALUES, [6], blocking),
        "4 and 6 cannot begin": stage("d").measured(VALUES, [4, 6]),
        "none but the last": stage("e").measured(VALUES, range(1, UPDATES)),
    }
    real = BackgroundSave.finish

    def fails(self: BackgroundSave) -> Any:
        found = real(self)
        if any(f"{n:08d}" in str(self.directory) for n in (4, 6)):
            raise CheckpointError("as tested")
        return found

    with patched(BackgroundSave, "finish", fails):
        seen["4 and 6 fail later"] = stage("f").measured(VALUES)
    gone = stage("g")
    gone.measured(VALUES, [6], f"stages.short.tokens={7 * 512}")
    shutil.rmtree(gone.checkpoints / "update-00000004")
    workflow.pack(gone.config(*MEASURED), "short")
    seen["removed by hand"] = gone.measured(VALUES)
    return seen


@pytest.fixture(scope="module")
def bests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_small_run(best_scenarios, tmp_path_factory, "bests")


@pytest.mark.parametrize(
    ("case", "names", "best"),
    [
        ("none fails", [6, 9, 10], 6),
        ("6 cannot begin", [4, 9, 10], 4),
        ("6 cannot begin, blocking", [4, 9, 10], 4),
        ("4 and 6 cannot begin", [5, 9, 10], 5),
        ("4 and 6 fail later", [5, 9, 10], 5),
        ("none but the last", [10], 10),
        ("removed by hand", [8, 9, 10], 8),
    ],
)
def test_the_best_is_kept_until_a_better_one_is_whole(
    case: str, names: list[int], best: int, bests: dict[str, Any]
) -> None:
    seen = bests[case]
    assert seen["said"] == "" and seen["names"] == names
    assert {n: b for n, b in seen["best"].items() if n >= best} == dict.fromkeys(
        [n for n in names if n >= best], best
    )


# -- what is in the way of the last save -----------------------------------------------


class Killed(BaseException):
    """Stands for a kill: nothing that guards against errors takes notice."""


def in_the_way(stage: Stage, update: int) -> Path:
    """A directory with somebody's files under the temporary name of a checkpoint."""
    path = stage.checkpoints / f"update-{update:08d}.incomplete"
    path.mkdir(parents=True)
    (path / "thesis.txt").write_text("mine")
    return path


def way_scenarios(rank: int, folder: str) -> dict[str, Any]:
    """A stage of four updates."""
    path = Path(folder, "run.yaml")
    through = Stage(path, Path(folder, "through"))
    workflow.pack(through.config(), "short")
    seen: dict[str, Any] = {}

    def stage(name: str, like: Run | None = through) -> Stage:
        return Stage(path, Path(folder, name), like=like)

    killed, first, middle = stage("killed"), stage("first"), stage("middle")
    obstacle, halfway = in_the_way(first, 4), stage("halfway")
    seen["from the first"] = first.train("short")
    seen["nothing was done"] = (
        not first.names()
        and (obstacle / "thesis.txt").is_file()
        and not (first.output / "stages/short/metrics.jsonl").exists()
    )
    in_the_way(middle, 2)
    seen["in the middle"] = middle.train("short", "checkpoint.every_updates=2")
    halfway.train("short", exit_before=0.0)
    in_the_way(halfway, 4)
    seen["going on"] = halfway.train("short"), halfway.names()
    seen["through"] = (
        through.train("short"),
        state_checksums(through.checkpoints / "update-00000004"),
    )
    in_the_way(through, 4)
    seen["finished"] = through.train("short")

    publish = directory.publish

    def kill(temporary: Path, final: Path) -> None:
        if final.name == "update-00000004":
            raise Killed
        publish(temporary, final)

    with patched(directory, "publish", kill):
        try:
            killed.train("short")
        except Killed:
            seen["left"] = sorted(p.name for p in killed.checkpoints.iterdir())
    copy = stage("copy", like=killed)
    seen["copy"] = (
        copy.train("short"),
        state_checksums(copy.checkpoints / "update-00000004"),
    )
    return seen


@pytest.fixture(scope="module")
def ways(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return in_small_run(way_scenarios, tmp_path_factory, "ways")


def test_what_is_in_the_way_of_the_last_save_is_said_before_training(
    ways: dict[str, Any],
) -> None:
    said = ways["from the first"]
    assert (
        "update-00000004.incomplete: is in the way" in said and "move it away" in said
    )
    assert ways["nothing was done"]
    said, names = ways["going on"]
    assert "update-00000004.incomplete: is in the way" in said and names == [1]


def test_what_is_in_the_way_of_no_save_that_must_succeed_stops_nothing(
    ways: dict[str, Any],
) -> None:
    assert ways["in the middle"] == "" and ways["finished"] == ""


def test_a_copy_of_a_run_that_was_killed_before_its_last_rename_ends_the_same(
    ways: dict[str, Any],
) -> None:
    assert ways["left"] == [
        ".update-00000004.incomplete.begun",
        "update-00000003",
        "update-00000004.incomplete",
    ]
    assert ways["copy"] == ways["through"] and ways["through"][0] == ""
