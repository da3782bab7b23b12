"""Plan the 728,034 conversations of ALIA-40b-fc's eight sources in updates of 128, with
2,000 held out and everything like them left out.

    python benchmarks/conversations.py [--share 1.0] > docs/benchmarks/conversations.md

The numbers of conversations are the model card's. Their lengths are assumed, as the data
is not at hand and its token counts are not published: log-normal, with a median and a
spread for each source that fit its form (one request and its calls; several turns of
agents with long lists of tools; instructions), as the page lists. So that nothing hangs
on them, the fill is computed for conversations of half and of twice that length too.
Tokens are random, a quarter of each conversation is trained. Each plan is built in a
process of its own; memory is its peak of anonymous memory, without the pages of mapped
files, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pages

from alia_ctx.data.packing import (
    PackSpec,
    build_instance_plan,
    draw_held_out,
    write_held_out,
)
from alia_ctx.data.tokens import TokenStore, write_index, write_weights

VOCABULARY = 256_000
UPDATE = 128
# source: conversations (card), median tokens and sigma of the logarithm (assumed)
SOURCES: dict[str, tuple[int, float, float]] = {
    "when2call": (14_800, 550, 0.5),
    "xlam": (59_800, 550, 0.5),
    "glaive": (102_891, 500, 0.6),
    "toolace": (11_068, 900, 0.6),
    "toucan": (119_079, 4_000, 0.9),
    "dolci": (1_369, 1_500, 0.8),
    "in_house": (19_227, 700, 0.6),
    "instruction": (399_800, 450, 1.0),
}
LONGEST = 163_840


def lengths_of(number: int, count: int, median: float, sigma: float) -> np.ndarray:
    drawn = np.random.default_rng(number).lognormal(np.log(median), sigma, count)
    return np.clip(drawn, 16, LONGEST).astype(np.int32)


def write_source(prefix: Path, number: int, lengths: np.ndarray) -> None:
    """Random tokens; weight 1 for the last quarter of each conversation."""
    generator = np.random.default_rng(100 + number)
    with open(prefix.with_suffix(".idx"), "wb") as stream:
        write_index(stream, lengths, np.dtype(np.int32))
    parts = np.array_split(lengths, max(1, int(lengths.sum() // 20_000_000)))
    with open(prefix.with_suffix(".bin"), "wb") as stream:
        for part in parts:
            size = int(part.sum())
            stream.write(generator.integers(4, VOCABULARY, size, np.int32).tobytes())
    write_weights(TokenStore(prefix), (_weights(part) for part in parts))


def _weights(lengths: np.ndarray) -> np.ndarray:
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1])) >= np.repeat(ends - lengths // 4, lengths)


class PeakMemory(threading.Thread):
    """The largest RssAnon of this process, looked at 50 times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak_kib = 0

    def run(self) -> None:
        while True:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("RssAnon"):
                    self.peak_kib = max(self.peak_kib, int(line.split()[1]))
            time.sleep(0.02)


def plan_in_this_process(folder: Path, context: int, held_out: int) -> dict[str, Any]:
    memory = PeakMemory()
    memory.start()
    started, processor = time.perf_counter(), time.process_time()
    stores = {name: TokenStore(folder / name) for name in SOURCES}
    spec = PackSpec("best_fit", "drop", held_out_instances=held_out)
    kept = None
    if held_out:
        numbers = draw_held_out(stores, spec, 1234)
        kept = write_held_out(folder / "held_out", stores, numbers)
    plan = build_instance_plan(
        stores, spec, context, UPDATE, 1, folder / f"plan-{context}-{held_out}",
        seed=1234, conversations=kept,
    )  # fmt: skip
    sources = plan.stats["sources"].values()
    return {
        "seconds": time.perf_counter() - started,
        "processor": time.process_time() - processor,
        "gib": memory.peak_kib / 2**20,
        "rows": len(plan),
        "tokens": plan.stats["tokens"],
        "fill": plan.stats["fill"],
        "too_long": sum(source["dropped"]["long_documents"] for source in sources),
        **plan.stats["conversations"],
    }


