"""Build, open and read a pack plan at full size: 40 million documents of heavy-tailed
length, 39 billion tokens.

    python benchmarks/packing.py [--documents N] [--read-tokens N] > docs/benchmarks/packing.md

The lengths are log-normal (sigma 1.6: median 270, longest above a million tokens). For
the plan the token file is a sparse one, as only the index is read; reading is timed on
a file of random tokens that fits the page cache, against the bare copy int32 -> int64
of as many tokens.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pages

from alia_ctx.data.packing import PackPlan, PackSpec, build_plan
from alia_ctx.data.tokens import TokenStore, write_index

ROW = 163_840
TOKENS_PER_DOCUMENT = 975


def heavy_tailed_lengths(documents: int, mean: float, sigma: float = 1.6) -> np.ndarray:
    """Log-normal lengths, int32 [documents], of the given mean, from 2 to 4 million tokens."""
    lengths = np.random.default_rng(0).lognormal(0.0, sigma, documents)
    lengths *= mean / lengths.mean()
    return np.clip(lengths, 2, 4_000_000).astype(np.int32)


def sparse_store(prefix: Path, lengths: np.ndarray) -> TokenStore:
    """A store whose tokens are a hole in the file system."""
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        write_index(stream, lengths, np.dtype(np.int32))
    with open(prefix.with_suffix(".bin"), "wb") as stream:
        stream.truncate(int(lengths.sum(dtype=np.int64)) * 4)
    return TokenStore(prefix)


def random_store(prefix: Path, lengths: np.ndarray) -> TokenStore:
    """A store of random tokens."""
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        write_index(stream, lengths, np.dtype(np.int32))
    tokens = int(lengths.sum(dtype=np.int64))
    np.random.default_rng(1).integers(0, 256_000, tokens, dtype=np.int32).tofile(
        prefix.with_suffix(".bin")
    )
    return TokenStore(prefix)


def measure_build(folder: Path, documents: int, cells: list[tuple[str, str]]) -> None:
    store = sparse_store(
        folder / "big", heavy_tailed_lengths(documents, TOKENS_PER_DOCUMENT)
    )
    began = time.perf_counter()
    plan = build_plan(
        {"big": store}, PackSpec("best_fit", "split"), ROW, None, folder / "plan"
    )
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    began = time.perf_counter()
    PackPlan.open(folder / "plan", {"big": TokenStore(folder / "big")}).row(
        len(plan) // 2
    )
    opened = time.perf_counter() - began
    stats = plan.stats
    cells.append(("documents", f"{documents:,}"))
    cells.append(("tokens", f"{stats['tokens']:,}"))
    cells.append(("rows of 163,840", f"{stats['rows']:,}"))
    cells.append(("build", f"{seconds:.1f} s"))
    cells.append(("peak memory of the process", f"{peak:.2f} GiB"))
    cells.append(("fill", f"{stats['fill']:.5%}"))
    cells.append(("documents cut that fit a row", f"{stats['cut_documents_that_fit']}"))
    cells.append(("open, fingerprints checked, first row", f"{opened * 1000:.0f} ms"))


def measure_reading(
    folder: Path, tokens: int, mean: int, cells: list[tuple[str, str]]
) -> None:
    store = random_store(
        folder / f"read{mean}", heavy_tailed_lengths(tokens // mean, mean)
    )
    plan = build_plan(
        {"read": store},
        PackSpec("best_fit", "split"),
        ROW,
        None,
        folder / f"plan{mean}",
    )
    int(store.tokens.sum(dtype=np.int64))  # into the page cache
    best = copied = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for index in range(len(plan)):
            plan.row(index).tokens_and_targets()
        best = min(best, time.perf_counter() - began)
        began = time.perf_counter()
        for start in range(0, store.n_tokens, ROW):
            store.tokens[start : start + ROW].astype(np.int64)
        copied = min(copied, time.perf_counter() - began)
    speed = len(plan) * ROW / best / 1e6
    cells.append(
        (
            f"read tokens and targets, {mean} tokens a document",
            f"{speed:.0f} million tokens/s, {speed / (store.n_tokens / copied / 1e6):.2f}x "
            "of a bare copy",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=40_000_000)
    parser.add_argument("--read-tokens", type=int, default=200_000_000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where the temporary files go (3 GB; default: the system's)",
    )
    options = parser.parse_args()
    cells: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        measure_build(Path(name), options.documents, cells)
        for mean in (60, 300, TOKENS_PER_DOCUMENT, 20_000):
            measure_reading(Path(name), options.read_tokens, mean, cells)
    print(pages.heading("Pack plans at full size", "numpy"))
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print("\n`policy: best_fit`, `long_docs: split`.\n")
    print(pages.table(["quantity", "value"], cells))


if __name__ == "__main__":
    main()
