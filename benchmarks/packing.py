"""Build, open, continue and read a pack plan at full size: 40 million documents of
heavy-tailed length, 39 billion tokens; and compare text with held-out text.

    python benchmarks/packing.py [--documents N] [--read-tokens N] > docs/benchmarks/packing.md

The lengths are log-normal (sigma 1.6: median 270, longest above a million tokens). For
the plan the token file is a sparse one, as only the index is read; reading is timed on
a file of random tokens that fits the page cache, against the bare copy int32 -> int64
of as many tokens. Times are processor time: all of it is one thread.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pages

from alia_ctx.data.packing import (
    PackPlan,
    PackSpec,
    build_plan,
    find_contamination,
)
from alia_ctx.data.tokens import TokenStore, write_index, write_store

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
    began = time.process_time()
    plan = build_plan(
        {"big": store}, PackSpec("best_fit", "split"), ROW, None, folder / "plan"
    )
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    opened = {}
    for verify in (True, False):
        began = time.process_time()
        stores = {"big": TokenStore(folder / "big")}
        PackPlan.open(folder / "plan", stores, verify=verify).row(len(plan) // 2)
        opened[verify] = time.process_time() - began
    size = sum(file.stat().st_size for file in (folder / "plan").iterdir())
    stats = plan.stats
    cells.append(("documents", f"{documents:,}"))
    cells.append(("tokens", f"{stats['tokens']:,}"))
    cells.append(("rows of 163,840", f"{stats['rows']:,}"))
    cells.append(("build", f"{seconds:.1f} s"))
    cells.append(("peak memory of the process", f"{peak:.2f} GiB"))
    cells.append(("fill", f"{stats['fill']:.5%}"))
    cells.append(("documents cut that fit a row", f"{stats['cut_documents_that_fit']}"))
    cells.append(("size of the plan", f"{size / 2**20:,.0f} MiB"))
    cells.append(
        (
            "open, every bit of the plan compared, first row (files in the page cache)",
            f"{opened[True] * 1000:,.0f} ms",
        )
    )
    cells.append(
        ("open, arrays believed, first row", f"{opened[False] * 1000:,.0f} ms")
    )


def measure_continuing(folder: Path, cells: list[tuple[str, str]]) -> None:
    """Two stages of 40% of the data each, of other row lengths, then a longer second."""
    store = TokenStore(folder / "big")
    spec = PackSpec("best_fit", "split")
    rows = int(0.4 * store.n_tokens / ROW)
    plans, seconds = {}, []
    for name, length, count in (
        ("first", ROW // 5, rows * 5),
        ("second", ROW, rows),
        ("second", ROW, rows + rows // 8),
    ):
        began = time.process_time()
        plan = build_plan(
            {"big": store}, spec, length, count, folder / name,
            seen={key: plans[key] for key in plans if key != name},
        )  # fmt: skip
        seconds.append(time.process_time() - began)
        plans[name] = plan
    source = plan.stats["sources"]["big"]
    cells.append(("a stage of 40% of the data", f"{seconds[0]:.1f} s"))
    cells.append(("a second of 40%, continuing it", f"{seconds[1]:.1f} s"))
    cells.append(("an eighth of its rows added to that", f"{seconds[2]:.1f} s"))
    cells.append(
        (
            "its documents that the first had, in part",
            f"{source['trained_documents_seen_before']:,} of "
            f"{source['trained_documents']:,}",
        )
    )


def measure_contamination(
    folder: Path, tokens: int, cells: list[tuple[str, str]]
) -> None:
    lengths = heavy_tailed_lengths(tokens // TOKENS_PER_DOCUMENT, TOKENS_PER_DOCUMENT)
    text = random_store(folder / "text", lengths)
    chance = np.random.default_rng(2)
    held_out = [chance.integers(0, 256_000, 100_000) for _ in range(10)]
    held_out.append(text.document(len(lengths) // 2))
    other = write_store(folder / "held_out", held_out, 256_000)
    int(text.tokens.sum(dtype=np.int64))  # into the page cache
    began = time.process_time()
    overlap = find_contamination({"text": text}, other)
    seconds = time.process_time() - began
    assert overlap.exact["text"].tolist() == [len(lengths) // 2]
    cells.append(
        (
            f"compare with {other.n_tokens:,} held-out tokens",
            f"{text.n_tokens / seconds / 1e6:.1f} million tokens/s",
        )
    )


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
        began = time.process_time()
        for index in range(len(plan)):
            plan.row(index).tokens_and_targets()
        best = min(best, time.process_time() - began)
        began = time.process_time()
        for start in range(0, store.n_tokens, ROW):
            store.tokens[start : start + ROW].astype(np.int64)
        copied = min(copied, time.process_time() - began)
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
        measure_continuing(Path(name), cells)
        measure_contamination(Path(name), options.read_tokens // 4, cells)
        for mean in (60, 300, TOKENS_PER_DOCUMENT, 20_000):
            measure_reading(Path(name), options.read_tokens, mean, cells)
    print(pages.heading("Pack plans at full size", "numpy"))
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print("\n`policy: best_fit`, `long_docs: split`.\n")
    print(pages.table(["quantity", "value"], cells))


if __name__ == "__main__":
    main()
