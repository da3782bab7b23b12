"""A stage from which a later one has started: it does not go on beneath that one, and the
later one can be read whatever became of it. Constants of the optimizer that differ between
stages are no circle; plans and origins are those of the ledger, or it is said.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.workflow import continued, plans
from alia_ctx.workflow.evaluated_models import model_of
from tests.workflow.scenarios import Run, message

LONGER = "stages.short.tokens=4096"  # eight updates instead of four
OTHER = ("optimizer.weight_decay=0.0", "optimizer.beta2=0.99")


def read(run: Run, *overrides: str) -> list[str]:
    """What is said where the finished later stage is looked at, opened to be evaluated,
    and exported.
    """
    config = run.config(*overrides)
    return [
        message(lambda: workflow.check_trained(config, "long", reading=True)),
        message(lambda: model_of(config, "long")),
        message(lambda: workflow.export(config, "long")),
    ]


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    first = Run(path, Path(folder, "first"))
    seen: dict[str, Any] = {"first": first.run()}
    before = first.files()
    config = first.config(LONGER)
    seen["longer"] = [
        message(lambda: workflow.check_trained(config, "short", reading=True)),
        message(lambda: workflow.pack(config, "short")),
        first.train("short", LONGER),
        first.run(LONGER),
    ]
    seen["nothing done"] = first.files() == before, first.started

    # It went on all the same: the later stage lay elsewhere, or a release before let it.
    on = Run(path, Path(folder, "on"), like=first)
    for place in ("stages", "plans"):
        (on.output / place / "long").rename(on.folder / place)
    workflow.pack(on.config(LONGER), "short")
    seen["went on"] = on.train("short", LONGER)
    workflow_plan = on.output / "plans/long"
    shutil.copytree(on.folder / "stages", on.output / "stages/long")
    shutil.copytree(on.folder / "plans", workflow_plan)
    seen["kept"] = [
        p.name for p in sorted((on.output / "stages/short/checkpoints").iterdir())
    ]
    seen["read"] = [*read(on), *read(on, LONGER)]
    seen["run"] = on.run(LONGER), list(on.started)

    # A longer stage of the same name on other rows is none that went on.
    rows = Run(path, Path(folder, "rows"), like=on)
    for place in ("stages", "plans"):
        shutil.rmtree(rows.output / place / "short")
        (rows.output / place / "long").rename(rows.folder / place)
    on_others = (LONGER, "stages.short.pack.policy=best_fit")
    workflow.pack(rows.config(*on_others), "short")
    trained = rows.train("short", *on_others)
    for place in ("stages", "plans"):
        (rows.folder / place).rename(rows.output / place / "long")
    seen["on other rows"] = trained, read(rows, *on_others)

    # The plan of the longer stage, which grew in two steps, is lost: its checkpoints
    # state the steps. Those of a release before did not.
    lost = Run(path, Path(folder, "lost"), like=on)
    there = (lost.output / "plans/short/plan.json").read_bytes()
    for place in ("stages/long", "plans/long", "plans/short"):
        shutil.rmtree(lost.output / place)
    longer = lost.config(LONGER)
    seen["made again"] = (
        message(lambda: workflow.pack(longer, "long")),
        (lost.output / "plans/short/plan.json").read_bytes() == there,
    )
    shutil.rmtree(lost.output / "plans/long")
    shutil.rmtree(lost.output / "plans/short")
    stated = plans.own_plan
    plans.own_plan = continued.own_plan = lambda run, name: None
    try:
        seen["lost"] = message(lambda: workflow.pack(longer, "long"))
        seen["left"] = (lost.output / "plans/short").exists()
        workflow.pack(longer, "short")  # anew in one step, which is another plan
        seen["another"] = message(lambda: workflow.pack(longer, "long"))
        shutil.rmtree(lost.output / "plans/short")
        workflow.pack(lost.config(), "short")
        workflow.pack(longer, "short")
    finally:
        plans.own_plan = continued.own_plan = stated
    seen["in steps"] = message(lambda: workflow.pack(longer, "long"))

    # Another origin of as many updates, or of fewer, is another.
    other = Run(path, Path(folder, "other"), like=first)
    shutil.rmtree(other.output / "stages/short")
    seen["other"] = other.train("short", OTHER[0]), read(other)[0]

    constants = Run(path, Path(folder, "constants"), like=first)
    shutil.rmtree(constants.output / "stages/long")
    shutil.rmtree(constants.output / "evaluation")
    seen["constants"] = [
        constants.train("long", *OTHER),
        constants.run(),
        constants.run(*OTHER),
        message(lambda: workflow.report(constants.config())),
        message(lambda: workflow.report(constants.config(*OTHER))),
        *(constants.train("short"), constants.train("long", *OTHER)),
    ]
    seen["notes"] = (
        workflow.constants_notes(constants.config()),
        workflow.constants_notes(constants.config(*OTHER)),
    )

    newest = checkpoint.latest(first.output / "stages/short/checkpoints")
    by_path = first.config(f"stages.long.init_from={newest}")
    seen["not seen"] = (
        workflow.not_seen(by_path, "long"),
        workflow.not_seen(first.config(), "long"),
    )
    return seen


def test_a_stage_that_another_hangs_on_does_not_go_on(seen: dict[str, Any]) -> None:
    assert seen["first"] == ""
    for said in seen["longer"]:
        assert said.startswith("ConfigError: stage short cannot go on"), said
        assert "stages.short.tokens" in said and "4096" in said
        assert "beyond update 4, which stage long has started from" in said
        assert "restore it; or move " in said and "stages/long and " in said
    assert seen["nothing done"] == (True, [])


def test_the_later_stage_can_be_read_whatever_became_of_its_origin(
    seen: dict[str, Any],
) -> None:
    assert seen["went on"] == "" and "update-00000004" not in seen["kept"]
    assert seen["read"] == [""] * 6
    said, started = seen["run"]
    assert said == "" and started == ["evaluate"]


def test_an_origin_of_other_content_is_another(seen: dict[str, Any]) -> None:
    trained, said = seen["other"]
    assert trained == "" and "stages.long.init_from.weights: " in said


def test_a_longer_stage_on_other_rows_is_another(seen: dict[str, Any]) -> None:
    trained, said = seen["on other rows"]
    assert trained == ""
    for text in said:
        assert text.startswith("IdentityError: stage long was finished"), text
        assert "stages.long.init_from.ledger.short.plan: " in text


def test_a_plan_made_anew_is_that_of_the_ledger_or_refused(
    seen: dict[str, Any],
) -> None:
    assert seen["made again"] == ("", True)
    for said in (seen["lost"], seen["another"]):
        assert said.startswith("DataError: "), said
        assert "is not the plan that stage short was trained on" in said
        assert "stages.long.pack.data=restart" in said
    assert not seen["left"]
    assert seen["in steps"] == ""


def test_constants_that_differ_between_stages_are_no_circle(
    seen: dict[str, Any],
) -> None:
    assert seen["constants"] == [""] * 7
    as_written, as_overridden = seen["notes"]
    assert len(as_written) == len(as_overridden) == 1
    assert as_written[0].startswith("stage long is finished, and stays as it was")
    assert as_overridden[0].startswith("stage short is finished, and stays as it was")
    assert "optimizer.beta2: 0.95 there, 0.99 now" in as_overridden[0]


@pytest.mark.parametrize("which", [0, 1])
def test_what_counts_as_not_seen_is_said(which: int, seen: dict[str, Any]) -> None:
    said = seen["not seen"][which]
    if which == 1:
        assert said is None
    else:
        assert "stage long counts as not seen the 2,048 tokens that " in said
        assert "`init_from: short` continues the data behind them" in said
