"""What changed while a stage trained, as a reader of its page has it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from alia_ctx.train.schedule import Linear
from alia_ctx.train.stage_identity import SCHEDULE
from alia_ctx.train.stage_state import StageState, with_schedule
from alia_ctx.workflow.run_facts import changes_in_words


def test_a_stage_that_was_made_longer_says_so_in_words() -> None:
    ledger: Any = SimpleNamespace(updates=40)
    state = StageState(ledger, extra={SCHEDULE: Linear(1e-3, 40, 2, 0.0).statement()})
    longer = with_schedule(state, Linear(1e-3, 51, 2, 0.0), lambda text: None)
    said = changes_in_words(longer.extra)
    assert said == ["after update 40: schedule.updates: 40 there, 51 now"]


def test_what_a_damaged_manifest_says_is_shown_as_it_is() -> None:
    assert changes_in_words({"changes": ["a line", {"settings": [1]}]}) == [
        "a line",
        "{'settings': [1]}",
    ]
    assert changes_in_words({}) == []
