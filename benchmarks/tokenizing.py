"""Tokenising speed, in one run: ours, the bare `tokenizers` batch encode, and Megatron's
preprocessing loop.

    python benchmarks/tokenizing.py [--megabytes N] [--rounds N] > docs/benchmarks/tokenizing.md

Text: documentation and sources of the installed Python packages, as JSON lines;
tokenizer: byte-level BPE trained on part of it. On as many processes or threads as
there are cores, in turn, several rounds:

- ours: `alia_ctx.data.tokens.tokenize_source`, file to finished, checksummed store.
- bare: `Tokenizer.encode_batch` (threads of the library) over the texts in memory; no
  reading, no writing.
- bare, fast: the same with `encode_batch_fast`, which leaves out character offsets.
- Megatron: its tools/preprocess_data.py, written plainly: Pool.imap over lines, encode,
  IndexedDatasetBuilder.
"""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pages

VOCABULARY = 32_000
_encoder = None


def package_texts(megabytes: int) -> Iterator[str]:
    """Texts of installed packages in sorted order, each up to 200 kB, until there are
    so many megabytes.
    """
    left = megabytes << 20
    root = Path(sysconfig.get_path("purelib"))
    for path in sorted(root.rglob("*")):
        if path.suffix in (".py", ".md", ".rst", ".txt") and path.is_file():
            text = path.read_text("utf-8", errors="replace")[:200_000]
            if text.strip():
                yield text
                left -= len(text)
        if left < 0:
            return


def prepare(folder: Path, megabytes: int) -> None:
    """Write the corpus and train its tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    texts = list(package_texts(megabytes))
    with open(folder / "corpus.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(
            json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<unk>", "<s>", "</s>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts[::8], trainer)
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    config = {"eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))


def ours(folder: Path, workers: int) -> int:
    from alia_ctx.data.documents import SourceSpec
    from alia_ctx.data.tokens import tokenize_source

    spec = SourceSpec(inputs=[str(folder / "corpus.jsonl")])
    size = (folder / "corpus.jsonl").stat().st_size
    report = tokenize_source(
        spec,
        "ours",
        folder / "tokenizer",
        folder / "ours",
        workers=workers,
        shard_bytes=max(1 << 20, size // 16),
    )
    return report.tokens


def bare(folder: Path, fast: bool) -> Callable[[], int]:
    """Texts are read and the tokenizer is loaded before the clock starts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    with open(folder / "corpus.jsonl", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    encode = tokenizer.encode_batch_fast if fast else tokenizer.encode_batch

    def run() -> int:
        # in parts of 256: all encodings at once would measure the memory allocator
        return sum(
            len(each.ids)
            for start in range(0, len(texts), 256)
            for each in encode(texts[start : start + 256], add_special_tokens=False)
        )

    return run


def _start(path: str) -> None:
    global _encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from tokenizers import Tokenizer

    _encoder = Tokenizer.from_file(path)


def _encode(line: str) -> tuple[list[int], int]:
    text = json.loads(line)["text"]
    ids = _encoder.encode(text, add_special_tokens=False).ids  # type: ignore[attr-defined]
    ids.append(2)
    return ids, len(line)


def megatron_loop(folder: Path, workers: int) -> int:
    """Megatron-LM's tools/preprocess_data.py without its options."""
    import numpy as np
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(str(folder / "megatron.bin"), dtype=np.int32)
    tokens = 0
    context = multiprocessing.get_context("spawn")
    arguments = (str(folder / "tokenizer" / "tokenizer.json"),)
    with (
        open(folder / "corpus.jsonl", encoding="utf-8") as stream,
        context.Pool(workers, initializer=_start, initargs=arguments) as pool,
    ):
        for ids, _ in pool.imap(_encode, stream, 32):
            builder.add_item(torch.IntTensor(ids))
            builder.end_document()
            tokens += len(ids)
        pool.close()
        pool.join()
    builder.finalize(str(folder / "megatron.idx"))
    return tokens


def timed(what: Callable[[], int]) -> tuple[float, float, int]:
    """Seconds on the clock, CPU seconds of this process and the children it has waited
    for, and tokens.
    """
    began, before = time.perf_counter(), sum(os.times()[:4])
    tokens = what()
    return time.perf_counter() - began, sum(os.times()[:4]) - before, tokens


def one_round(folder: Path, contender: str, workers: int) -> None:
    """Run one contender and print what `timed` gives.

    In a process of its own, as the libraries keep threads.
    """
    logging.disable(logging.WARNING)
    if contender == "ours":
        result = timed(lambda: ours(folder, workers))
    elif contender == "Megatron":
        # Its import is not what we time.
        importlib.import_module("megatron.core.datasets.indexed_dataset")
        result = timed(lambda: megatron_loop(folder, workers))
    else:
        result = timed(bare(folder, fast=contender == "bare, fast"))
    print(json.dumps(result))


def compare(folder: Path, rounds: int, workers: int) -> None:
    """Run the contenders in turn, each in a process of its own, and print the page."""
    size = (folder / "corpus.jsonl").stat().st_size / 1e6
    names = ("ours", "bare", "bare, fast", "Megatron")
    clock: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    tokens = {}
    command = [sys.executable, "-W", "ignore", __file__, "--folder", str(folder)]
    for _ in range(rounds):
        for name in names:
            shutil.rmtree(folder / "ours", ignore_errors=True)
            done = subprocess.run(
                [*command, "--one", name, "--workers", str(workers)],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            elapsed, used, tokens[name] = json.loads(done.stdout.splitlines()[-1])
            clock[name].append(elapsed)
            cpu[name].append(used)
            print(f"{name}: {elapsed:.1f} s", file=sys.stderr)
    print(pages.heading("Tokenising", "tokenizers", "numpy"))
    print((__doc__ or "").split("\n\n", 2)[2].strip())
    print(f"\n{size:.0f} MB of JSON lines, {workers} workers, {rounds} rounds.\n")
    columns = ["contender", "tokens", "MB/s, best", "ours / it: best of each"]
    columns += ["median (lowest, highest)", "by CPU time"]
    rows = [
        [
            name,
            f"{tokens[name]:,}",
            f"{size / min(clock[name]):.2f}",
            f"{min(clock[name]) / min(clock['ours']):.3f}x",
            ratio(clock[name], clock["ours"]),
            ratio(cpu[name], cpu["ours"]),
        ]
        for name in names
    ]
    print(pages.table(columns, rows))


def ratio(theirs: list[float], mine: list[float]) -> str:
    ratios = sorted(other / own for other, own in zip(theirs, mine, strict=True))
    return f"{statistics.median(ratios):.3f}x ({ratios[0]:.3f}x, {ratios[-1]:.3f}x)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one_round(options.folder, options.one, options.workers)
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), options.megabytes)
        compare(Path(name), options.rounds, options.workers)


if __name__ == "__main__":
    main()
