"""What was made from something else is named, and refused or made anew: never reported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.files import file_checksum
from tests.workflow.scenarios import Run, message

# Each decides what a finished stage holds; the key that the message must name.
DECIDING = {
    "stages.short.learning_rate=0.01": "short.learning_rate: 0.003 there, 0.01 now",
    "stages.short.rope.theta=20000": "short.rope.theta: 10000",
    "stages.short.update_tokens=1024": "short.update_tokens: 8 rows of 64 tokens there",
    "stages.short.tokens=1024": "short.tokens: 4 updates were done there, 2 are asked",
    "stages.long.optimizer_state=keep": "long.optimizer_state: reset there, keep now",
    "stages.long.init_from=random": "long.init_from: ",
    "optimizer.weight_decay=0.9": "optimizer.weight_decay: 0.1 there, 0.9 now",
    "optimizer.beta1=0": "optimizer.beta1: 0.9 there, 0",
    "optimizer.epsilon=1.0": "optimizer.epsilon: 1e-08 there, 1",
    "optimizer.clip_grad=0.5": "optimizer.clip_grad: 1.0 there, 0.5 now",
    "seed=99": "seed: 1234 there, 99 now",
}
# Refused with the configuration: the model is compared with what is gone on from.
OTHER_MODELS = ("model.intermediate_size=96", "model.tie_word_embeddings=true")
# How it is computed, how often it is saved, a budget that asks for the same updates.
ALLOWED = (
    "stages.short.recompute=full",
    "engine.precision=bf16",
    "engine.loss_chunk_tokens=16",
    "checkpoint.every_updates=1",
    "cluster.peak_tflops=1",
    "stages.short.tokens=1900",
    "stages.short.update_tokens=540",
)


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    first = Run(path, Path(folder, "first"))
    seen: dict[str, Any] = {"first": (first.run(), list(first.started))}
    before = first.files()
    seen["again"] = (first.run(), list(first.started), first.files() == before)

    seen["settings"] = {}
    for override in (*DECIDING, *OTHER_MODELS):
        seen["settings"][override] = {
            "run": first.run(override),
            "started": list(first.started),
            "train": first.train(
                "long" if "stages.long" in override else "short", override
            ),
            "report": message(lambda o=override: workflow.report(first.config(o))),
        }
    seen["nothing changed"] = first.files() == before
    seen["allowed"] = {
        override: (
            message(
                lambda o=override: workflow.finished_checkpoint(first.config(o), "long")
            ),
            first.train("short", override),
        )
        for override in ALLOWED
    }

    rates = ("stages.short.learning_rate=0.01", "stages.long.learning_rate=0.01")
    again = Run(path, Path(folder, "again"), like=first)
    shutil.rmtree(again.output / "stages")
    seen["half retrained"] = (
        again.train("short", *rates) or again.train("long", *rates),
        message(lambda: workflow.report(again.config(*rates))),
    )
    seen["retrained"] = (again.run(*rates), list(again.started))

    middle = Run(path, Path(folder, "middle"), like=first)
    shutil.rmtree(middle.output / "stages/short")
    seen["other settings of the base"] = (middle.run(rates[0]), list(middle.started))
    shutil.rmtree(middle.output / "plans/short")
    other = "stages.short.pack.policy=best_fit"
    workflow.pack(middle.config(other), "short")
    seen["other base"] = (
        middle.train("short", other),
        middle.train("long", other),
        message(lambda: workflow.report(middle.config(other))),
    )
    return seen


def test_a_finished_run_does_nothing_again(seen: dict[str, Any]) -> None:
    assert seen["first"] == (
        "",
        ["train --stage short", "train --stage long", "evaluate"],
    )
    assert seen["again"] == ("", [], True)


@pytest.mark.parametrize("override", DECIDING)
def test_a_finished_stage_with_other_settings_is_refused(
    override: str, seen: dict[str, Any]
) -> None:
    """Where it is only read, the constants of its optimizer are its own."""
    outcome = seen["settings"][override]
    of_training = override.startswith("optimizer.")
    if of_training:
        assert outcome["run"] == outcome["report"] == ""
    for step in ("train",) if of_training else ("run", "train", "report"):
        said = outcome[step]
        assert said.startswith("IdentityError: stage "), (step, said)
        assert DECIDING[override] in said, (step, said)
        assert "restore them; or, to train the stage anew" in said, (step, said)
    assert outcome["started"] == []


@pytest.mark.parametrize("override", OTHER_MODELS)
def test_a_finished_stage_of_another_model_is_refused(
    override: str, seen: dict[str, Any]
) -> None:
    outcome = seen["settings"][override]
    for step in ("run", "train", "report"):
        assert override.partition("=")[0] in outcome[step], (step, outcome[step])
    assert outcome["started"] == []


def test_a_refusal_changes_nothing(seen: dict[str, Any]) -> None:
    assert seen["nothing changed"]


@pytest.mark.parametrize("override", ALLOWED)
def test_what_does_not_decide_the_content_may_change(
    override: str, seen: dict[str, Any]
) -> None:
    assert seen["allowed"][override] == ("", "")


def test_old_evaluations_are_not_reported_under_a_new_ledger(
    seen: dict[str, Any],
) -> None:
    trained, reported = seen["half retrained"]
    assert trained == ""
    assert reported.startswith("IdentityError: the evaluation of short in ")
    assert "checkpoint.ledger.short.learning_rate: 0.003 there, 0.01 now" in reported
    assert "run `alia-ctx evaluate CONFIG`" in reported


def test_a_run_after_retraining_exports_and_reports_the_new_model(
    folder: Path, seen: dict[str, Any]
) -> None:
    assert seen["retrained"] == ("", ["evaluate"])
    first, again = folder / "first/out", folder / "again/out"
    for file in ("hf/long/model.safetensors", "evaluation/long/positions-256.json"):
        assert file_checksum(first / file) != file_checksum(again / file), file
    report = json.loads((again / "report/report.json").read_text())
    newest = checkpoint.latest(again / "stages/long/checkpoints")
    assert newest is not None
    weights = json.loads((again / "hf/long.made_from.json").read_text())["made_from"]
    assert report["made_from"]["long"]["model"]["checkpoint"] == weights["checkpoint"]
    for rate in (e["learning_rate"] for e in weights["checkpoint"]["ledger"].values()):
        assert rate == 0.01
    assert any("learning rate 0.01" in note for note in report["notes"])


def test_a_stage_that_came_from_another_base_is_refused(seen: dict[str, Any]) -> None:
    """Another base by its settings, before any work; by its content, once that is there."""
    said, started = seen["other settings of the base"]
    assert "stage long was finished (2 updates) with other settings" in said
    assert "stages.short.learning_rate: 0.003 there, 0.01 now" in said
    assert started == []
    base, said, reported = seen["other base"]
    assert base == "" and reported.startswith("IdentityError")
    assert "stage long was finished (2 updates) with other settings" in said
    assert "stages.long.init_from.ledger.short.plan: " in said
    assert "stages.long.init_from.weights: " in said
