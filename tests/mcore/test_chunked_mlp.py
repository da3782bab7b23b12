"""The MLP in chunks of tokens against upstream's MLP at once: losses, gradients, and how
often and how much is computed.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from alia_ctx.config.run import EngineConfig, OptimizerConfig
from alia_ctx.errors import LayoutError
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from tests import engine as small
from tests.distributed import run_distributed

LAYOUTS = [Layout(), Layout(cp=2), Layout(tp=2), Layout(pp=2)]
CHUNK = 12  # divides no row; of tp=2 6 on each rank
# Of the norm. Sums in another order in fp32; in bf16 a weight's gradient is rounded to
# 2**-9 for each chunk in place of each row.
GRADIENTS = {"fp32": 1e-5, "bf16": 2**-7}
LOSS = 1e-5


def make(
    layout: Layout, chunk: int | None, precision: str = "fp32", **more: Any
) -> Any:
    from alia_ctx.mcore.engine import MegatronEngine

    return MegatronEngine(
        ModelSpec(**small.MODEL),
        small.ROPE,
        small.CONTEXT,
        layout,
        EngineConfig(
            precision=precision,  # type: ignore[arg-type]
            loss_chunk_tokens=16,
            mlp_chunk_tokens=chunk,
            **more,
        ),
        OptimizerConfig(),
        recompute="full",
    )


def gradients(engine: Any) -> dict[str, torch.Tensor]:
    """Of an update's rows, what DistributedDataParallel holds."""
    rows = small.rows_of(0)
    mine = rows[engine.data_parallel_rank :: engine.data_parallel_size]
    engine.accumulate_gradients(mine)
    return {n: p.main_grad.clone() for n, p in engine.module.named_parameters()}


def compare(rank: int, layout: Layout, precision: str) -> dict[str, Any]:
    with small.distributed():
        whole = make(layout, None, precision)
        expected, losses = gradients(whole), small.train(whole, range(3))
        engine = make(layout, CHUNK, precision, offload_activations=True)
        found = gradients(engine)
        errors = {
            name: float((found[name] - each).norm() / each.norm().clamp_min(1e-12))
            for name, each in expected.items()
        }
        once = make(layout, small.CONTEXT, precision)
        same = gradients(once)
        bit = all(torch.equal(same[name], each) for name, each in expected.items())
        return {
            "errors": errors,
            "losses": (small.train(engine, range(3)), losses),
            "one chunk": (bit, small.train(once, range(3)) == losses),
        }


@pytest.mark.parametrize(
    ("layout", "precision"),
    [*((layout, "fp32") for layout in LAYOUTS), (Layout(tp=2), "bf16")],
    ids=str,
)
def test_chunks_train_as_a_row_at_once(layout: Layout, precision: str) -> None:
    for found in run_distributed(compare, 2, layout, precision):
        assert max(found["errors"].values()) < GRADIENTS[precision], found["errors"]
        for ours, theirs in zip(*found["losses"], strict=True):
            rel = LOSS if precision == "fp32" else 1e-3
            assert ours == pytest.approx(theirs, rel=100 * rel)
            assert ours[0] == pytest.approx(theirs[0], rel=rel)
        assert found["one chunk"] == (True, True), "a row in one chunk is not the same"


def count(rank: int) -> tuple[dict[str, list[int]], set[str]]:
    """Tokens that enter each product of the first layer's MLP, call by call; names saved."""
    with small.distributed():
        engine = make(Layout(), CHUNK)
        seen: dict[str, list[int]] = {"linear_fc1": [], "linear_fc2": []}
        mlp = engine.module.decoder.layers[0].mlp
        for name, calls in seen.items():
            getattr(mlp, name).register_forward_pre_hook(
                lambda _, given, calls=calls: calls.append(len(given[0]))
            )
        engine.accumulate_gradients(small.rows_of(0)[:1])
        names = set(engine.module.sharded_state_dict())
        plain = set(make(Layout(), None).module.sharded_state_dict())
        return seen, names ^ plain


def test_each_token_is_computed_twice_and_a_chunk_at_a_time() -> None:
    """Once forward, once in the backward: as with full recomputation at once."""
    seen, other_names = run_distributed(count, 1)[0]
    chunks = [12, 12, 12, 12, 12, 4]
    for calls in seen.values():
        assert calls == 2 * chunks
    assert sum(chunks) == small.CONTEXT
    assert not other_names, "a checkpoint has other names"


def resume(rank: int, folder: str) -> list[Any]:
    from pathlib import Path

    path = Path(folder) / "state"
    with small.distributed():
        engine = make(Layout(), CHUNK)
        small.train(engine, range(2))
        small.save(engine, path)
        found = [small.train(engine, (2, 3))]
        for chunk in (CHUNK, None):
            other = make(Layout(), chunk)
            other.load(path, with_optimizer=True)
            found.append(small.train(other, (2, 3)))
        return found


def test_a_stage_goes_on_with_and_without(tmp_path: Any) -> None:
    (found,) = run_distributed(resume, 1, str(tmp_path))
    assert found[0] == found[1]
    for ours, theirs in zip(found[1], found[2], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_other_layers_are_refused() -> None:
    from alia_ctx.mcore.model import _take_mlp_in_chunks

    with pytest.raises(LayoutError, match=r"engine\.mlp_chunk_tokens: .*=local"):
        _take_mlp_in_chunks(None, "te")  # type: ignore[arg-type]
