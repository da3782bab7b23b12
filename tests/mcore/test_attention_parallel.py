"""PackedAttention on real process groups against one dense fp64 computation, for every
layout of four ranks.

All layouts share one set of four processes, as starting Megatron costs far more than the cases.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alia_ctx.errors import LayoutError
from alia_ctx.nn.context_parallel import Balance
from alia_ctx.spec.rope import RopeSpec
from tests import dense
from tests.distributed import run_distributed

WORLD = 4
LAYOUTS = (
    (1, 1),
    (1, 2),
    (1, 4),
    (2, 1),
    (2, 2),
)  # (tp, cp); sequence parallelism wherever tp > 1
LENGTH, HEADS, GROUPS, DIM, HIDDEN = 96, 4, 2, 16, 24
ROPE = RopeSpec(
    "yarn", 1e4, 8.0, 16
)  # a factor on cos and sin, so that losing it would show
ROWS = {
    "one document": [0, 96],
    "across all chunks": [0, 5, 41, 42, 43, 77, 96],
    "fill": [0, 30, 61],
    "only fill": [0],
    "single tokens": list(range(0, 96, 1)),
    "a document a chunk": list(range(0, 97, 12)),
}
TOLERANCE = 1e-5  # relative, fp32; what is measured is 1e-7 to 5e-7


@pytest.mark.timeout(580)
def test_every_layout_equals_dense_fp64() -> None:
    run_distributed(check_all_layouts, WORLD, timeout=560)


def check_all_layouts(rank: int) -> None:
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    from alia_ctx.mcore import host

    host.activate()
    for tp, cp in LAYOUTS:
        parallel_state.initialize_model_parallel(
            tensor_model_parallel_size=tp, context_parallel_size=cp
        )
        model_parallel_cuda_manual_seed(1)
        for name, offsets in ROWS.items():
            with annotated(f"tp={tp} cp={cp}, {name}"):
                check_core(tp, cp, np.array(offsets))
                check_core(
                    tp, cp, np.array(offsets), Balance(pairs_per_token=0, tolerance=1.0)
                )
                check_core_bf16(tp, cp, np.array(offsets))
                check_self_attention(
                    tp, cp, np.array(offsets), recompute=name == "fill"
                )
        check_refusals(tp, cp)
        parallel_state.destroy_model_parallel()


class annotated:  # noqa: N801  (reads as a word where it is used)
    """Say which case failed: the traceback comes from another process."""

    def __init__(self, case: str) -> None:
        self.case = case

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is not None:
            error.add_note(f"case: {self.case}")


def transformer_config(tp: int, cp: int, **changes: Any) -> Any:
    from megatron.core.transformer.transformer_config import TransformerConfig

    options = dict(
        num_layers=1,
        hidden_size=HIDDEN,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        kv_channels=DIM,
        add_bias_linear=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        tensor_model_parallel_size=tp,
        context_parallel_size=cp,
        sequence_parallel=tp > 1,
        use_cpu_initialization=True,
        masked_softmax_fusion=False,
        gradient_accumulation_fusion=False,
        params_dtype=torch.float32,
    )
    return TransformerConfig(**{**options, **changes})


def groups_and_row(
    cp: int, offsets: np.ndarray, balance: Balance | None = None
) -> tuple[Any, Any, np.ndarray]:
    from megatron.core.process_groups_config import ProcessGroupCollection

    from alia_ctx.mcore.attention import row_geometry

    groups = ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
    row = row_geometry(
        offsets, LENGTH, cp, groups.cp.rank(), ROPE, DIM, balance=balance
    )
    return groups, row, np.concatenate([np.arange(*r) for r in row.rank.ranges])


def build_core(tp: int, cp: int, **changes: Any) -> Any:
    from megatron.core.transformer.enums import AttnMaskType

    from alia_ctx.mcore.attention import PackedAttention

    return PackedAttention(
        transformer_config(tp, cp, **changes),
        1,
        AttnMaskType.padding,
        "self",
        kernel="reference",
    )


def random_qkv() -> list[Tensor]:
    torch.manual_seed(7)
    return [
        torch.randn(LENGTH, heads, DIM, dtype=torch.float64)
        for heads in (HEADS, GROUPS, GROUPS, HEADS)
    ]


def dense_core(
    qkv: list[Tensor], offsets: np.ndarray, upstream: Tensor
) -> list[Tensor]:
    """Output and gradients of q, k, v, all fp64."""
    exact = [x.clone().requires_grad_() for x in qkv]
    out = dense.packed(*exact, offsets.tolist(), ROPE)
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in exact)]


def core_on_this_rank(
    tp: int,
    cp: int,
    offsets: np.ndarray,
    dtype: torch.dtype,
    balance: Balance | None = None,
) -> tuple[list[Tensor], Any]:
    """This rank's output and gradients, and a function that cuts its share out of a
    dense result.
    """
    groups, row, tokens = groups_and_row(cp, offsets, balance)

    def share(x: Tensor) -> Tensor:
        return x[tokens].chunk(tp, dim=1)[groups.tp.rank()]

    *qkv, upstream = [share(x).to(dtype) for x in random_qkv()]
    ours = [x.clone().requires_grad_() for x in qkv]
    out = build_core(tp, cp)(*ours, None, packed_seq_params=row)
    assert out.shape == (len(tokens), HEADS // tp * DIM)
    out.backward(upstream.flatten(1))
    return [out.detach().unflatten(1, (-1, DIM)), *(x.grad for x in ours)], share


def check_core(
    tp: int, cp: int, offsets: np.ndarray, balance: Balance | None = None
) -> None:
    *qkv, upstream = random_qkv()
    expected = dense_core(qkv, offsets, upstream)
    ours, share = core_on_this_rank(tp, cp, offsets, torch.float32, balance)
    # Where a query has one key the gradients of q and k are exactly 0: differences of
    # fp32 terms as large as dO.
    floor = 1e-6 * share(upstream).norm()
    for mine, whole in zip(ours, expected, strict=True):
        assert (mine - share(whole)).norm() <= TOLERANCE * share(whole).norm() + floor


def check_core_bf16(tp: int, cp: int, offsets: np.ndarray) -> None:
    """No further from exact than twice what rounding the inputs once to bf16 does to the
    exact computation.

    Besides the inputs, the rotated q and k, the output and the returned gradients are
    rounded once each, every one as large as an input's: four of equal size add to two
    in quadrature. The partial gradients that other ranks return are rounded once before
    they are summed in fp32, which is no more than the one of a sum. Compared by the
    norm of each tensor's share of this rank.
    """
    *qkv, upstream = random_qkv()
    exact = dense_core(qkv, offsets, upstream)
    rounded = dense_core(
        [x.bfloat16().double() for x in qkv], offsets, upstream.bfloat16().double()
    )
    ours, share = core_on_this_rank(tp, cp, offsets, torch.bfloat16)
    for mine, true, once in zip(ours, exact, rounded, strict=True):
        assert mine.dtype == torch.bfloat16
        explained = share(once - true).norm() + 1e-6 * share(upstream).norm()
        assert (mine.double() - share(true)).norm() <= 2 * explained


def check_self_attention(
    tp: int, cp: int, offsets: np.ndarray, recompute: bool
) -> None:
    """Upstream's SelfAttention around it, with sequence-parallel linear layers:

    output, input and weight gradients.
    """
    torch.manual_seed(3)
    hidden = torch.randn(LENGTH, HIDDEN, dtype=torch.float64)
    upstream = torch.randn(LENGTH, HIDDEN, dtype=torch.float64)
    # Scores of order one: with larger ones the softmax itself, not its computation,
    # would amplify fp32 inputs' error.
    shapes = [((HEADS + 2 * GROUPS) * DIM, HIDDEN), (HIDDEN, HEADS * DIM)]
    weights = [
        torch.randn(shape, dtype=torch.float64) / shape[1] ** 0.5 for shape in shapes
    ]
    expected = dense_self_attention(hidden, weights, offsets, upstream)

    changes = (
        {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
        if recompute
        else {}
    )
    groups, row, tokens = groups_and_row(cp, offsets)
    module = build_self_attention(transformer_config(tp, cp, **changes), groups)
    tp_rank = groups.tp.rank()
    with torch.no_grad():
        module.linear_qkv.weight.copy_(weights[0].chunk(tp, dim=0)[tp_rank])
        module.linear_proj.weight.copy_(weights[1].chunk(tp, dim=1)[tp_rank])
    mine = tokens.reshape(tp, -1)[tp_rank]
    own = hidden[mine][:, None].float().requires_grad_()
    out, _ = module(own, None, packed_seq_params=row)
    out.backward(upstream[mine][:, None].float())

    for weight in (module.linear_qkv.weight, module.linear_proj.weight):
        torch.distributed.all_reduce(weight.grad, group=groups.cp)
    pairs = [
        (out[:, 0], expected[0][mine]),
        (own.grad[:, 0], expected[1][mine]),
        (module.linear_qkv.weight.grad, expected[2].chunk(tp, dim=0)[tp_rank]),
        (module.linear_proj.weight.grad, expected[3].chunk(tp, dim=1)[tp_rank]),
    ]
    for which, (ours, theirs) in enumerate(pairs):
        error = dense.relative_error(ours, theirs)
        assert error <= TOLERANCE, f"tensor {which}: {error:.2e}"


def build_self_attention(config: Any, groups: Any) -> Any:
    from megatron.core.tensor_parallel.layers import (
        ColumnParallelLinear,
        RowParallelLinear,
    )
    from megatron.core.transformer.attention import (
        SelfAttention,
        SelfAttentionSubmodules,
    )

    from alia_ctx.mcore.attention import PackedAttention

    parts = SelfAttentionSubmodules(
        linear_qkv=ColumnParallelLinear,
        core_attention=functools.partial(PackedAttention, kernel="reference"),
        linear_proj=RowParallelLinear,
    )
    return SelfAttention(config, parts, layer_number=1, pg_collection=groups)


def dense_self_attention(
    hidden: Tensor, weights: list[Tensor], offsets: np.ndarray, upstream: Tensor
) -> list[Tensor]:
    """Output and the gradients of hidden states, QKV weight (upstream's interleaving by
    group) and projection.
    """
    leaves = [x.clone().requires_grad_() for x in (hidden, *weights)]
    grouped = (leaves[0] @ leaves[1].T).view(LENGTH, GROUPS, HEADS // GROUPS + 2, DIM)
    query = grouped[:, :, :-2].reshape(LENGTH, HEADS, DIM)
    attended = dense.packed(
        query, grouped[:, :, -2], grouped[:, :, -1], offsets.tolist(), ROPE
    )
    out = attended.flatten(1) @ leaves[2].T
    out.backward(upstream)
    return [out.detach(), *(x.grad for x in leaves)]


def check_refusals(tp: int, cp: int) -> None:
    core = build_core(tp, cp)
    q = torch.zeros(4, HEADS // tp, DIM)
    with pytest.raises(LayoutError, match="pass a RowGeometry"):
        core(q, q, q, None, packed_seq_params=None)
    with pytest.raises(LayoutError, match=r"attention_dropout=0\.1.*set it to 0"):
        build_core(tp, cp, attention_dropout=0.1)
    if tp == 2:
        with pytest.raises(LayoutError, match="tp=2 does not divide 3 attention heads"):
            build_core(
                tp,
                cp,
                num_attention_heads=3,
                num_query_groups=3,
                tensor_model_parallel_size=1,
                sequence_parallel=False,
            )
