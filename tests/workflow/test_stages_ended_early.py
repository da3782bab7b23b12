"""A stage that ends before its plan does: it is finished, packed and trained without more
ado, and what follows goes on behind the rows that it was trained on.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackPlan
from alia_ctx.workflow.continued import rows_before
from alia_ctx.workflow.plan_work import plan_work
from tests.data.packing.plans import trained
from tests.train.test_conversations import write_talk
from tests.workflow.scenarios import Run, message

HALF = "stages.short.tokens=1024"  # two updates of eight rows in place of four
MOST = "stages.short.tokens=1536"  # three
LONGER = "stages.short.tokens=4096"  # eight
OFTEN = ("checkpoint.every_updates=1", "checkpoint.keep_last=9")


def rows_of(plan: PackPlan, rows: int) -> set[tuple[int, int]]:
    """(document, token) of the first rows of a plan."""
    return {
        (document, int(start) + n)
        for document, start, length in zip(*plan.planned_rows(rows).pieces, strict=True)
        for n in range(int(length))
    }


def overlap(run: Run, *overrides: str, rows: int) -> tuple[int, int, int]:
    """Of the plan of `long`: tokens that it says were seen, those of the first `rows` rows of
    `short` that it has, and those of the others.
    """
    config = run.config(*overrides)
    short = workflow.open_plan(config, "short")
    long = workflow.open_plan(config, "long")
    seen = sum(s["seen_tokens"] for s in long.stats["sources"].values())
    first = rows_of(short, rows)
    return (
        seen,
        len(trained(long) & first),
        len(trained(long) & (trained(short) - first)),
    )


def cut(run: Run, update: int) -> None:
    """Leave the checkpoints of `short` up to `update`."""
    for path in checkpoint.list_checkpoints(run.output / "stages/short/checkpoints"):
        if checkpoint.update_of(path) > update:
            shutil.rmtree(path)


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    first = Run(path, Path(folder, "first"))
    workflow.pack(first.config(*OFTEN), "short")
    seen: dict[str, Any] = {"first": first.train("short", *OFTEN)}
    cut(first, 2)

    # Its end is where it stands: nothing is to be done for it.
    half = Run(path, Path(folder, "half"), like=first)
    before = {name: of for name, of in half.files().items() if "/short/" in name}
    config = half.config(HALF)
    seen["half"] = [
        message(lambda: workflow.pack(config, "short")),
        message(lambda: workflow.pack(config, "short", overwrite=True)),
        plan_work(config, "short"),
        half.run(HALF),
        half.started,
        half.train("short", HALF),
    ]
    plan = "out/plans/short"
    seen["plan stays"] = all(
        half.files()[name] == of for name, of in before.items() if plan in name
    )
    seen["half, behind"] = overlap(half, HALF, rows=16)
    shutil.rmtree(half.output / "plans/long")
    seen["half, made again"] = message(lambda: workflow.pack(config, "long"))
    # A third stage goes on behind both.
    third = [HALF, *(f"stages.third.{s}" for s in _third(config))]
    shutil.rmtree(half.output / "plans/short")  # and it is made again as it was
    seen["third"] = message(lambda: workflow.pack(half.config(*third), "third"))
    named = workflow.open_plan(half.config(*third), "third").identity["seen"]
    seen["third, names"] = [[stage, *rows] for stage, _, *rows in named]

    # Its end lies between where it stands and the end of its plan.
    most = Run(path, Path(folder, "most"), like=first)
    seen["most"] = [
        message(lambda: workflow.pack(most.config(MOST), "short")),
        most.train("short", MOST),
        message(lambda: workflow.pack(most.config(MOST), "long")),
        most.train("long", MOST),
    ]
    seen["most, behind"] = overlap(most, MOST, rows=24)
    manifest = checkpoint.read_manifest(
        checkpoint.latest(most.output / "stages/long/checkpoints")
    )
    seen["most, ledger"] = [(e.stage, e.updates, e.rows) for e in manifest.ledger]

    # What was packed behind the whole plan is not what follows half of it.
    late = Run(path, Path(folder, "late"), like=first)
    workflow.pack(late.config(), "long")
    seen["late"] = [
        message(lambda: workflow.pack(late.config(HALF), "long")),
        late.train("long", HALF),
        message(lambda: plan_work(late.config(HALF), "long")),
        message(lambda: workflow.pack(late.config(HALF), "long", overwrite=True)),
        late.train("long", HALF),
    ]
    # One that was begun so goes on in its own plan, also with more rows.
    old = Run(path, Path(folder, "old"), like=first)
    workflow.pack(old.config(), "long")
    old.train("short")
    seen["old"] = [old.train("long")]
    more = "stages.long.tokens=3072"
    cut(old, 2)
    seen["old"] += [
        message(lambda: workflow.open_plan(old.config(HALF), "long")),
        message(lambda: workflow.pack(old.config(HALF, more), "long")),
    ]

    # Rows that were added to the plan of a finished stage, and not trained on.
    grown = Run(path, Path(folder, "grown"), like=first)
    seen["grown"] = [
        grown.train("short"),
        message(lambda: workflow.pack(grown.config(), "long")),
        message(lambda: workflow.pack(grown.config(LONGER), "short")),
        message(lambda: workflow.pack(grown.config(), "short")),
        message(lambda: workflow.pack(grown.config(), "long")),
        grown.train("short"),
        grown.train("long"),
        message(lambda: workflow.pack(grown.config(more), "long")),
        grown.train("long", more),
    ]
    seen["grown, behind"] = overlap(grown, more, rows=32)
    seen["talk"] = of_conversations(Path(folder, "talk"))
    return seen


def of_conversations(folder: Path) -> dict[str, Any]:
    """A stage of three epochs, three updates each, that ends with its second."""
    folder.mkdir()
    path = write_talk(folder)
    root = folder / "out/stages/short/checkpoints"
    every = ["checkpoint.every_updates=3", "metrics.sinks=[]"]
    run = load_run(path, every)
    workflow.pack(run, "short")
    seen: dict[str, Any] = {"first": message(lambda: workflow.train(run, "short"))}
    shutil.rmtree(root / "update-00000009")
    two = load_run(path, [*every, "stages.short.epochs=2"])
    seen["two"] = [
        message(lambda: workflow.pack(two, "short")),
        plan_work(two, "short"),
        workflow.check_trained(two, "short"),
        message(lambda: workflow.train(two, "short")),
    ]
    plan = workflow.open_plan(two, "short")
    rows = rows_before(_with_text(two), "after", "short", plan.statement.plans)
    seen["rows"] = rows == plan.update_offsets[6] < len(plan)
    return seen


def _with_text(run: RunConfig) -> RunConfig:
    stage = dataclasses.replace(
        run.stage("short"), init_from="short", epochs=None, update_instances=None
    )
    return dataclasses.replace(run, stages={**run.stages, "after": stage})


def _third(config: Any) -> list[str]:
    return [
        *("init_from=long", "context=256", "tokens=1536", "update_tokens=800"),
        *("learning_rate=0.003", "pack.policy=best_fit", "pack.long_docs=split"),
        *(f"rope.{name}={value}" for name, value in _rope(config).items()),
    ]


def _rope(config: Any) -> dict[str, Any]:
    rope = config.to_dict()["stages"]["long"]["rope"]
    return {name: value for name, value in rope.items() if value is not None}


def test_a_stage_is_finished_where_it_was_cut(seen: dict[str, Any]) -> None:
    assert seen["first"] == ""
    packed, over, work, ran, started, trained_ = seen["half"]
    assert [packed, over, work, ran, trained_] == ["", "", "nothing", "", ""]
    assert started == ["train --stage long", "evaluate"]
    assert seen["plan stays"]


def test_the_next_stage_goes_on_behind_what_was_trained(seen: dict[str, Any]) -> None:
    counted, again, others = seen["half, behind"]
    assert counted == 1024 and not again and others > 512
    assert seen["half, made again"] == ""


def test_a_third_stage_counts_by_the_ledger(seen: dict[str, Any]) -> None:
    assert seen["third"] == ""
    assert seen["third, names"] == [["short", 16], ["long"]]


def test_conversations_end_with_an_epoch(seen: dict[str, Any]) -> None:
    assert seen["talk"]["first"] == ""
    assert seen["talk"]["two"] == ["", "nothing", True, ""]
    assert seen["talk"]["rows"]


def test_a_stage_may_be_shortened_to_an_update_ahead(seen: dict[str, Any]) -> None:
    assert seen["most"] == [""] * 4
    counted, again, _ = seen["most, behind"]
    assert counted == 1536 and not again
    assert seen["most, ledger"] == [("short", 3, 24), ("long", 2, 6)]


def test_a_plan_behind_rows_that_were_not_trained_is_refused(
    seen: dict[str, Any],
) -> None:
    packed, trained_, work, *after = seen["late"]
    for said in (packed, trained_, work):
        assert said.startswith("DataError: ") and "its first 16 rows) now" in said, said
        assert "--overwrite`" in said
    assert after == ["", ""]


def test_a_begun_stage_keeps_the_plan_it_was_begun_on(seen: dict[str, Any]) -> None:
    assert seen["old"] == [""] * 3


def test_rows_that_were_added_and_not_trained_change_nothing(
    seen: dict[str, Any],
) -> None:
    assert seen["grown"] == [""] * 9
    counted, again, _ = seen["grown, behind"]
    assert counted == 2048 and not again
