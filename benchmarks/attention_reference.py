"""The blocked CPU reference against torch's scaled_dot_product_attention, single documents
and packed rows, in one run.

    python benchmarks/attention_reference.py [--threads 1] > docs/benchmarks/attention-reference.md

fp32 on CPU. torch has a fused CPU kernel for one document; for packed documents it
takes a dense mask of T x T, or a call for each document. The ways alternate; the table
gives medians of CPU time, which leaves out waiting for busy neighbours, and ratios of
them.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from alia_ctx.nn.attention_reference import (
    BLOCK_KEYS,
    TILE_QUERIES,
    blocked_attention,
    tiles,
)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
SHAPES = (
    (512, 4, 2, 32),
    (5120, 4, 2, 32),
    (8192, 2, 2, 64),
)  # tokens, query heads, key/value heads, head_dim


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def ways(offsets: np.ndarray, dim: int) -> dict[str, Attend]:
    cuts = tiles(offsets, offsets)
    found: dict[str, Attend] = {
        "blocked reference": lambda q, k, v: blocked_attention(q, k, v, cuts, dim**-0.5)
    }
    if len(offsets) == 2:
        return {**found, "sdpa, causal": sdpa}
    bounds = [(int(a), int(b)) for a, b in pairwise(offsets)]
    document = torch.from_numpy(np.repeat(np.arange(len(bounds)), np.diff(offsets)))
    mask = (document[:, None] == document[None]).tril()

    def each(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.cat([sdpa(q[a:b], k[a:b], v[a:b]) for a, b in bounds])

    return {
        **found,
        "sdpa, dense mask": lambda q, k, v: sdpa(q, k, v, mask),
        "sdpa, a call a document": each,
    }


def measure(attend: Attend, inputs: list[Tensor]) -> float:
    """CPU seconds of one forward and backward."""
    start = time.process_time()
    out = attend(*inputs)
    torch.autograd.grad(out, inputs, torch.ones_like(out))
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print("# The blocked reference on a CPU\n")
    print(
        "Made by `python benchmarks/attention_reference.py` on 2 cores of an x86-64 "
        "server, 24 GiB, torch "
        f"{torch.__version__.split('+')[0]}, {options.threads} thread(s), fp32, "
        "forward and backward, medians "
        f"of CPU time of {options.repeats} runs. Tiles of {TILE_QUERIES} queries, "
        f"blocks of {BLOCK_KEYS} keys.\n"
    )
    print(
        "| tokens | heads | head_dim | documents | way | CPU ms | of the reference "
        "|\n|---|---|---|---|---|---|---|"
    )
    for tokens, heads, groups, dim in SHAPES:
        inputs = [
            torch.randn(tokens, n, dim).requires_grad_()
            for n in (heads, groups, groups)
        ]
        for length in (tokens, tokens // 5, 40):
            offsets = np.append(np.arange(0, tokens, length), tokens)
            found = ways(offsets, dim)
            times: dict[str, list[float]] = {name: [] for name in found}
            for _ in range(options.repeats + 1):
                for name, attend in found.items():
                    times[name].append(measure(attend, inputs))
            medians = {name: statistics.median(t[1:]) for name, t in times.items()}
            for name, seconds in medians.items():
                cells = [
                    tokens,
                    f"{heads}:{groups}",
                    dim,
                    len(offsets) - 1,
                    name,
                    f"{1e3 * seconds:.1f}",
                ]
                print(
                    "|",
                    " | ".join(map(str, cells)),
                    f"| {seconds / medians['blocked reference']:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
