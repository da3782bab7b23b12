"""Padding of tokens for FP8, forced upon layers that need none: nothing may change by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

# Padded products have more rows, for which a library of linear algebra may choose other
# blocks, and so another order of sums: bits of fp32, which three updates feed back.
CLOSE = 1e-6
VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention_bias": True, "architecture": "qwen2"},
    {"qk_norm": True, "architecture": "qwen3", "recompute": "full"},
]
LAYOUTS = {1: [Layout()], 2: [Layout(tp=2), Layout(cp=2), Layout(pp=2)]}


def compared(rank: int, layouts: list[Layout], multiple: int) -> list[dict[str, Any]]:
    """Three updates without and with padding: what each layout and variant gives."""
    found = []
    with small.distributed():
        for layout in layouts:
            for variant in VARIANTS if layout == Layout() else VARIANTS[:1]:
                pair = [_measured(layout, variant, m) for m in (1, multiple)]
                found.append({"layout": layout, "pair": pair})
    return found


def _measured(layout: Layout, variant: dict[str, Any], multiple: int) -> dict[str, Any]:
    engine = small.make_engine(layout, **variant)
    engine.passes.padding.multiple = multiple
    shapes: set[int] = set()
    layer = engine.module.decoder.layers[0]
    layer.register_forward_hook(
        lambda module, arguments, options, output: shapes.add(len(output[0])),
        with_kwargs=True,
    )
    gradients = engine.accumulate_gradients(small.rows_of(0))
    first = [p.main_grad.clone().numpy() for p in engine.parameters()]
    trained = small.train(engine, range(3))
    lines = [
        (row.row.index, row.values, row.predicted, row.hits, row.ranges)
        for row in gradients
    ]
    return {
        "shapes": shapes,
        "gradients": first,
        "trained": trained,
        "rows": lines,
        "logits": _logits(engine, layout),
    }


def _logits(engine: Any, layout: Layout) -> np.ndarray | None:
    if layout.pp > 1:
        return None
    return engine.logits(small.rows_of(0)[0]).numpy()


@pytest.mark.parametrize("world", [1, 2])
def test_padded_tokens_touch_nothing(world: int) -> None:
    """64 tokens a row become 96 (or 2 x 48 on a rank of two): the losses of each token, the
    gradients, the updates and the logits are those without.
    """
    for results in run_distributed(compared, world, LAYOUTS[world], 48):
        for result in results:
            plain, padded = result["pair"]
            assert max(plain["shapes"]) < max(padded["shapes"]), result["layout"]
            assert max(padded["shapes"]) % 48 == 0
            for one, other in zip(plain["rows"], padded["rows"], strict=True):
                assert one[0] == other[0]
                assert one[4] == other[4]
                assert one[1].shape == other[1].shape
                np.testing.assert_allclose(other[1], one[1], rtol=CLOSE, atol=CLOSE)
                np.testing.assert_array_equal(other[2], one[2])
                np.testing.assert_array_equal(other[3], one[3])
            for one, other in zip(plain["gradients"], padded["gradients"], strict=True):
                scale = float(np.abs(one).max())
                np.testing.assert_allclose(other, one, rtol=0, atol=CLOSE * scale)
            for one, other in zip(plain["trained"], padded["trained"], strict=True):
                assert other == pytest.approx(one, rel=1e-5)
            if plain["logits"] is not None:
                assert plain["logits"].shape == padded["logits"].shape
                np.testing.assert_allclose(
                    padded["logits"], plain["logits"], rtol=1e-5, atol=CLOSE
                )


def zero_through_all_layers(rank: int) -> list[float]:
    """The largest number in the padded hidden states behind each layer, and in their
    gradients.
    """
    largest: list[float] = []
    with small.distributed():
        engine = small.make_engine(Layout())
        engine.passes.padding.multiple = 48

        def look(module: Any, arguments: Any, options: Any, output: Any) -> None:
            hidden: torch.Tensor = output[0]
            largest.append(float(hidden[small.CONTEXT :].abs().max()))
            hidden.register_hook(
                lambda gradient: largest.append(
                    float(gradient[small.CONTEXT :].abs().max())
                )
            )

        for layer in engine.module.decoder.layers:
            layer.register_forward_hook(look, with_kwargs=True)
        engine.accumulate_gradients(small.rows_of(0)[:1])
    return largest


def test_padded_tokens_are_zero_in_every_layer_forward_and_backward() -> None:
    """So that the largest number of a tensor, by which FP8 is scaled, is never theirs."""
    largest = run_distributed(zero_through_all_layers, 1)[0]
    assert len(largest) == 2 * small.MODEL["num_hidden_layers"]
    assert max(largest) == 0
