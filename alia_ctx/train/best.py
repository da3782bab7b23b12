"""The best checkpoint of a stage, by a metric that is measured while it trains."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.evaluation import METRICS, SCORES, BestConfig

BEST = "best"  # in a manifest's `extra`: {update, metric, mode, value, measured_on}
MEASURED_ON = "measured_on"  # in an evaluation's line: a checksum for each metric


def is_comparable(rule: BestConfig, on: str | None, before: Mapping[str, Any]) -> bool:
    """Whether what was best `before` was found by the same metric and mode, and `on` the
    same text or samples as far as that is known (releases before did not say it).
    """
    then = before.get(MEASURED_ON)
    same = (before.get("metric"), before.get("mode")) == (rule.metric, rule.direction)
    return same and (then is None or on is None or then == on)


def improved(
    rule: BestConfig,
    before: Mapping[str, Any] | None,
    update: int,
    value: float | None,
    on: str | None = None,
) -> dict[str, Any] | None:
    """What is best after an evaluation gave `value` at `update`; None where that is what
    was best `before`. What is not comparable with it begins anew.

    A score of 0 is no best: of checkpoints that can do nothing the first would be kept.
    """
    if value is None or not math.isfinite(value):
        return None
    if rule.metric in SCORES and rule.direction == "max" and value <= 0:
        return None
    best: dict[str, Any] = {
        "update": update,
        "metric": rule.metric,
        "mode": rule.direction,
        "value": value,
    }
    if on is not None:
        best[MEASURED_ON] = on
    if before is None or not is_comparable(rule, on, before):
        return best
    gain = (
        before["value"] - value if rule.direction == "min" else value - before["value"]
    )
    return best if gain > 0 else None


def judged(
    rule: BestConfig,
    before: Mapping[str, Any] | None,
    update: int,
    line: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, str]:
    """(`improved` by the `metrics` of an evaluation's line, what a person should know of
    it or nothing).
    """
    value = line["metrics"].get(rule.metric)
    on = line.get(MEASURED_ON, {}).get(rule.metric)
    best, remark = improved(rule, before, update, value, on), ""
    # Conversations are held out by some stages alone.
    if value is None and METRICS[rule.metric] is not None:
        remark = (
            f"the evaluation gave no {rule.metric}, so that no checkpoint is named the "
            "best by it (evaluation.best)"
        )
    elif best and before and not is_comparable(rule, on, before):
        remark = (
            f"update {before['update']} was the best by {before['metric']} "
            f"{before['value']:.6g}, which is not measured as now; the best begins anew "
            f"with update {update}"
        )
    return best, remark


def naming(manifest: Manifest, whole: Mapping[str, Any] | None) -> Manifest:
    """`manifest` as it names the best of what is `whole`, or itself: another one that was
    found since could not be written.
    """
    named = manifest.extra.get(BEST)
    if named == whole or (named and named["update"] == manifest.update):
        return manifest
    extra = {key: value for key, value in manifest.extra.items() if key != BEST}
    if whole is not None:
        extra[BEST] = whole
    return dataclasses.replace(manifest, extra=extra)
