"""Which checkpoint is the best: by a metric, in a direction, also after a change of rule."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.config.evaluation import METRICS, BestConfig
from alia_ctx.config.load import load_run
from alia_ctx.train.best import improved, judged
from alia_ctx.workflow.training import _evaluation
from tests.config.test_places import problems_of
from tests.small_run import write_run


@pytest.mark.parametrize(
    ("metric", "mode", "values", "best"),
    [
        ("loss", None, (3.0, 2.0, 2.0, 2.5), [1, 2]),
        ("loss", "max", (3.0, 2.0, 4.0), [1, 3]),
        ("retrieval", None, (0.1, 0.1, 0.5, 0.4), [1, 3]),
        ("calls_exact", None, (0.0, 0.0, 0.2, 0.1), [3]),
        ("calls_exact", None, (0.0, 0.0), []),
        ("passkey", "min", (0.5, 0.0), [1, 2]),
        ("long_ppl", None, (math.nan, 9.0, math.inf, 8.0), [2, 4]),
        ("loss", None, (None, math.nan), []),
    ],
)
def test_the_best_so_far(
    metric: str, mode: str | None, values: tuple[float | None, ...], best: list[int]
) -> None:
    rule = BestConfig(metric, mode)  # type: ignore[arg-type]
    before, found = None, []
    for update, value in enumerate(values, 1):
        now = improved(rule, before, update, value)
        if now is not None:
            before = now
            found.append(update)
    assert found == best


def test_another_metric_or_mode_begins_anew() -> None:
    before = improved(BestConfig("loss"), None, 5, 2.0)
    for rule in (BestConfig("far_loss"), BestConfig("loss", "max")):
        now = improved(rule, before, 10, 1.0 if rule.mode else 9.0)
        assert now is not None and now["update"] == 10


def test_another_text_or_other_samples_begin_anew() -> None:
    """A loss of four easy documents is none of twenty-four."""
    rule = BestConfig("loss")
    before = improved(rule, None, 5, 2.0, "four documents")
    assert (
        before is not None and improved(rule, before, 9, 2.5, "four documents") is None
    )
    now = improved(rule, before, 10, 2.5, "all of them")
    assert now is not None and (now["update"], now["measured_on"]) == (
        10,
        "all of them",
    )
    line = {"metrics": {"loss": 2.5}, "measured_on": {"loss": "all of them"}}
    best, remark = judged(rule, before, 10, line)
    assert best == now and "update 5 was the best" in remark and "update 10" in remark
    # What an earlier release found says nothing of its text, and is not given up.
    del before["measured_on"]
    assert improved(rule, before, 10, 2.5, "all of them") is None
    assert judged(rule, before, 10, line) == (None, "")


def test_a_metric_that_nothing_was_found_of_is_said() -> None:
    line = {"metrics": {"loss": 2.0}}
    best, remark = judged(BestConfig("long_ppl"), None, 5, line)
    assert best is None and "gave no long_ppl" in remark
    # Of conversations only the stages that hold some out know anything.
    assert judged(BestConfig("calls_exact"), None, 5, line) == (None, "")


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["evaluation.best={metric: loss}"], "evaluation.best"),
        (
            ["evaluation.best={metric: retrieval}", "evaluation.every_updates=2"],
            "evaluation.best.metric",
        ),
        (["evaluation.best={metric: bleu}"], "evaluation.best.metric"),
        (["evaluation.during=[perplexity]"], "evaluation.during[0]"),
        (["evaluation.measure=[retrieval]"], "evaluation.measure"),
        (["evaluation.retrieval.tasks=[]"], "evaluation.retrieval.tasks"),
        (["evaluation.retrieval.languages=[fr]"], "evaluation.retrieval.languages[0]"),
        (["evaluation.retrieval.tasks=[vt,vt]"], "evaluation.retrieval.tasks"),
        (
            ["evaluation.retrieval.languages=[en,eu,en]"],
            "evaluation.retrieval.languages",
        ),
        (["evaluation.measure=[positions,leak,leak]"], "evaluation.measure"),
        (["evaluation.during=[positions,positions]"], "evaluation.during"),
        (["evaluation.retrieval.samples=0"], "evaluation.retrieval.samples"),
        (["evaluation.retrieval.haystack=hay"], "evaluation.retrieval.haystack"),
    ],
)
def test_what_cannot_be_is_said_before(
    tmp_path: Path, overrides: list[str], key: str
) -> None:
    problems = problems_of(write_run(tmp_path), *overrides)
    assert [problem.key for problem in problems] == [key]


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_of_an_evaluator(tmp_path: Path, metric: str) -> None:
    overrides = [
        f"evaluation.best={{metric: {metric}}}",
        "evaluation.every_updates=2",
        f"evaluation.during=[{METRICS[metric] or 'positions'}]",
    ]
    keys = [problem.key for problem in problems_of(write_run(tmp_path), *overrides)]
    # The run holds no conversations out, so that no stage would ever have a best.
    assert keys == ([] if METRICS[metric] else ["evaluation.best.metric"])


def test_a_stage_that_measures_nothing_has_no_best(tmp_path: Path) -> None:
    """As those before the one that holds conversations out."""
    overrides = ["evaluation.during=[]", "evaluation.every_updates=1"]
    run = load_run(write_run(tmp_path), overrides)
    engine: Any = None  # nothing is asked of it
    name = next(iter(run.stages))
    line = _evaluation(run, name, engine, lambda: None)()
    assert (
        improved(BestConfig("calls_exact"), None, 1, line["metrics"].get("x")) is None
    )
