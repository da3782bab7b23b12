"""Simulated step time of balanced against arrival order, on rows of pack plans, DP 1 to
32, with and without PP.

    python benchmarks/balance.py > docs/benchmarks/balance.md

A rank's time is the sum of its rows' work without a pipeline, and that of a simulated
1F1B schedule with one; the step is as long as its slowest rank. Work is ALIA-40b's
FLOPs: linear layers, and attention inside documents. Arrival order gives row i to rank
i mod DP. Communication, the optimizer and a GPU's own variation are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pages

from alia_ctx.data.packing import LengthBucket, PackPlan, PackSpec, build_plan
from alia_ctx.data.tokens import TokenStore, write_index
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.balance import assign_rows, imbalance, least_possible, pipeline_time

ALIA_40B = ModelSpec(48, 8192, 24576, 64, 8, 128, 256_000)
UPDATES = 40
# (rows an update, DP sizes): 4,096,000 tokens at 163,840, and 4,194,304 at 32,768
CASES = {163_840: (25, (1, 2, 4, 5, 8, 16)), 32_768: (128, (1, 2, 4, 8, 16, 32))}


def web_text(count: int) -> np.ndarray:
    """Log-normal, sigma 1.6, mean 975 tokens:

    a few per cent of the tokens stand behind 32k others.
    """
    return np.random.default_rng(0).lognormal(5.6, 1.6, count)


def books_and_code(count: int) -> np.ndarray:
    """Log-normal, sigma 1.3, median 20,000 tokens: books, theses, repositories."""
    return np.random.default_rng(1).lognormal(np.log(20_000), 1.3, count)


def make_store(
    prefix: Path, draw: Callable[[int], np.ndarray], tokens: int
) -> TokenStore:
    sample = np.clip(draw(4096), 2, 2_000_000)
    lengths = np.clip(draw(max(64, int(tokens / sample.mean()))), 2, 2_000_000).astype(
        np.int32
    )
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        write_index(stream, lengths, np.dtype(np.int32))
    with open(prefix.with_suffix(".bin"), "wb") as stream:
        stream.truncate(int(lengths.sum(dtype=np.int64)) * 4)
    return TokenStore(prefix)


def make_plans(folder: Path, row_length: int, rows: int) -> dict[str, PackPlan]:
    tokens = row_length * rows * UPDATES
    web = make_store(folder / f"web{row_length}", web_text, tokens)
    books = make_store(folder / f"books{row_length}", books_and_code, tokens)
    both = {"web": web, "books": books}
    blend = PackSpec("best_fit", "split", length_buckets=[LengthBucket(32_768, 0.6)])
    apart = PackSpec(
        "best_fit",
        "split",
        length_buckets=[LengthBucket(32_768, 0.6)],
        short_docs="apart",
    )
    plain = PackSpec("best_fit", "split")
    wanted = {
        "web": ({"web": web}, plain),
        "books and code": ({"books": books}, plain),
        "60% over 32k": (both, blend),
        "60% over 32k, short apart": (both, apart),
    }
    return {
        name: build_plan(
            stores, spec, row_length, rows * UPDATES, folder / f"{row_length} {name}"
        )
        for name, (stores, spec) in wanted.items()
    }


def row_work(plan: PackPlan) -> np.ndarray:
    """FLOPs of each row, fill included: the kernels work on it too. float64 [rows]."""
    attention = (
        12.0
        * ALIA_40B.num_hidden_layers
        * ALIA_40B.query_size
        * plan.attention_pairs(slice(None))
    )
    return ALIA_40B.linear_flops_per_token() * plan.row_length + attention


def step_time(work: list[float], groups: list[list[int]], stages: int) -> float:
    return max(pipeline_time([work[row] for row in group], stages) for group in groups)


def measure(work: np.ndarray, rows: int, ranks: int) -> list[float]:
    """Mean imbalance by arrival and balanced, worst ratio to the lower bound, speed-up
    at PP 1, 4 and 8.
    """
    arrival, balanced, gap, speed = [], [], [], {1: [], 4: [], 8: []}
    for update in range(UPDATES):
        mine = work[update * rows : (update + 1) * rows].tolist()
        as_they_come = [list(range(rank, rows, ranks)) for rank in range(ranks)]
        for stages, ratios in speed.items():
            groups = assign_rows(mine, ranks, stages)
            ratios.append(
                step_time(mine, as_they_come, stages) / step_time(mine, groups, stages)
            )
        arrival.append(imbalance(mine, as_they_come))
        balanced.append(imbalance(mine, groups))
        gap.append(
            max(sum(mine[row] for row in group) for group in groups)
            / least_possible(mine, ranks)
        )
    return [
        np.mean(arrival),
        np.mean(balanced),
        max(gap),
        *(np.mean(ratios) for ratios in speed.values()),
    ]


def main() -> None:
    columns = ["row", "documents", "rows", "DP", "max/mean, arrival", "balanced"]
    columns += ["over best, worst", "speed-up PP1", "PP4", "PP8"]
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for row_length, (rows, sizes) in CASES.items():
            for name, plan in make_plans(Path(folder), row_length, rows).items():
                work = row_work(plan)
                for ranks in sizes:
                    arrival, balanced, gap, *speed = measure(work, rows, ranks)
                    cells.append(
                        [
                            f"{row_length:,}",
                            name,
                            rows,
                            ranks,
                            f"{arrival:.3f}",
                            f"{balanced:.3f}",
                            f"{gap - 1:.2%}",
                            *(f"{ratio:.3f}x" for ratio in speed),
                        ]
                    )
    print(pages.heading("Rows over data-parallel ranks", "numpy"))
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print(f"\nMeans of {UPDATES} updates; over best: against a proven lower bound.\n")
    print(pages.table(columns, cells))


if __name__ == "__main__":
    main()
