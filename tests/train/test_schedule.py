"""The learning rate as a function of the update."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from alia_ctx.config.load import load_run
from alia_ctx.config.run import ScheduleConfig, StageConfig
from alia_ctx.data.packing import PackSpec
from alia_ctx.errors import ConfigError
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.schedule import Constant, Cosine, Schedule, stage_schedule
from tests.small_run import write_run

PEAK = 5e-6


@pytest.mark.parametrize("update", [0, 1, 11, 10**6])
def test_a_constant_schedule_is_constant(update: int) -> None:
    assert Constant(9e-7).rate(update) == 9e-7


def test_a_stage_has_the_schedule_of_its_settings(tmp_path) -> None:
    stage = load_run(write_run(tmp_path)).stage("short")
    schedule = stage_schedule(stage)
    assert {schedule.rate(update) for update in range(stage.updates)} == {0.003}


def schedule_of(updates: int, **settings: Any) -> Schedule:
    stage = StageConfig(
        "random",
        64,
        RopeSpec("default", 10000.0),
        PEAK,
        PackSpec("best_fit", "drop"),
        epochs=1,
        update_instances=128,
        schedule=ScheduleConfig(**settings),
    )
    return stage_schedule(stage, updates)


def theirs(make: Any, updates: int, **arguments: Any) -> list[float]:
    """The rate that transformers' scheduler has set before step k, for each k."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler = make(optimizer, **arguments)
    rates = []
    for _ in range(updates):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("updates", [1, 2, 7, 300, 5687])
@pytest.mark.parametrize("warmup", [0, 1, 12, 228, 0.04, 0.999])
def test_every_value_is_that_of_transformers(updates: int, warmup: float) -> None:
    """To the bit: update k, counted from 0, has the rate of transformers' step k."""
    asked: Any = SimpleNamespace(warmup_steps=warmup)
    steps = transformers.TrainingArguments.get_warmup_steps(asked, updates)
    both = {"num_warmup_steps": steps, "num_training_steps": updates}
    least = PEAK / 10
    for settings, make, arguments in (
        (
            {"type": "constant"},
            transformers.get_constant_schedule_with_warmup,
            {"num_warmup_steps": steps},
        ),
        ({"type": "cosine"}, transformers.get_cosine_schedule_with_warmup, both),
        ({"type": "linear"}, transformers.get_linear_schedule_with_warmup, both),
    ):
        schedule = schedule_of(updates, warmup=warmup, **settings)
        ours = [schedule.rate(update) for update in range(updates)]
        assert ours == theirs(make, updates, **arguments), settings
    schedule = schedule_of(
        updates, type="cosine", warmup=warmup, min_learning_rate=least
    )
    with_least = theirs(
        transformers.get_cosine_with_min_lr_schedule_with_warmup,
        updates,
        **both,
        min_lr=least,
    )
    assert [schedule.rate(update) for update in range(updates)] == with_least


@pytest.mark.parametrize(("updates", "warmup"), [(1, 0), (7, 3), (300, 12)])
@pytest.mark.parametrize("least", [PEAK / 10, PEAK / 3, 1e-12])
def test_a_line_to_a_minimum_is_that_of_transformers(
    updates: int, warmup: int, least: float
) -> None:
    """As its polynomial of power 1, which multiplies otherwise: to a few roundings."""
    schedule = schedule_of(
        updates, type="linear", warmup=warmup, min_learning_rate=least
    )
    rates = theirs(
        transformers.get_polynomial_decay_schedule_with_warmup,
        updates + 5,
        num_warmup_steps=warmup,
        num_training_steps=updates,
        lr_end=least,
        power=1.0,
    )
    ours = [schedule.rate(update) for update in range(updates + 5)]
    assert ours == pytest.approx(rates, rel=1e-15, abs=PEAK * 1e-15)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_a_decay_ends_at_its_minimum_and_stays_there(kind: Any) -> None:
    schedule = schedule_of(100, type=kind, warmup=10, min_learning_rate=1e-7)
    rates = [schedule.rate(update) for update in range(10, 101)]
    assert rates[0] == PEAK and rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-7, rel=1e-12)  # one rounding of the share
    assert schedule.rate(10**6) == rates[-1]


def test_a_schedule_says_what_it_is() -> None:
    statement = schedule_of(5687, type="cosine", warmup=0.04).statement()
    assert statement == {
        "type": "cosine", "peak": PEAK, "updates": 5687, "warmup": 228, "minimum": 0.0,
    }  # fmt: skip
    assert Cosine(1.0, 4).rate(2) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "override,told",
    [
        ("schedule.type=cosin", "cosine"),
        ("schedule.warmup=1.5", "neither a number of updates nor a share"),
        ("schedule.warmup=-1", "neither a number of updates nor a share"),
        ("schedule.warmup=12", "not below the stage's 12 updates"),
        ("schedule.warmup=.nan", "schedule.warmup"),
        ("schedule.min_learning_rate=-1", "between 0 and learning_rate"),
        ("schedule.min_learning_rate=1", "between 0 and learning_rate"),
        ("schedule.min_learning_rate=1e-9", "never reached by a constant rate"),
    ],
)
def test_what_is_no_schedule_is_refused(tmp_path, override: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_run(write_run(tmp_path), [f"stages.short.{override}"])
