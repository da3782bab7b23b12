"""Tensor-parallel layers in chunks of tokens: layers to the bit, the order of messages and
products, and engines on several layouts against those at once and on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from alia_ctx.errors import LayoutError
from alia_ctx.mcore import chunked_linear
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed
from tests.gpu.layouts import Seen
from tests.mcore import chunk_messages
from tests.mcore.linears import differences

# (tokens of a rank, chunks): even, uneven, more chunks than tokens, one token, one chunk,
# and chunks of whole tiles, the last of which is shorter.
CUTS = [(12, 4), (13, 3), (2, 5), (1, 4), (7, 1), (300, 2), (389, 3)]


def layers(rank: int) -> dict[str, dict[str, float]]:
    with small.distributed():
        found = {
            f"{precision} {tokens} in {chunks}": differences(
                precision,  # type: ignore[arg-type]
                tokens,
                chunks,
            )
            for precision in ("fp32", "bf16")
            for tokens, chunks in CUTS
        }
        return found | {"of two": differences("fp32", 5, 3, batch=2)}


@pytest.mark.parametrize("tp", [2, 3, 4])
def test_layers_are_upstreams_and_the_dense_product_to_the_bit(tp: int) -> None:
    for found in run_distributed(layers, tp):
        for case, apart in found.items():
            assert set(apart.values()) == {0.0}, (case, apart)
            assert len(apart) == 14, "a result is missing"


@pytest.mark.parametrize(
    ("tokens", "count", "lengths"),
    [
        (12, 4, [3, 3, 3, 3]),
        (13, 3, [5, 5, 3]),
        (2, 5, [1, 1]),
        (0, 3, []),
        (128, 1, [128]),
        (300, 2, [256, 44]),
        (8192, 4, [2048] * 4),
        (5120, 3, [1792, 1792, 1536]),
    ],
)
def test_chunks_follow_each_other_in_whole_tiles(
    tokens: int, count: int, lengths: list[int]
) -> None:
    parts = chunked_linear.chunks_of(tokens, count)
    assert [part.stop - part.start for part in parts] == lengths
    assert [n for part in parts for n in range(tokens)[part]] == list(range(tokens))


class _Group:
    """A group of two that holds what this rank holds twice."""

    def size(self) -> int:
        return 2


class _Work:
    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def wait(self) -> None:
        self.log.append(f"wait {self.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Messages, waits and products in their order; all numbered from 0."""
    entries: list[str] = []
    numbers = {"gather": 0, "scatter": 0, "product": 0}
    product = torch.bmm

    def noted(kind: str) -> str:
        entries.append(f"{kind} {numbers[kind]}")
        numbers[kind] += 1
        return entries[-1]

    def into_one(out: Any, own: Any, *, group: Any, async_op: bool) -> _Work:
        assert async_op
        out.copy_(own.repeat(2, 1))
        return _Work(entries, noted("gather"))

    def into_several(out: Any, own: Any, *, group: Any, async_op: bool) -> _Work:
        assert async_op
        for each in out:
            each.copy_(own)
        return _Work(entries, noted("gather"))

    def scatter(out: Any, everyone: Any, *, group: Any, async_op: bool) -> _Work:
        assert async_op
        out.copy_(everyone.chunk(2)[0] * 2)
        return _Work(entries, noted("scatter"))

    def multiply(*factors: Any, out: Any) -> None:
        noted("product")
        product(*factors, out=out)

    monkeypatch.setattr(dist, "all_gather_into_tensor", into_one)
    monkeypatch.setattr(dist, "all_gather", into_several)
    monkeypatch.setattr(dist, "reduce_scatter_tensor", scatter)
    monkeypatch.setattr(torch, "bmm", multiply)
    yield entries


BESIDE = [
    *("gather 0", "gather 1"),
    *("wait gather 0", "product 0", "gather 2"),
    *("wait gather 1", "product 1", "gather 3"),
    *("wait gather 2", "product 2"),
    *("wait gather 3", "product 3"),
]


