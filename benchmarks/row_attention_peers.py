"""Methods of context-parallel attention of other packages, each as its own pages advise:
torch's `context_parallel`, TransformerEngine's DotProductAttention, ring-flash-attn.

Written against torch 2.11, TransformerEngine 2.12 and ring-flash-attn 0.1.8. A method that
cannot do a row raises UnableError, or what its package raises.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from benchmarks.releases import ENGINE, TE
from benchmarks.row_attention import (
    DEVICE,
    DIM,
    GROUPS,
    HEADS,
    SCALE,
    Maker,
    Method,
    Row,
    UnableError,
    gather,
    ours,
    ulysses,
)
from benchmarks.row_placement import dual_chunks, even_share, padded
from benchmarks.te_backends import (
    flash_alone,
    package_words,
    require_flash,
    te_backend,
)

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]


# torch ------------------------------------------------------------------------------------


def sdpa(q: Tensor, k: Tensor, v: Tensor, *, grouped: bool = True) -> Tensor:
    """torch's attention of one document: output [t, h, d] of queries [t, h, d], keys and
    values [t, g, d]. Without `grouped` keys and values are repeated for their heads.
    """
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    if not grouped:
        repeats = q.shape[1] // k.shape[1]
        k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    out = functional.scaled_dot_product_attention(
        q, k, v, is_causal=True, scale=SCALE, enable_gqa=grouped
    )
    return out[0].transpose(0, 1)


@functools.cache
def _mesh(cp: int) -> Any:
    return torch.distributed.device_mesh.init_device_mesh(DEVICE, (cp,))


@contextlib.contextmanager
def torch_ring(
    row: Row, *, backend: str = "CUDNN_ATTENTION", grouped: bool = True
) -> Iterator[Method]:
    """Ring attention over SDPA, with its own load balancing (rank r has chunks r and
    2*cp-1-r of the row) and its default way to move keys, an all-gather.

    A buffer of positions is cut as its page shows it, and says which tokens are whose.
    Without `grouped` keys and values are repeated for the heads of a group.
    """
    from torch.distributed.tensor.experimental import context_parallel
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if row.cp == 1:
        raise UnableError("there is one rank")
    if row.documents > 1:
        raise UnableError("it has no mask of documents")
    places = torch.arange(row.length, device=DEVICE)[None]  # the batch comes first
    heads = "" if grouped else ", keys and values repeated"
    with (
        sdpa_kernel(getattr(SDPBackend, backend)),
        context_parallel(_mesh(row.cp), buffers=[places], buffer_seq_dims=[1]),
    ):
        yield Method(
            functools.partial(sdpa, grouped=grouped),
            places[0].cpu().numpy().copy(),
            lambda: f"torch {torch.__version__}, {backend.lower()}{heads}",
        )


# TransformerEngine ------------------------------------------------------------------------


@functools.cache
def _groups(communication: str, cp: int, rank: int) -> Any:
    """The process group, or those of all-to-all (pairs) and point-to-point."""
    if communication != "a2a+p2p":
        return dist.group.WORLD
    if cp < 4 or cp % 2:
        raise UnableError("two levels need an even number of at least 4 ranks")
    own = []
    pairs = [range(i, i + 2) for i in range(0, cp, 2)]
    for ranks in [*pairs, range(0, cp, 2), range(1, cp, 2)]:
        group = dist.new_group(list(ranks))
        if rank in ranks:
            own.append(group)
    return own


@contextlib.contextmanager
def transformer_engine(
    row: Row,
    *,
    communication: str = "p2p",
    fill_attends: bool = False,
    flash: bool = False,
) -> Iterator[Method]:
    """DotProductAttention, one document as `bshd`, several as `thd` with `cu_seqlens`; with
    the kernel that it chooses, or with `flash` by FlashAttention alone.

    Under context parallelism each document is filled up to a multiple of 2*cp. The fill
    is left out by `cu_seqlens_*_padded`, or with `fill_attends` counted to the
    document, at whose end no real token sees it.
    """
    attention = te_attention(HEADS, GROUPS, row.documents > 1)
    tokens, bounds = np.arange(row.length), row.offsets
    if row.cp > 1:
        stream = torch.cuda.Stream() if DEVICE == "cuda" else None
        attention.set_context_parallel_group(
            _groups(communication, row.cp, row.rank),
            list(range(row.cp)),
            stream,
            communication,
        )
        bounds = padded(row.offsets, 2 * row.cp)
        tokens = dual_chunks(row.offsets, row.cp, row.rank)
    forward = te_forward(attention, row.offsets, bounds, row.cp, fill_attends)
    fill = f", {bounds[-1] - row.length} tokens filled up"
    fill += " that attend" if fill_attends else ""
    form = "thd" if row.documents > 1 else "bshd"

    def by_flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = forward(q, k, v)
        require_flash()
        return out

    with flash_alone() if flash else contextlib.nullcontext():
        yield Method(
            by_flash if flash else forward,
            tokens,
            lambda: f"{te_backend()}, {form}{fill}",
        )


def te_attention(heads: int, groups: int, several: bool) -> Any:
    """DotProductAttention for one document, or for several."""
    from transformer_engine.pytorch import DotProductAttention

    form, mask = ("thd", "padding_causal") if several else ("bshd", "causal")
    return DotProductAttention(
        heads,
        DIM,
        num_gqa_groups=groups,
        attention_dropout=0.0,
        qkv_format=form,
        attn_mask_type=mask,
        softmax_scale=SCALE,
    ).to(DEVICE)


def te_forward(
    attention: Any,
    offsets: np.ndarray,
    bounds: np.ndarray,
    cp: int,
    fill_attends: bool = False,
) -> Forward:
    """The forward of `te_attention` over documents `offsets` that lie at `bounds`."""
    several = len(offsets) > 2
    options = thd_options(offsets, bounds, cp, fill_attends) if several else {}

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if not several:
            q, k, v = q[None], k[None], v[None]
        out = attention(q, k, v, **options)
        return out if several else out[0]

    return forward


def thd_options(
    offsets: np.ndarray, bounds: np.ndarray, cp: int, fill_attends: bool
) -> dict[str, Any]:
    """Arguments of documents `offsets` that lie at `bounds`, of all ranks together."""
    real, filled = (
        torch.from_numpy(x.astype(np.int32)).to(DEVICE)
        for x in (bounds if fill_attends else offsets, bounds)
    )
    # As it rounds the longest length where it has to look for it, which it advises to
    # spare it.
    longest = -(-int(np.diff(bounds).max()) // 64) * 64
    options = {
        "cu_seqlens_q": real,
        "cu_seqlens_kv": real,
        "max_seqlen_q": longest,
        "max_seqlen_kv": longest,
        "pad_between_seqs": not torch.equal(real, filled),
    }
    if cp > 1:
        options |= {"cu_seqlens_q_padded": filled, "cu_seqlens_kv_padded": filled}
    return options


# ring-flash-attn --------------------------------------------------------------------------


def _ring_flash_attn() -> Any:
    """The package, without its adapter to transformers. It imports that by itself, and with it
    a name that transformers 5 no longer has (ring_flash_attn.adapters.hf_adapter).
    """
    adapters = types.ModuleType("ring_flash_attn.adapters")
    adapters.substitute_hf_flash_attn = None  # type: ignore[attr-defined]
    adapters.update_ring_flash_attn_params = None  # type: ignore[attr-defined]
    sys.modules.setdefault(adapters.__name__, adapters)
    import ring_flash_attn

    return ring_flash_attn


def _ring_words() -> str:
    return f"{package_words('ring-flash-attn')}, {package_words('flash-attn')}"


@contextlib.contextmanager
def ring_zigzag(row: Row) -> Iterator[Method]:
    """Its zigzag ring: of one document, or of several, each filled up and cut."""
    if row.cp == 1:
        raise UnableError("there is one rank")
    package = _ring_flash_attn()
    tokens = dual_chunks(row.offsets, row.cp, row.rank)
    bounds = padded(row.offsets, 2 * row.cp)
    options = {"causal": True, "softmax_scale": SCALE, "group": row.group}
    # Of one rank: each has an even share of each document.
    own = torch.from_numpy((bounds // row.cp).astype(np.int32)).to(DEVICE)
    longest = int(np.diff(bounds).max()) // row.cp

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if row.documents > 1:
            return package.zigzag_ring_flash_attn_varlen_func(
                q, k, v, own, longest, **options
            )
        return package.zigzag_ring_flash_attn_func(
            q[None], k[None], v[None], **options
        )[0]

    fill = bounds[-1] - row.length
    yield Method(
        forward, tokens, lambda: f"{_ring_words()}, {fill} tokens filled up that attend"
    )


@contextlib.contextmanager
def ring_llama3(row: Row) -> Iterator[Method]:
    """Its gather of keys, a few heads at a time, which it recommends for packed rows; four
    heads of keys at a time, as in its own benchmark.
    """
    package = _ring_flash_attn()
    offsets = torch.from_numpy(row.offsets.astype(np.int32)).to(DEVICE)
    *spec, keys = package.llama3_flash_attn_prepare_cu_seqlens(
        offsets, causal=True, rank=row.rank, world_size=row.cp
    )

    def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return package.llama3_flash_attn_varlen_func(
            *(q, k, v, *spec),
            heads_k_stride=4,
            local_k_slice=keys,
            causal=True,
            softmax_scale=SCALE,
            group=row.group,
        )

    share = even_share(row.length, row.cp, row.rank)
    yield Method(forward, share, _ring_words)


# All --------------------------------------------------------------------------------------


def _torch(backend: str) -> tuple[Maker, ...]:
    return tuple(
        functools.partial(torch_ring, backend=backend, grouped=grouped)
        for grouped in (True, False)
    )


def _te(communication: str, *, flash: bool = False) -> tuple[Maker, ...]:
    return tuple(
        functools.partial(
            transformer_engine,
            communication=communication,
            fill_attends=attends,
            flash=flash,
        )
        for attends in (False, True)
    )


# Of the forms of a method the first is taken that computes a small row rightly.
METHODS: dict[str, tuple[Maker, ...]] = {
    "ours": (ours,),
    "ours, zigzag": (functools.partial(ours, balanced=False),),
    "gather": (gather,),
    "ulysses": (ulysses,),
    "torch, cuDNN": _torch("CUDNN_ATTENTION"),
    "torch, flash": _torch("FLASH_ATTENTION"),
    "TransformerEngine p2p": _te("p2p"),
    "TransformerEngine all_gather": _te("all_gather"),
    "TransformerEngine a2a": _te("a2a"),
    "TransformerEngine a2a+p2p": _te("a2a+p2p"),
    **{
        f"TransformerEngine {communication}, flash": _te(communication, flash=True)
        for communication in ("p2p", "all_gather", "a2a")
    },
    "ring-flash-attn zigzag": (ring_zigzag,),
    "ring-flash-attn llama3": (ring_llama3,),
}


def packages_of(method: str) -> tuple[str, ...]:
    """The distributions that may compute it (`releases.MODULES`), beside torch."""
    if method.startswith("TransformerEngine"):
        return TE
    if method.startswith("ring-flash-attn"):
        return ("ring-flash-attn", "flash-attn")
    return () if method.startswith("torch, ") else ENGINE
