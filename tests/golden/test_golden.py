"""Moving code changes nothing:

figures.json was made by version 0.1 and is compared to the bit on its machine.
"""

from __future__ import annotations

import json

from tests.golden import figures


def golden() -> dict:
    return json.loads(figures.FIGURES.read_text())


def test_training_and_conversion_are_what_they_were() -> None:
    problems = figures.compare(figures.make(), golden())
    assert not problems, "\n".join(problems)


def test_a_changed_figure_is_seen_here_and_elsewhere() -> None:
    then, now = golden(), golden()
    losses = now["training"]["cp2 fp32"]["short"]["losses"]
    losses[3] = (float.fromhex(losses[3]) * (1 + 1e-9)).hex()
    assert len(figures.compare(now, then)) == 1
    now["machine"] = "another"
    assert not figures.compare(now, then)
    losses[3] = (float.fromhex(losses[3]) * 1.01).hex()
    assert len(figures.compare(now, then)) == 1
    now["training"]["dp2 bf16"]["long"]["predicted_tokens"][0] += 1
    now["conversion"]["config"]["rope_theta"] = 10001.0
    assert len(figures.compare(now, then)) == 3