def test_a_chunk_is_gathered_beside_the_product_of_the_one_before(
    log: list[str],
) -> None:
    with torch.no_grad():
        chunked_linear._GatherAndMultiply.apply(
            torch.ones(8, 1, 3), torch.ones(5, 3), None, _Group(), 4
        )
    assert log == BESIDE


def test_a_chunk_is_scattered_beside_the_product_of_the_next(log: list[str]) -> None:
    weight = torch.ones(5, 3, requires_grad=True)
    features = torch.ones(16, 1, 3, requires_grad=True)
    output = chunked_linear._MultiplyAndScatter.apply(features, weight, _Group(), 4)
    assert log == [
        *("product 0", "scatter 0", "product 1", "scatter 1"),
        *("wait scatter 0", "product 2", "scatter 2"),
        *("wait scatter 1", "product 3", "scatter 3"),
        *("wait scatter 2", "wait scatter 3"),
    ]
    log.clear()
    output.sum().backward()
    forward = 4  # products, from which those of the backward count on
    assert log == [
        f"product {int(entry[-1]) + forward}" if entry.startswith("product") else entry
        for entry in BESIDE
    ]


# -- engines ---------------------------------------------------------------------------

CHUNKS = 3
MODES: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute": "selective"},
    "full": {"recompute": "full", "offload_activations": True},
    "mlp in chunks": {"recompute": "full", "mlp_chunk_tokens": 20},
    "offloaded": {"offload_activations": True},
}


def make(
    layout: Layout,
    chunks: int,
    precision: str = "fp32",
    *,
    recompute: str = "none",
    trains: bool = True,
    bias: bool = True,
    **settings: Any,
) -> Any:
    return small.make_engine(
        layout,
        precision=precision,
        recompute=recompute,
        train=trains,
        settings={"tp_overlap_chunks": chunks, **settings},
        attention_bias=bias,
    )


def in_chunks(engine: Any) -> int:
    """Linear layers of an engine that take their tokens in chunks."""
    return sum(hasattr(part, "chunks") for part in engine.module.modules())


def engines(rank: int, layout: Layout, precision: str, mode: str) -> dict[str, Any]:
    """An engine in chunks beside one at once, and, on two ranks, one of no tensor
    parallelism.
    """
    settings = MODES[mode]
    with small.distributed():
        whole = make(layout, 1, precision, **settings)
        expected, losses = small.gradients(whole), small.train(whole, range(3))
        engine = make(layout, CHUNKS, precision, **settings)
        found = small.gradients(engine)
        errors = {
            name: float((found[name] - each).norm() / each.norm().clamp_min(1e-12))
            for name, each in expected.items()
        }
        trained = small.train(engine, range(3))
        assert in_chunks(engine) == 4 * len(engine.module.decoder.layers)
        alone = make(Layout(), CHUNKS, precision)
        assert in_chunks(whole) == in_chunks(alone) == 0
        return {
            "errors": errors,
            "losses": (trained, losses),
            "alone": small.train(alone, range(3)),
        }


# Of the norm. In fp32 a kernel may sum a row in another order where it is given fewer
# rows; in bf16 that is a rounding of 2**-9, here and there, of which sums are formed.
SAME = {"fp32": 1e-6, "bf16": 2**-8}
LAYOUTS = [
    (Layout(tp=2), "fp32", "none"),
    (Layout(tp=2), "bf16", "none"),
    *((Layout(tp=2), "fp32", mode) for mode in list(MODES)[1:]),
    (Layout(tp=4), "fp32", "none"),
    (Layout(tp=4), "bf16", "mlp in chunks"),
    (Layout(tp=2, cp=2), "fp32", "none"),
    (Layout(tp=2, pp=2), "fp32", "none"),
]


