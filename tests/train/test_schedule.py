"""The learning rate as a function of the update."""

from __future__ import annotations

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.train.schedule import Constant, stage_schedule
from tests.small_run import write_run


@pytest.mark.parametrize("update", [0, 1, 11, 10**6])
def test_a_constant_schedule_is_constant(update: int) -> None:
    assert Constant(9e-7).rate(update) == 9e-7


def test_a_stage_has_the_schedule_of_its_settings(tmp_path) -> None:
    stage = load_run(write_run(tmp_path)).stage("short")
    schedule = stage_schedule(stage)
    assert {schedule.rate(update) for update in range(stage.updates)} == {0.003}
