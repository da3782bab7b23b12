"""Attention of one packed row over context-parallel GPUs: TFLOP/s a GPU, ours beside
Ulysses and a gather of all keys, in one run.

    python -m alia_ctx.cli.launch --nproc-per-node=4 benchmarks/gpu_context_parallel.py \
        --out attention.json \
        --row 32768:8k --row 32768:web --row 163840:one

A row is length:documents: `one`, `8k` (documents of at most 8,192 tokens: half to whole),
`mixed` (half of it one document, the rest like filtered web text) or `web` (all of it).
ALIA-40b's heads, 64 of queries and 8 of keys, 128 wide, bf16; forward and backward with
gradients of queries, keys and values. FLOPs are those that the mask lets through, 4
forward and 10 backward a pair, head and dimension.

ours: the product's: keys travel only to who can see them, rows cut by work.
ours, zigzag: the same, cut in a zigzag whatever the documents.
gather: all keys and values to every rank (as Llama 3 and TransformerEngine's all_gather do),
    reduce-scattered gradients, zigzag cuts, the same kernel.
ulysses: all-to-all of heads against tokens before and after (arXiv 2309.14509), the same
    kernel on whole rows of 1/CP of the heads.
Each is written plainly for this comparison but ours; rotation is in none of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.attention import RowGeometry, attend, row_geometry
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn.attention_kernels import VarlenSpec, resolve_kernel, varlen_attention
from alia_ctx.nn.context_parallel import Balance
from alia_ctx.nn.key_value_exchange import exchange_key_values, open_channels
from benchmarks.attention_work import web_lengths
from benchmarks.gpu_step import ROPE, alia_stack

HEADS, GROUPS, DIM = 64, 8, 128
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a trial of the program
SCALE = DIM**-0.5
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]


def offsets_of(kind: str, length: int) -> np.ndarray:
    """Bounds of the documents of a row, int64 [n+1]."""
    generator = np.random.default_rng(0)
    lengths = {"one": [length], "mixed": [length // 2]}.get(kind, [])
    while (left := length - sum(lengths)) > 0:
        drawn = (
            int(generator.integers(4096, 8193))
            if kind == "8k"
            else web_lengths(generator)
        )
        lengths.append(min(left, drawn))
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


class Peers:
    """The ways to attend, for one row over the group's ranks."""

    def __init__(self, offsets: np.ndarray, kernel: Any) -> None:
        self.offsets, self.kernel = offsets, kernel
        self.length = int(offsets[-1])
        self.group, self.cp = dist.group.WORLD, dist.get_world_size()
        self.rank = dist.get_rank()
        open_channels(self.group, DEVICE)

    def geometry(self, balance: Balance | None) -> RowGeometry:
        return row_geometry(
            *(self.offsets, self.length, self.cp, self.rank, ROPE, DIM, DEVICE),
            balance=balance,
        )

    def ours(self, balance: Balance | None) -> tuple[Attention, np.ndarray]:
        row = self.geometry(balance)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            key_values, wait = exchange_key_values(k, v, row.rank, self.group)
            wait()
            return attend(q, key_values, row, self.kernel, SCALE)

        return forward, _tokens(row)

    def gather(self) -> tuple[Attention, np.ndarray]:
        row = self.geometry(None)
        order = np.concatenate(
            [
                np.arange(*span)
                for rank in range(self.cp)
                for span in row_geometry(
                    *(self.offsets, self.length, self.cp, rank, ROPE, DIM)
                ).rank.ranges
            ]
        )
        back = torch.from_numpy(np.argsort(order)).to(DEVICE)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            kv = _GatherRows.apply(torch.stack([k, v], 1), self.group)[back]
            outputs = []
            for chunk, spec in zip(row.rank.chunks, row.specs, strict=True):
                start = chunk.row[1] - int(chunk.key_offsets[-1])
                keys = kv[start : chunk.row[1]]
                mine = q[slice(*chunk.queries)]
                outputs.append(
                    varlen_attention(
                        mine, keys[:, 0], keys[:, 1], spec, self.kernel, SCALE
                    )
                )
            return torch.cat(outputs)

        return forward, _tokens(row)

    def ulysses(self) -> tuple[Attention, np.ndarray]:
        spec = VarlenSpec.build(self.offsets, self.offsets, DEVICE)

        def to_heads(x: Tensor) -> Tensor:
            t, h, d = x.shape
            parts = x.view(t, self.cp, h // self.cp, d).transpose(0, 1).contiguous()
            return _AllToAll.apply(parts, self.group).flatten(0, 1)

        def to_tokens(x: Tensor) -> Tensor:
            parts = x.view(self.cp, -1, *x.shape[1:]).contiguous()
            out = _AllToAll.apply(parts, self.group)
            return out.transpose(0, 1).flatten(1, 2)

        def forward(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = map(to_heads, (q, k, v))
            return to_tokens(varlen_attention(q, k, v, spec, self.kernel, SCALE))

        size = self.length // self.cp
        return forward, np.arange(self.rank * size, (self.rank + 1) * size)


def _tokens(row: RowGeometry) -> np.ndarray:
    return np.concatenate([np.arange(*span) for span in row.rank.ranges])


class _AllToAll(torch.autograd.Function):
    """Part r of [cp, ...] to rank r; gradients come back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = torch.empty_like(parts, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, parts.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = torch.empty_like(grad, memory_format=torch.contiguous_format)
        dist.all_to_all_single(out, grad.contiguous(), group=ctx.group)
        return out, None


class _GatherRows(torch.autograd.Function):
    """[t, ...] of each rank -> [cp * t, ...]; gradients are reduce-scattered."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        out = x.new_empty(group.size() * x.shape[0], *x.shape[1:])
        dist.all_gather_into_tensor(out, x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_empty(grad.shape[0] // ctx.group.size(), *grad.shape[1:])
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None


def answer(
    forward: Attention,
    leaves: list[Tensor],
    gradient: Tensor,
    tokens: np.ndarray,
    length: int,
) -> list[Tensor]:
    """Norms by token of the output and of the three gradients, over the whole row."""
    output = forward(*leaves)
    found = [output, *torch.autograd.grad(output, leaves, gradient.view_as(output))]
    norms = []
    for x in found:
        of_row = torch.zeros(length, device=DEVICE)
        of_row[torch.from_numpy(tokens).to(DEVICE)] = (
            x.detach().float().flatten(1).norm(dim=1)
        )
        dist.all_reduce(of_row)
        norms.append(of_row)
    return norms


def seconds(step: Callable[[], object], repeats: int) -> list[float]:
    """Of each repeat, the slowest rank's."""
    for _ in range(3):
        step()
    times = []
    for _ in range(repeats):
        dist.all_reduce(torch.zeros(1, device=DEVICE))
        _synchronize()
        began = time.perf_counter()
        step()
        _synchronize()
        taken = torch.tensor(time.perf_counter() - began, device=DEVICE)
        dist.all_reduce(taken, dist.ReduceOp.MAX)
        times.append(float(taken))
    return times


def _forward(attention: Attention, leaves: list[Tensor]) -> Callable[[], object]:
    def step() -> None:
        with torch.no_grad():
            attention(*leaves)

    return step


def _both(
    attention: Attention, leaves: list[Tensor], gradient: Tensor
) -> Callable[[], object]:
    def step() -> None:
        output = attention(*leaves)
        torch.autograd.grad(output, leaves, gradient.view_as(output))

    return step


def _synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def measure(row: str, repeats: int, kernel: Any) -> dict[str, Any]:
    length, kind = row.split(":")
    offsets = offsets_of(kind, int(length))
    peers = Peers(offsets, kernel)
    lengths = np.diff(offsets).astype(float)
    flops = HEADS * DIM * float((lengths * (lengths + 1) / 2).sum()) / peers.cp
    balance = Balance.of(alia_stack(1, 8192))
    results: dict[str, Any] = {"documents": len(lengths)}
    generator = torch.Generator().manual_seed(0)  # the same row on every rank
    whole_row = [
        torch.randn(int(length), n, DIM, generator=generator).to(DTYPE)
        for n in (HEADS, GROUPS, GROUPS, HEADS)
    ]
    answers: dict[str, list[Tensor]] = {}
    for name, (forward, tokens) in {
        "ours": peers.ours(balance),
        "ours, zigzag": peers.ours(None),
        "gather": peers.gather(),
        "ulysses": peers.ulysses(),
    }.items():
        mine = torch.from_numpy(tokens)
        leaves = [x[mine].to(DEVICE).requires_grad_() for x in whole_row[:3]]
        gradient = whole_row[3][mine].to(DEVICE).flatten(1)
        answers[name] = answer(forward, leaves, gradient, tokens, int(length))

        one = seconds(_forward(forward, leaves), repeats)
        two = seconds(_both(forward, leaves, gradient), repeats)
        ahead, whole = statistics.median(one), statistics.median(two)
        results[name] = {
            "differs_from_ours": [
                float((a - b).norm() / b.norm())
                for a, b in zip(answers[name], answers["ours"], strict=True)
            ],
            "forward_tflops": 4 * flops / ahead / 1e12,
            "backward_tflops": 10 * flops / (whole - ahead) / 1e12,
            "both_tflops": 14 * flops / whole / 1e12,
            "both_seconds": two,
        }
    return results


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--row", action="append", required=True)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    results: dict[str, Any] = {}
    with Distributed(EngineConfig()):
        kernel = resolve_kernel("auto", DEVICE)
        for row in options.row:
            results[row] = measure(row, options.repeats, kernel)
            results[row]["card"] = (
                torch.cuda.get_device_name() if DEVICE == "cuda" else "a host"
            )
            results[row]["kernel"] = kernel.name
            if dist.get_rank() == 0:
                options.out.write_text(json.dumps(results))
                print(row, json.dumps(results[row]), flush=True)


if __name__ == "__main__":
    main()
