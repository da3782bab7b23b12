"""Attention kernels on one GPU: TFLOP/s forward and backward, of one document and of packed
rows, every kernel beside torch's and TransformerEngine's in one run.

    python benchmarks/gpu_attention.py --heads 64 8 --lengths 32768 163840 --out one.jsonl
    python benchmarks/gpu_attention.py --table one.jsonl

Contenders: the product's kernels (`flash4`, `flash3`, `flash2`, `torch_varlen`), torch's
scaled_dot_product_attention by its FlashAttention and by cuDNN (one document alone), and
TransformerEngine's DotProductAttention (`thd`; one document `bshd`). What is missing or
refuses a shape is a line with its reason. ALIA-40b's heads of 128 in bf16: 16 query and 2
key/value heads, as at TP=4, unless `--heads` says otherwise (64 8 is the whole model).
Rows: `row_placement.py`.

FLOPs are those that the causal mask and the documents let through, 4 forward and 10
backward a pair, head and dimension (the backward recomputes the scores: 5 products against
2); the useful count of `model.py` leaves that recomputation out. Output and gradients are
compared, by their norms a token, with those of the first contender; "-" where that one has
none, nan where a result is not finite, which is status 1 too. A result is a line of
`--out`, written as it comes with the setting it was measured under and the releases of what
computed it; a file of another setting (card, torch, heads, first contender, `--repeats`,
`--seconds`) or of another release is refused before anything starts, one of another kernel
when that shows, and `--table` prints a table for each. Where any was left out the program
ends with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from alia_ctx.nn.attention_kernels import (
    VarlenSpec,
    resolve_kernel,
    varlen_attention,
)
from alia_ctx.nn.free_memory import fill_free_memory
from benchmarks import gpu_program
from benchmarks.figures import all_finite, differences, differs_by, is_finite
from benchmarks.gpu_program import Parser, at_least, existing_file, new_file
from benchmarks.pages import print_skipped, read_results, table, write_result
from benchmarks.releases import (
    ENGINE,
    TE,
    Columns,
    Computed,
    by_computation,
    print_installed,
    releases,
)
from benchmarks.row_attention_peers import sdpa, te_attention, te_forward
from benchmarks.row_placement import KINDS, offsets_of, pairs
from benchmarks.settings import Setting, by_setting, card
from benchmarks.te_backends import te_backend

DIM = 128
SCALE = DIM**-0.5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # a trial of the program
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32
KERNELS = ("flash4", "flash3", "flash2", "torch_varlen", "reference")
SDPA = ("FLASH_ATTENTION", "CUDNN_ATTENTION", "MATH")
CONTENDERS = (*KERNELS, *(f"sdpa {name.lower()}" for name in SDPA), "TransformerEngine")
ROWS = ("one", "mixed", "web", "short")  # by default
# [t, h, d] or [t, h*d] of queries [t, h, d], keys and values [t, g, d].
Forward = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """Which heads, and the documents of the row."""

    heads: int
    groups: int
    offsets: np.ndarray

    def inputs(self) -> list[torch.Tensor]:
        """Query, key, value and the output's gradient, the same for all."""
        generator = torch.Generator(DEVICE).manual_seed(0)
        length = int(self.offsets[-1])
        return [
            torch.randn(
                (length, n, DIM), generator=generator, device=DEVICE, dtype=DTYPE
            )
            for n in (self.heads, self.groups, self.groups, self.heads)
        ]

    @property
    def documents(self) -> int:
        return len(self.offsets) - 1


@contextlib.contextmanager
def contender(name: str, shape: Shape) -> Iterator[tuple[Forward, Callable[[], str]]]:
    """Its forward, and words for what computes it, asked after it has run. Raises what it
    says where it is missing.
    """
    if name == "TransformerEngine":
        attention = te_attention(shape.heads, shape.groups, shape.documents > 1)
        yield te_forward(attention, shape.offsets, shape.offsets, 1), te_backend
    elif name.startswith("sdpa "):
        if shape.documents > 1:
            raise ValueError("it has no mask of documents but a dense one")
        with sdpa_kernel(getattr(SDPBackend, name.removeprefix("sdpa ").upper())):
            yield sdpa, lambda: f"torch {torch.__version__}"
    else:
        kernel = resolve_kernel(name, DEVICE)
        spec = VarlenSpec.build(shape.offsets, shape.offsets, DEVICE)
        yield (
            lambda q, k, v: varlen_attention(q, k, v, spec, kernel, SCALE),
            lambda: kernel.name,
        )


