"""The MLP in chunks of tokens against upstream's MLP at once: losses, gradients, and how
often and how much is computed.
"""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch

from alia_ctx.errors import LayoutError
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

LAYOUTS = [Layout(), Layout(cp=2), Layout(tp=2), Layout(pp=2)]
CHUNK = 21  # leaves a token of a row; of tp=2 11 on each rank
# Of the norm. Sums in another order in fp32; in bf16 a weight's gradient is rounded to
# 2**-9 for each chunk in place of each row.
GRADIENTS = {"fp32": 1e-5, "bf16": 2**-7}
LOSS = 1e-5


def make(
    layout: Layout, chunk: int | None, precision: str = "fp32", **more: Any
) -> Any:
    settings = {"mlp_chunk_tokens": chunk, **more}
    return small.make_engine(
        layout, precision=precision, recompute="full", settings=settings
    )


def compare(rank: int, layout: Layout, precision: str) -> dict[str, Any]:
    with small.distributed():
        whole = make(layout, None, precision)
        expected, losses = small.gradients(whole), small.train(whole, range(3))
        engine = make(layout, CHUNK, precision, offload_activations=True)
        found = small.gradients(engine)
        errors = {
            name: float((found[name] - each).norm() / each.norm().clamp_min(1e-12))
            for name, each in expected.items()
        }
        once = make(layout, small.CONTEXT, precision)
        same = small.gradients(once)
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
    chunks = [21, 21, 21, 1]
    for calls in seen.values():
        assert calls == 2 * chunks
    assert sum(chunks) == small.CONTEXT
    assert not other_names, "a checkpoint has other names"


def overlapped(rank: int) -> list[Any]:
    """Losses and norms with gradients that are reduced as soon as a weight is ready, at once
    and in chunks; and what each weight's `main_grad` had when it was.
    """
    import functools

    from megatron.core.distributed import param_and_grad_buffer as upstream

    from alia_ctx.mcore import engine as engine_module

    class Overlapped(engine_module.StageOptimizer):  # type: ignore[misc,valid-type]
        def __init__(self, *arguments: Any, overlap: bool) -> None:
            super().__init__(*arguments, overlap=True)

    ready: dict[int, list[torch.Tensor]] = {}
    group = upstream._ParamAndGradBucketGroup
    register = group.register_grad_ready

    @functools.wraps(register)
    def note(self: Any, param: Any, *more: Any) -> None:
        ready.setdefault(id(param), []).append(param.main_grad.clone())
        register(self, param, *more)

    group.register_grad_ready = note
    engine_module.StageOptimizer = Overlapped
    seen, trained = [], []
    with small.distributed():
        for chunk in (None, CHUNK):
            ready.clear()
            engine = make(Layout(), chunk)
            rows = small.rows_of(0)[rank :: engine.data_parallel_size]
            engine.accumulate_gradients(rows)
            seen.append([ready[id(parameter)] for parameter in engine.parameters()])
            trained.append(small.train(engine, range(3)))
    counts = [[len(each) for each in every] for every in seen]
    assert counts[0] == counts[1], counts
    errors = [
        float((ours[-1] - once[-1]).norm() / once[-1].norm().clamp_min(1e-12))
        for once, ours in zip(*seen, strict=True)
    ]
    return [max(errors), *trained]


def test_gradients_are_whole_when_they_are_reduced_beside_the_backward() -> None:
    for error, expected, found in run_distributed(overlapped, 2):
        assert error < GRADIENTS["fp32"], "a weight was ready before its last chunk"
        for ours, theirs in zip(found, expected, strict=True):
            assert ours == pytest.approx(theirs, rel=100 * LOSS)


def go_on_after_an_error(rank: int) -> list[Any]:
    """Losses of a row with and without an error before it, which leaves upstream's mark that a
    layer is computed again; in evaluation with gradients too.
    """
    from megatron.core.tensor_parallel.random import is_checkpointing

    with small.distributed():
        engine = make(Layout(), CHUNK)
        row = small.rows_of(0)[0]
        batch = engine.passes.batch(row)

        def evaluated() -> bytes:
            engine.chunk.eval()
            with engine.module.output_layer.predicting(batch.targets, None):
                engine.passes.forward(batch, engine.chunk)
            losses = engine.module.output_layer.take_losses()
            engine.chunk.train()
            return bytes(losses.values.detach().numpy().tobytes())

        def fail(*_: Any) -> None:
            raise RuntimeError("out of memory")

        expected = evaluated()
        hook = engine.module.decoder.layers[1].mlp.linear_fc2.register_forward_hook(
            fail
        )
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.accumulate_gradients([row])
        hook.remove()
        return [is_checkpointing(), evaluated() == expected]


def test_an_error_in_a_layer_leaves_no_layer_out() -> None:
    (found,) = run_distributed(go_on_after_an_error, 1)
    assert found == [True, True]


def test_gradients_of_one_chunk_are_there_at_a_time() -> None:
    """Of its weights: those of the chunk before are gone when the next one is computed."""
    from alia_ctx.mcore import chunked_mlp

    alive: list[int] = []
    made: list[Any] = []

    class Weighted(torch.nn.Module):
        chunk_tokens = 5

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 4))
            self.weight.main_grad = torch.zeros(4, 4)  # type: ignore[attr-defined]

        def whole(self, hidden: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                alive.append(sum(each() is not None for each in made))
            output = hidden @ self.weight
            if torch.is_grad_enabled():
                output.grad_fn.register_hook(  # type: ignore[union-attr]
                    lambda grads, _: made.append(weakref.ref(grads[1]))
                )
            return output

        by_chunks = chunked_mlp.ChunkedMLP.by_chunks
        parts = chunked_mlp.ChunkedMLP.parts

    mlp, hidden = Weighted(), torch.randn(16, 4, requires_grad=True)
    chunked_mlp._Chunks.apply(mlp, hidden, mlp.weight).sum().backward()
    assert len(made) == 4, "chunks of 5, 5, 5 and 1"
    assert max(alive) == 0
    # 15 tokens' are in the fp32 sum, and the last one's is autograd's.
    expected = hidden.detach().T @ torch.ones(16, 4)
    found = mlp.weight.main_grad + mlp.weight.grad  # type: ignore[attr-defined]
    assert torch.allclose(found, expected, atol=1e-5)


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
