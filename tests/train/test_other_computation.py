"""What is said where a stage goes on with other layers or FP8 than it was trained with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from alia_ctx.train.stage_state import _other_computation

BF16 = {"precision": "bf16"}
SCALED = {**BF16, "layers": "te", "fp8": "current", "fp8_bf16_layers": 1}


def said(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    manifest, task = (SimpleNamespace(config={"engine": e}) for e in (then, now))
    return _other_computation(task, manifest)  # type: ignore[arg-type]


def test_a_checkpoint_of_an_older_release_was_trained_by_the_local_layers() -> None:
    assert said(BF16, {**BF16, "layers": "local", "fp8": "off"}) == []
    assert said(BF16, SCALED) == [
        "engine.layers: local there, te now",
        "engine.fp8: off there, current now",
    ]


def test_layers_that_keep_bf16_count_where_others_do_not() -> None:
    fewer = {**SCALED, "fp8_bf16_layers": 2}
    assert said(SCALED, fewer) == ["engine.fp8_bf16_layers: 1 there, 2 now"]
    off = {"fp8": "off"}
    assert said({**SCALED, **off}, {**fewer, **off}) == []
    assert said({}, SCALED) == [], "what a checkpoint without settings was computed by"