def seconds(step: Callable[[], object], repeats: int, budget: float) -> list[float]:
    """Times of `step` after a warm-up, by CUDA events on a GPU; as many as `budget` seconds
    have room for, three at least and `repeats` at most.
    """
    step()
    times: list[float] = []
    while len(times) < repeats and (len(times) < 3 or sum(times) < budget):
        times.append(_timed(step))
    return times


def _timed(step: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        began = time.perf_counter()
        step()
        return time.perf_counter() - began
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1e3


def measure(
    name: str, shape: Shape, norms: list[torch.Tensor], options: argparse.Namespace
) -> dict[str, Any]:
    """Its figures; `norms` are the first contender's, and are filled in by it where they are
    finite. The next one is no stand-in: the file says who the first is.
    """
    with contender(name, shape) as (forward, describe):
        *inputs, gradient = shape.inputs()
        leaves = [x.requires_grad_() for x in inputs]

        def both() -> list[torch.Tensor]:
            output = forward(*leaves)
            flat = gradient.flatten(1).view_as(output)
            return [output, *torch.autograd.grad(output, leaves, flat)]

        def ahead() -> None:
            with torch.no_grad():
                forward(*leaves)

        # The contender before had the same results.
        fill_free_memory([*leaves, gradient], value=1e3, copies=1)
        found = [x.detach().flatten(1).float().norm(dim=1) for x in both()]
        finite = all_finite(found)
        if not norms and finite and name == options.kernels[0]:
            norms += found
        one = seconds(ahead, options.repeats, options.seconds)
        two = seconds(both, options.repeats, options.seconds)
        words = describe()
    flops = shape.heads * DIM * pairs(shape.offsets)
    return {
        "computed_by": words,
        "releases": releases(packages_of(name)),
        "forward_tflops": 4 * flops / statistics.median(one) / 1e12,
        "both_tflops": 14 * flops / statistics.median(two) / 1e12,
        "both_seconds": two,
        "finite": finite,
        "differs": differences(found, norms or None),
    }


# What results have in common that one table compares; the first contender is the one that
# the others differ from.
SETTING = ("card", "torch", "heads", "first", "repeats", "seconds")
# TransformerEngine may take another kernel for another row.
COMPUTED = Columns("contender", "computed_by", ("length", "row"))


def packages_of(name: str) -> tuple[str, ...]:
    """The distributions that may compute a contender, beside torch."""
    if name == "TransformerEngine":
        return TE
    return () if name.startswith("sdpa ") else ENGINE


def setting_of(options: argparse.Namespace) -> Setting:
    """That of this run."""
    return {
        "card": card(),
        "torch": torch.__version__,
        "heads": options.heads,
        "first": options.kernels[0],
        "repeats": options.repeats,
        "seconds": options.seconds,
    }


def run_all(
    options: argparse.Namespace, setting: Setting, known: Computed
) -> list[dict[str, Any]]:
    """Results, which are also written as they come. MixedError where another kernel computed
    one than computed it in the file, which has those `known`.
    """
    results = []
    for length in options.lengths:
        for kind in options.rows:
            heads, groups = options.heads
            shape = Shape(heads, groups, offsets_of(kind, length))
            norms: list[torch.Tensor] = []
            for name in options.kernels:
                result = {
                    **setting,
                    "length": length,
                    "row": kind,
                    "documents": shape.documents,
                    "contender": name,
                }
                try:
                    result |= measure(name, shape, norms, options)
                # Each package refuses in its own way.
                except (Exception, SystemExit) as error:
                    result["skipped"] = gpu_program.one_line(error)[:300]
                else:
                    known.require(options.out, result, COMPUTED)
                results.append(result)
                write_result(result, options.out)
                gpu_program.forget_case()
    return results


COLUMNS = (
    *("row", "documents", "kernel", "computed by", "forward", "forward and backward"),
    *("of the best", "time a FLOP over one document's", "differs by"),
)


def print_table(results: list[dict[str, Any]]) -> None:
    """Markdown, for each setting and for each release and kernel of a contender: TFLOP/s of
    each on each row, and who was left out.
    """
    for number, (setting, computed, own) in enumerate(
        (setting, *one)
        for setting, group in by_setting(results, SETTING)
        for one in by_computation(group, COMPUTED)
    ):
        if number:
            print()
        _print_setting(setting, computed, own)


def _print_setting(
    setting: Setting, computed: Computed, results: list[dict[str, Any]]
) -> None:
    queries, keys = setting["heads"]
    heads = f"{queries} query and {keys} key/value heads of {DIM}"
    print(f"{setting['card']}, torch {setting['torch']}; {heads}; TFLOP/s.\n")
    print_installed(computed)
    measured = [r for r in results if "skipped" not in r]
    best: dict[tuple[int, str], float] = {}
    alone: dict[tuple[int, str], float] = {}
    for r in measured:
        row = r["length"], r["row"]
        best[row] = max(best.get(row, 0.0), r["both_tflops"])
        if r["row"] == "one":
            alone[r["length"], r["contender"]] = r["both_tflops"]
    lines = []
    for r in measured:
        whole = alone.get((r["length"], r["contender"]))
        lines.append(
            [
                *(f"{r['length']:,}, {r['row']}", r["documents"], r["contender"]),
                *(r["computed_by"], f"{r['forward_tflops']:.0f}"),
                f"{r['both_tflops']:.0f}",
                f"{r['both_tflops'] / best[r['length'], r['row']]:.2f}",
                f"{whole / r['both_tflops']:.2f}" if whole else "",
                differs_by(r, "differs"),
            ]
        )
    print(table(COLUMNS, lines))
    print_skipped(
        (r["contender"], f"{r['length']:,}, {r['row']}", r["skipped"])
        for r in results
        if "skipped" in r
    )


def main() -> None:
    on_gpu = [c for c in CONTENDERS if c not in ("reference", "sdpa math")]
    parser = Parser()
    number = at_least(1)
    parser.add_argument("--kernels", nargs="+", choices=CONTENDERS, default=on_gpu)
    parser.add_argument("--lengths", nargs="+", type=number, default=[32_768, 163_840])
    parser.add_argument("--rows", nargs="+", choices=KINDS, default=list(ROWS))
    parser.add_argument(
        "--heads",
        nargs=2,
        type=number,
        default=[16, 2],
        help="query and key/value heads",
    )
    parser.add_argument("--repeats", type=number, default=10)
    parser.add_argument(
        "--seconds",
        type=at_least(0, float),
        default=4.0,
        help="of repeats of one figure",
    )
    parser.add_argument("--out", type=new_file, help="a line of JSON for each result")
    parser.add_argument("--table", type=existing_file, help="print a file's tables")
    options = parser.parse_args()
    if options.table:
        parser.read(options.table, lambda f: print_table(read_results(f, "contender")))
        return
    if options.heads[0] % options.heads[1]:
        parser.error("--heads: key/value heads divide those of queries")
    parser.require_gpus_or_few_tokens(1, "--lengths", max(options.lengths))
    setting = setting_of(options)
    installed = {name: releases(packages_of(name)) for name in options.kernels}
    with parser.writing(options.out):
        known = parser.require_setting(options.out, setting, COMPUTED, installed)
        results = parser.begun(lambda: run_all(options, setting, known))
    print_table(results)
    gpu_program.end(
        (_words(r) for r in results if "skipped" in r),
        (_words(r) for r in results if "skipped" not in r and not _finite(r)),
    )


def _words(result: dict[str, Any]) -> str:
    return f"{result['contender']} ({result['length']}, {result['row']})"


def _finite(result: dict[str, Any]) -> bool:
    return is_finite(result, "differs")


if __name__ == "__main__":
    main()
