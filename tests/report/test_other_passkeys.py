"""Two runs that were asked for other passkeys do not stand side by side without a word."""

from __future__ import annotations

import pytest

from alia_ctx.report import Result, RunFacts, comparison_page
from tests.report.made_facts import cells, run
from tests.report.test_page import Reader


@pytest.mark.parametrize("digits", [7, 3])
def test_runs_that_were_asked_for_other_passkeys_are_said_to_be(digits: int) -> None:
    def asked(name: str, digits: int) -> RunFacts:
        made_from = {"settings": {"samples": 8, "digits": digits, "through": name}}
        scores = cells(1.0, (128,))
        return run(
            name=name, results=[Result("x40", "passkey", 128, scores, made_from)]
        )

    words = Reader(comparison_page(asked("one", 7), asked("other", digits))).words
    assert ("not asked for the same passkeys" in words) is (digits == 3)
    assert ("digits: 7 there, 3 now" in words) is (digits == 3)