@pytest.mark.parametrize(("layout", "precision", "mode"), LAYOUTS, ids=str)
def test_an_engine_trains_as_at_once_and_as_without_tensor_parallelism(
    layout: Layout, precision: str, mode: str
) -> None:
    same, of_layouts = SAME[precision], {"fp32": 1e-6, "bf16": 2e-3}[precision]
    for found in run_distributed(engines, layout.model_ranks, layout, precision, mode):
        assert max(found["errors"].values()) <= same, found["errors"]
        ours, whole = found["losses"]
        for a, b in zip(ours, whole, strict=True):
            assert a == pytest.approx(b, rel=100 * same)
        for a, b in zip(ours[:1], found["alone"][:1], strict=True):
            assert a[0] == pytest.approx(b[0], rel=of_layouts)
            assert a[1] == pytest.approx(b[1], rel=10 * of_layouts)


def measured(rank: int) -> dict[str, Any]:
    """Losses of an engine that cannot train, names on disk, and messages of a forward."""
    sent: list[int] = []
    gather = dist.all_gather_into_tensor

    def noted(out: Any, own: Any, **how: Any) -> Any:
        sent.append(len(own))
        return gather(out, own, **how)

    row = small.rows_of(0)[0]
    with small.distributed():
        found = {}
        for chunks in (1, CHUNKS):
            engine = make(Layout(tp=2), chunks, trains=False)
            sent.clear()
            dist.all_gather_into_tensor = noted  # type: ignore[assignment]
            losses = engine.row_losses([row])
            dist.all_gather_into_tensor = gather
            found[chunks] = (
                [each.values.tolist() for each in losses],
                {
                    name: getattr(each, "global_shape", None)
                    for name, each in engine.module.sharded_state_dict().items()
                },
                list(sent),
            )
        return found


def test_evaluation_checkpoints_and_the_number_of_messages() -> None:
    first, _ = run_distributed(measured, 2)
    (losses, names, of_head), (ours, our_names, sent) = first[1], first[CHUNKS]
    assert ours == [pytest.approx(each, rel=1e-6) for each in losses] and losses
    assert our_names == names
    # 32 tokens a rank, of 4 layers Q, K, V and gate with up; the head is left as it is.
    assert sent == [11, 11, 10] * 4 * 2 + of_head


def counted(rank: int, broken: str) -> dict[str, Any]:
    """What `tests/gpu/layouts.py` sees of an engine in chunks, and without them, on hosts;
    with one of the four places `broken`, at once where it should be in chunks.
    """
    with small.distributed():
        scattering = chunked_linear._MultiplyAndScatter
        in_backward = scattering.backward
        if broken == "backward":

            def at_once(ctx: Any, gradient: Any) -> Any:
                ctx.chunks = 1
                return in_backward(ctx, gradient)

            scattering.backward = staticmethod(at_once)  # type: ignore[method-assign]
        found = {}
        for chunks in (1, CHUNKS):
            engine = make(Layout(tp=2), chunks)
            for name, part in engine.module.named_modules():
                if broken and name.endswith(broken) and hasattr(part, "chunks"):
                    part.chunks = 1
            seen = Seen(engine)
            small.train(engine, range(2))
            found[chunks] = seen.report()["messages"]
        return found


# Of two linear layers of a kind one in chunks of 11 tokens, the other's 32 at once.
ONE_OF_TWO = [CHUNKS + 1, 32]


@pytest.mark.parametrize(
    ("broken", "others"),
    [
        ("", {}),
        ("backward", {"backward gather": [2, 32]}),
        ("linear_qkv", {"forward gather": ONE_OF_TWO}),
        ("linear_fc1", {"forward gather": ONE_OF_TWO}),
        *(
            (name, dict.fromkeys(("forward scatter", "backward gather"), ONE_OF_TWO))
            for name in ("linear_proj", "linear_fc2")
        ),
    ],
)
def test_messages_are_counted_as_on_gpus(broken: str, others: dict[str, Any]) -> None:
    """Forward and backward, of gathers and scatters: at once anywhere is seen."""
    whole = chunk_messages.expected(CHUNKS, 11)
    for found in run_distributed(counted, 2, broken):
        assert found == {1: {}, CHUNKS: whole | others}


def test_other_layers_are_refused() -> None:
    with pytest.raises(LayoutError, match=r"engine\.tp_overlap_chunks: .*=local"):
        chunked_linear.take_linears_in_chunks(None, "te", 4)  # type: ignore[arg-type]
