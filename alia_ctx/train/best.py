"""The best checkpoint of a stage, by a metric that is measured while it trains."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from alia_ctx.config.evaluation import SCORES, BestConfig

BEST = "best"  # in a manifest's `extra`: {update, metric, mode, value}


def improved(
    rule: BestConfig, before: Mapping[str, Any] | None, update: int, value: float | None
) -> dict[str, Any] | None:
    """What is best after an evaluation gave `value` at `update`; None where that is what
    was best `before`. Another metric or mode than before's begins anew.

    A score of 0 is no best: of checkpoints that can do nothing the first would be kept.
    """
    if value is None or not math.isfinite(value):
        return None
    if rule.metric in SCORES and rule.direction == "max" and value <= 0:
        return None
    best = {
        "update": update,
        "metric": rule.metric,
        "mode": rule.direction,
        "value": value,
    }
    same_rule = before is not None and all(
        before.get(name) == best[name] for name in ("metric", "mode")
    )
    if before is None or not same_rule:
        return best
    gain = (
        before["value"] - value if rule.direction == "min" else value - before["value"]
    )
    return best if gain > 0 else None
