"""`engine.offload_activations` with full recomputation: the same training to the last bit,
and host memory as the planner counts it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from alia_ctx.errors import LayoutError
from alia_ctx.nn.input_offload import InputOffload
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

LAYOUTS = [Layout(), Layout(cp=2), Layout(tp=2), Layout(pp=2)]
LAYERS, UPDATES = 6, 3
INPUT = (
    small.CONTEXT * 32 * 4
)  # bytes of a row's hidden states in fp32, cut by cp and tp


def offload_of(engine: Any) -> InputOffload:
    """What the engine's forwards enter."""
    return engine.passes.forward_context.__self__  # type: ignore[no-any-return]


def weights(engine: Any) -> str:
    digest = hashlib.sha256()
    for parameter in engine.parameters():
        digest.update(parameter.detach().float().numpy().tobytes())
    return digest.hexdigest()


def make(layout: Layout, *, offload: bool, precision: str = "fp32") -> Any:
    return small.make_engine(
        layout,
        recompute="full",
        offload=offload,
        precision=precision,
        num_hidden_layers=LAYERS,
    )


def train(engine: Any) -> tuple[list[Any], list[int]]:
    """Updates with an evaluation between them: losses, norms, and the weights after; and
    the host's buffers after each update, those that were used at once.
    """
    found: list[Any] = []
    buffers = []
    for update in range(UPDATES):
        found += small.train(engine, [update])
        rows = engine.row_losses(small.rows_of(9)[:2])
        found += [row.values.tobytes() for row in rows]
        if engine.config.offload_activations:
            pool = offload_of(engine).buffers
            assert pool.out == 0, "a buffer did not come back"
            assert pool.most == pool.count, "buffers that nothing uses"
            buffers.append(pool.most)
    return [*found, weights(engine)], buffers


def train_both(rank: int, layout: Layout, precision: str) -> tuple[Any, ...]:
    """With and without, buffers after each update, and bytes of one."""
    with small.distributed():
        plain, _ = train(make(layout, offload=False, precision=precision))
        engine = make(layout, offload=True, precision=precision)
        return plain, *train(engine), offload_of(engine).buffers.nbytes


def planned(layout: Layout, rank: int) -> float:
    """The planner's bytes on the host of a pipeline rank with as many rows."""
    from alia_ctx.planner.memory import GIB, rank_memory
    from alia_ctx.planner.workload import Workload
    from alia_ctx.spec.model import ModelSpec

    rows = 5 * layout.data_parallel(2)
    work = Workload(
        ModelSpec(**{**small.MODEL, "num_hidden_layers": LAYERS}),
        small.CONTEXT,
        layout,
        2,
        rows * small.CONTEXT,
        rows * small.CONTEXT,
        recompute="full",
        precision="fp32",
        offload=True,
    )
    return rank_memory(work, rank, 0.0).offloaded * GIB


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_training_is_the_same_to_the_bit(layout: Layout) -> None:
    ranks = run_distributed(train_both, 2, layout, "fp32")
    for rank, (plain, away, buffers, nbytes) in enumerate(ranks):
        assert away == plain
        assert nbytes == INPUT // layout.cp // layout.tp
        pipeline_rank = rank if layout.pp > 1 else 0
        assert len(set(buffers)) == 1, "host memory grows from update to update"
        assert buffers[0] * nbytes == planned(layout, pipeline_rank) > 0


def test_rows_in_flight_of_a_cut_model_in_bf16() -> None:
    ranks = run_distributed(train_both, 4, Layout(tp=2, pp=2), "bf16")
    for plain, away, buffers, nbytes in ranks:
        assert away == plain
        assert len(set(buffers)) == 1 and buffers[0] > 0 and nbytes == INPUT // 4


def resume(rank: int, folder: str) -> list[Any]:
    """What two more updates give: gone on with, and loaded with and without."""
    layout, path = Layout(pp=2), Path(folder) / "state"
    with small.distributed():
        engine = make(layout, offload=True)
        small.train(engine, range(2))
        small.save(engine, path)
        # A save under way copies what the next update changes.
        found = [(small.train(engine, (2, 3)), weights(engine))]
        for offload in (True, False):
            other = make(layout, offload=offload)
            other.load(path, with_optimizer=True)
            found.append((small.train(other, (2, 3)), weights(other)))
    return found


def test_a_stage_goes_on_with_and_without(tmp_path: Path) -> None:
    for found in run_distributed(resume, 2, str(tmp_path)):
        assert found[0] == found[1] == found[2]


def refuse(rank: int) -> tuple[str, str]:
    from alia_ctx.mcore import offloading
    from alia_ctx.nn import pinned_memory

    # A byte less than two ranks need, for all of a layer's inputs but the last.
    needed = 2 * (LAYERS - 1) * INPUT // 2
    with small.distributed():
        said = []
        for available in (needed - 1, needed):
            offloading.available_memory = lambda available=available: available
            # And a host that has it, where the second rank gets none for its third buffer.
            mapped, left = pinned_memory._mapped, [2 if rank else LAYERS]

            def poor(nbytes: int, left: Any = left, mapped: Any = mapped) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise OSError("no more")
                return mapped(nbytes)

            pinned_memory._mapped = poor
            try:
                make(Layout(cp=2), offload=True)
            except LayoutError as error:
                said.append(str(error))
            pinned_memory._mapped = mapped
        make(Layout(cp=2), offload=True)
    return tuple(said)  # type: ignore[return-value]


def test_hosts_without_the_memory_are_refused_before_the_first_update() -> None:
    for first, second in run_distributed(refuse, 2):
        assert first.startswith("engine.offload_activations: inputs of layers need")
        assert "are available; switch it off" in first
        assert "beside 2 times as many (no more)" in second, "on all ranks alike"


def evaluate(rank: int) -> int:
    with small.distributed():
        engine = small.make_engine(
            Layout(), train=False, recompute="full", offload=True
        )
        return len(engine.row_losses(small.rows_of(0)[:1])) + hasattr(
            engine.passes.forward_context, "__self__"
        )


def test_who_only_evaluates_locks_no_memory() -> None:
    assert run_distributed(evaluate, 1) == [1]