def plan_in_a_process(folder: Path, context: int, held_out: int) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--folder",
        str(folder),
        "--context",
        str(context),
    ]
    done = subprocess.run(
        [*command, "--held-out", str(held_out)],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    print(f"{context}: {found['seconds']:.1f} s", file=sys.stderr)
    return found


def fills(scale: float, share: float, folder: Path) -> list[str]:
    """Fill at both contexts where all conversations are `scale` times as long."""
    stores = {}
    for number, (name, (count, median, sigma)) in enumerate(SOURCES.items()):
        lengths = lengths_of(number, int(count * share), median * scale, sigma)
        prefix = folder / f"{name}-{round(100 * scale)}"
        with open(prefix.with_suffix(".idx"), "wb") as stream:
            write_index(stream, lengths, np.dtype(np.int32))
        with open(prefix.with_suffix(".bin"), "wb") as stream:
            stream.truncate(
                int(lengths.sum(dtype=np.int64)) * 4
            )  # a hole: no token is read
        stores[name] = TokenStore(prefix)
    cells = []
    spec = PackSpec("best_fit", "drop")
    for context in (163_840, 8_192):
        out = folder / f"fill-{round(100 * scale)}-{context}"
        plan = build_instance_plan(stores, spec, context, UPDATE, 1, out)
        cells.append(f"{plan.stats['fill']:.2%}")
    mean = sum(int(s.n_tokens) for s in stores.values()) / sum(
        s.n_documents for s in stores.values()
    )
    return [f"{scale:g}", f"{mean:,.0f}", *cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--context", type=int)
    parser.add_argument("--held-out", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder:
        asked = (arguments.folder, arguments.context, arguments.held_out)
        print(json.dumps(plan_in_this_process(*asked)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (source, (count, median, sigma)) in enumerate(SOURCES.items()):
            size = int(count * arguments.share)
            write_source(
                folder / source, number, lengths_of(number, size, median, sigma)
            )
            print(f"wrote {source}", file=sys.stderr)
        runs = {
            (context, held_out): plan_in_a_process(folder, context, held_out)
            for context, held_out in ((163_840, 0), (163_840, 2_000), (8_192, 2_000))
        }
        scaled = [fills(scale, arguments.share, folder) for scale in (0.5, 1.0, 2.0)]
    print(pages.heading("Updates of conversations at full size", "numpy"))
    print(" ".join((__doc__ or "").split("\n\n")[2].split()) + "\n")
    listed = [[n, f"{c:,}", f"{m:,.0f}", s] for n, (c, m, s) in SOURCES.items()]
    print(pages.table(["source", "conversations", "median tokens", "sigma"], listed))
    print()
    columns = ["quantity", *(f"{c:,} tokens, {h:,} held out" for c, h in runs)]
    rows = {
        "conversations an epoch": lambda r: f"{r['epoch']:,}",
        "longer than a row, left out": lambda r: f"{r['too_long']:,}",
        "tokens": lambda r: f"{r['tokens']:,}",
        "updates": lambda r: f"{r['updates']:,}",
        "conversations of the last update": lambda r: r["last_update"],
        "rows": lambda r: f"{r['rows']:,}",
        "fill": lambda r: f"{r['fill']:.2%}",
        "wall time": lambda r: f"{r['seconds']:.1f} s",
        "processor time": lambda r: f"{r['processor']:.1f} s",
        "peak memory": lambda r: f"{r['gib']:.2f} GiB",
    }
    cells = [[what, *map(show, runs.values())] for what, show in rows.items()]
    print(pages.table(columns, cells))
    print()
    heads = ["length, times", "mean tokens", "fill at 163,840", "fill at 8,192"]
    print(pages.table(heads, scaled))
    print(
        "\nWithin 60 s, by the clock: "
        + ", ".join(
            f"{c:,} tokens with {h:,} held out {'yes' if r['seconds'] < 60 else 'no'} "
            f"({r['seconds']:.0f} s, of them {r['processor']:.0f} s on a processor)"
            for (c, h), r in runs.items()
        )
        + ". With conversations held out it takes longer, as all others are compared with "
        "them for near duplicates."
    )
    print(
        "\nFill counts every place of every row, the last row of each update and the last "
        "update of the epoch included. The rows of an update are as long as its fullest "
        "needs, rounded up to a 128th of the context (64 tokens at least).\n\n"
        f"All of it is one thread; the load average of the machine was "
        f"{os.getloadavg()[2]:.0f} in the last 15 minutes."
    )


if __name__ == "__main__":
    main()
