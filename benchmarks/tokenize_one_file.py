"""One big compressed file against the same text in 32 files, in turn, several rounds.

The text and the tokenizer are those of benchmarks/tokenizing.py. Both contenders go
from files to a finished, checksummed store with the same number of workers; the ratio is
the time of the 32 files over that of the one, by the clock and by CPU time, which
other jobs on the machine disturb less. The last line says how fast the one
process reads that feeds the workers: it is what bounds their number.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from tokenize_speed import prepare

FILES = 32


def pack(raw: bytes, suffix: str) -> bytes:
    import bz2
    import gzip
    import lzma

    import zstandard

    return {  # type: ignore[no-any-return]
        "gz": lambda: gzip.compress(raw, 6),
        "zst": lambda: zstandard.compress(raw),
        "xz": lambda: lzma.compress(raw, preset=1),
        "bz2": lambda: bz2.compress(raw),
    }[suffix]()


def write_inputs(folder: Path, suffix: str) -> None:
    lines = (folder / "corpus.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "many").mkdir()
    for number in range(FILES):
        part = b"".join(lines[number::FILES])
        (folder / "many" / f"{number:02d}.jsonl.{suffix}").write_bytes(
            pack(part, suffix)
        )
    (folder / "one").mkdir()
    (folder / "one" / f"all.jsonl.{suffix}").write_bytes(pack(b"".join(lines), suffix))


def tokenize(folder: Path, name: str, workers: int, number: int) -> tuple[float, float]:
    """Seconds on the clock, and CPU seconds of this process and its workers."""
    from alia_ctx.data.documents import SourceSpec
    from alia_ctx.data.tokens import tokenize_source

    spec = SourceSpec(inputs=[str(folder / name)])
    began, before = time.perf_counter(), sum(os.times()[:4])
    tokenize_source(
        spec, f"{name}{number}", folder / "tokenizer", folder / "out", workers=workers
    )
    return time.perf_counter() - began, sum(os.times()[:4]) - before


def reading_speed(folder: Path) -> float:
    """Megabytes of text a second that one process reads, parses and cuts in blocks."""
    from alia_ctx.data.documents import SourceSpec, plan_shards, read_blocks

    spec = SourceSpec(inputs=[str(next((folder / "one").iterdir()))])
    (part,) = plan_shards(spec.inputs, spec)[0]
    began = time.perf_counter()
    for _ in read_blocks(part, spec):
        pass
    size = (folder / "corpus.jsonl").stat().st_size
    return size / (time.perf_counter() - began) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--suffix", choices=("gz", "zst", "xz", "bz2"), default="gz")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, options.megabytes)
        write_inputs(folder, options.suffix)
        tokenize(folder, "many", options.workers, -1)  # imports, page cache
        clock, cpu = [], []
        for number in range(options.rounds):
            many, many_cpu = tokenize(folder, "many", options.workers, number)
            one, one_cpu = tokenize(folder, "one", options.workers, number)
            clock.append(many / one)
            cpu.append(many_cpu / one_cpu)
            print(
                f"{FILES} files {many:.1f} s ({many_cpu:.1f} s of CPU), one file "
                f"{one:.1f} s ({one_cpu:.1f} s)",
                flush=True,
            )
        print(
            f"one file at {statistics.median(clock):.3f} of the speed of {FILES} files "
            f"({min(clock):.3f} to {max(clock):.3f}), by CPU time "
            f"{statistics.median(cpu):.3f}; {options.workers} workers, "
            f".{options.suffix}; read at {reading_speed(folder):.0f} MB/s"
        )


if __name__ == "__main__":
    main()
