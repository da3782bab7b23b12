"""Attention of one packed row over context-parallel GPUs: TFLOP/s a GPU, ours beside other
methods and other packages, in one run.

    python benchmarks/gpu_context_parallel.py --ranks 2 --out attention.json \
        --row 32768:one --row 32768:web --row 163840:one
    python benchmarks/gpu_context_parallel.py --table attention.json

A row is length:documents (`one`, `8k`, `short`, `web`, `mixed`: `row_placement.py`).
ALIA-40b's heads, 64 of queries and 8 of keys, 128 wide, bf16; forward and backward with
gradients of queries, keys and values. FLOPs are those that the mask of the real tokens
lets through, 4 forward and 10 backward a pair, head and dimension. Rotation is in none.

Methods: ours, ours with a zigzag's cuts, a gather of all keys, Ulysses (all four on one
kernel); torch's context_parallel over SDPA; TransformerEngine's DotProductAttention by
point-to-point, all-gather and all-to-all, with the kernel that it chooses (cuDNN's on
Hopper) and, `flash`, by FlashAttention; ring-flash-attn's zigzag ring and its gather.
Each holds the tokens that it wants where it wants them, and its forms are tried in turn on
a small row, whose output and gradients must be those of a dense fp32 computation; one that
is missing, or cannot do a row, is skipped with its reason in the file. All ranks agree on
that. Each result is written as it comes; a method that hangs or ends the processes is
recorded so, and the rest goes on in new ones. The same command again goes on where it was,
and tries what was skipped again; a file of another setting (GPUs, card, torch, kernel,
`--repeats`, `--seconds`), or with another release of what a method is computed by, is
refused. Where any was left out the program ends with status 1.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from alia_ctx.config.run import EngineConfig
from alia_ctx.errors import AliaError
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn.attention_kernels import Kernel, resolve_kernel
from alia_ctx.nn.free_memory import fill_free_memory
from alia_ctx.nn.key_value_exchange import open_channels
from benchmarks import gpu_program
from benchmarks.figures import all_finite, differences
from benchmarks.gpu_program import Parser, at_least, existing_file, new_file, parsed
from benchmarks.pages import WriteError
from benchmarks.process_ranks import run_ranks
from benchmarks.releases import releases
from benchmarks.row_attention import (
    DEVICE,
    DIM,
    DTYPE,
    GROUPS,
    HEADS,
    SCALE,
    Maker,
    Method,
    Row,
    UnableError,
)
from benchmarks.row_attention_peers import METHODS, packages_of
from benchmarks.row_placement import offsets_of, pairs, row_of
from benchmarks.row_results import Record, failures, print_table
from benchmarks.row_timing import both_of, forward_of, seconds, synchronize
from benchmarks.settings import card

TOLERANCE = 0.02  # of the norm, from dense fp32: bf16 has 8 bits, and is rounded often


def whole_row(length: int, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and the output's gradient, the same on every rank."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(length, n, DIM) for n in (HEADS, GROUPS, GROUPS, HEADS)]
    options = {"generator": generator, "device": DEVICE, "dtype": dtype}
    return [torch.randn(shape, **options) for shape in shapes]


def own_part(method: Method, row: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    """Leaves and the output's gradient [t, h*d] of this rank; zero where no token is."""
    tokens = torch.from_numpy(method.tokens).to(DEVICE)
    parts = [x[tokens.clamp(min=0)] for x in row]
    if (method.tokens < 0).any():
        parts = [torch.where((tokens >= 0)[:, None, None], x, 0) for x in parts]
    return [x.detach().requires_grad_() for x in parts[:3]], parts[3].flatten(1)


def found(method: Method, leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """The output and the three gradients of the tokens held, each [t, features]."""
    # The method before had the same results. Not NaN: what is read beside padding and
    # multiplied by zero may be anything else.
    fill_free_memory([*leaves, gradient], value=1e3, copies=1)
    output = method.forward(*leaves)
    grads = torch.autograd.grad(output, leaves, gradient.view_as(output))
    held = torch.from_numpy(method.tokens >= 0).to(DEVICE)
    return [x.detach().flatten(1)[held] for x in (output, *grads)]


def norms(method: Method, tensors: list[Tensor], length: int) -> list[Tensor]:
    """Norms by token of the whole row, from those of each rank's own."""
    held = torch.from_numpy(method.tokens[method.tokens >= 0]).to(DEVICE)
    rows = []
    for x in tensors:
        of_row = torch.zeros(length, device=DEVICE)
        of_row[held] = x.float().norm(dim=1)
        dist.all_reduce(of_row)
        rows.append(of_row)
    return rows


def dense(row: list[Tensor], offsets: np.ndarray) -> list[Tensor]:
    """Output and gradients of a small row in fp32, each [tokens, features]."""
    q, k, v = (x.float().transpose(0, 1).requires_grad_() for x in row[:3])
    document = torch.from_numpy(
        np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    )
    document = document.to(DEVICE)
    mask = (document[:, None] == document) & torch.ones_like(
        document[:, None] == document
    ).tril()
    keys, values = (x.repeat_interleave(HEADS // GROUPS, 0) for x in (k, v))
    scores = (q @ keys.transpose(1, 2) * SCALE).masked_fill(~mask, -torch.inf)
    output = scores.softmax(-1) @ values
    grads = torch.autograd.grad(output, (q, k, v), row[3].float().transpose(0, 1))
    return [x.detach().transpose(0, 1).flatten(1) for x in (output, *grads)]


def try_small(maker: Maker, several: bool, kernel: Kernel) -> None:
    """Compute a small row and compare it; UnableError where it is another's."""
    offsets = np.array([0, 201, 258, 512] if several else [0, 512])
    values = whole_row(512, DTYPE)
    expected = dense(values, offsets)
    with prepared(maker, Row(offsets, kernel)) as method:
        tensors = found(method, *own_part(method, values))
    held = torch.from_numpy(method.tokens[method.tokens >= 0]).to(DEVICE)
    for name, x, y in zip(("output", "dq", "dk", "dv"), tensors, expected, strict=True):
        off = float((x.float() - y[held]).norm() / y[held].norm())
        if not off < TOLERANCE:  # nan neither
            raise UnableError(f"a small row's {name} is {off:.1%} from dense fp32")


def together(action: Callable[[], Any]) -> Any:
    """What `action` gives, if it does on all ranks; else UnableError on all, with the
    first one's reason. A GPU that has failed ends this process.
    """
    problem, value = None, None
    try:
        value = action()
        synchronize()
    except (Exception, SystemExit) as error:
        lines = (str(error).strip() or "no message").splitlines()
        kind = "" if isinstance(error, UnableError) else f"{type(error).__name__}: "
        problem = kind + " ".join(lines[:2])[:300]
        problem = gpu_program.not_installed(error) or problem
    if problem is not None:
        _synchronize_or_end(problem)
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for rank, text in enumerate(problems):
        if text is not None:
            raise UnableError(text if rank == 0 else f"{text} (rank {rank})")
    return value


@contextlib.contextmanager
def prepared(maker: Maker, row: Row) -> Iterator[Method]:
    """The method made ready on all ranks, before any of them talks to another."""
    with contextlib.ExitStack() as entered:
        yield together(lambda: entered.enter_context(maker(row)))


def _synchronize_or_end(problem: str) -> None:
    try:
        synchronize()
    except RuntimeError:
        print(problem, file=sys.stderr, flush=True)
        os._exit(70)


def time_method(
    maker: Maker,
    row: Row,
    values: list[Tensor],
    reference: list[Tensor] | None,
    options: argparse.Namespace,
) -> tuple[dict[str, Any], list[Tensor]]:
    """Its figures and its norms by token, which must be finite to be compared with."""
    with prepared(maker, row) as method:
        leaves, gradient = own_part(method, values)
        own = norms(method, found(method, leaves, gradient), row.length)
        timing = options.repeats, options.seconds
        one = seconds(forward_of(method.forward, leaves), *timing)
        two = seconds(both_of(method.forward, leaves, gradient), *timing)
        computed_by = method.describe()
    ahead, whole = statistics.median(one), statistics.median(two)
    flops = HEADS * DIM * pairs(row.offsets) / row.cp
    return {
        "computed_by": computed_by,
        "finite": all_finite(own),
        "differs_from_ours": differences(own, reference),
        "forward_tflops": 4 * flops / ahead / 1e12,
        "backward_tflops": 10 * flops / (whole - ahead) / 1e12,
        "both_tflops": 14 * flops / whole / 1e12,
        "forward_seconds": one,
        "both_seconds": two,
    }, own


class Program:
    """All rows and methods that the record does not have yet, on one rank."""

    def __init__(
        self, options: argparse.Namespace, record: Record, kernel: Kernel
    ) -> None:
        self.options, self.record, self.kernel = options, record, kernel
        self.usable: dict[tuple[str, bool], Maker] = {}

    def run(self) -> None:
        for name in self.options.row:
            length, kind = name.split(":")
            row = Row(offsets_of(kind, int(length)), self.kernel)
            missing = self.record.missing(name, self.options.methods)
            if missing:
                self.measure_row(name, row, missing)

    def measure_row(self, name: str, row: Row, missing: list[str]) -> None:
        values = whole_row(row.length, DTYPE)
        # What the others are compared with comes first.
        missing = sorted(missing, key=lambda method: method != "ours")
        reference: list[Tensor] | None = None
        if missing[0] != "ours" and self.record.is_measured(name, "ours"):
            reference = self.reference(row, values)
        for method in missing:
            self.record.begin(name, row.documents, method)
            result: dict[str, Any]
            try:
                maker = self.usable_form(method, row.documents > 1)
                result, own = together(
                    lambda maker=maker, reference=reference: time_method(
                        maker, row, values, reference, self.options
                    )
                )
                result["releases"] = releases(packages_of(method))
                if method == "ours" and result["finite"]:
                    reference, result["differs_from_ours"] = own, [0.0] * len(own)
            except UnableError as error:
                result = {"skipped": str(error)}
            self.record.finish(name, method, result)
            gpu_program.forget_case()

    def reference(self, row: Row, values: list[Tensor]) -> list[Tensor] | None:
        with METHODS["ours"][0](row) as method:
            own = found(method, *own_part(method, values))
            of_row = norms(method, own, row.length)
        return of_row if all_finite(of_row) else None

    def usable_form(self, method: str, several: bool) -> Maker:
        """The first of its forms that computes a small row of the kind on all ranks."""
        if (method, several) in self.usable:
            return self.usable[method, several]
        reasons = []
        for maker in METHODS[method]:
            try:
                together(lambda maker=maker: try_small(maker, several, self.kernel))
            except UnableError as error:
                reasons.append(str(error))
            else:
                self.usable[method, several] = maker
                return maker
            gc.collect()
        raise UnableError("; ".join(dict.fromkeys(reasons)))


def run_here(parser: Parser, options: argparse.Namespace) -> None:
    """As one of the ranks."""
    with Distributed(EngineConfig(timeout_minutes=options.silence / 60)):
        open_channels(dist.group.WORLD, DEVICE)
        try:
            kernel = resolve_kernel(options.kernel, DEVICE)
            setting = {
                "cp": dist.get_world_size(),
                "card": card(),
                "torch": torch.__version__,
                "kernel": kernel.name,
                "repeats": options.repeats,
                "seconds": options.seconds,
            }
            record = Record.open(
                options.out,
                setting,
                writes=dist.get_rank() == 0,
                installed={m: releases(packages_of(m)) for m in options.methods},
            )
        except (AliaError, ValueError) as error:  # on all ranks alike
            parser.refuse(str(error))
        if not options.go_on:
            record.forget_skipped(options.row, options.methods)
        dist.barrier()  # all have read it
        try:
            Program(options, record, kernel).run()
        except WriteError as error:  # on the first alone; the others wait
            gpu_program.end_at_once(str(error), gpu_program.UNWRITTEN)


def run_apart(parser: Parser, options: argparse.Namespace) -> None:
    """In as many processes as there are ranks, anew after each that a method ends."""
    try:
        Record.forget_begun(options.out)
    except (OSError, ValueError) as error:
        parser.refuse(str(error))
    gpu_program.note_trial()
    command = [__file__, *sys.argv[1:]]
    while True:
        ended = run_ranks(
            command,
            options.ranks,
            limit=options.limit,
            silence=options.silence,
            last_word=lambda: (
                options.out.stat().st_mtime if options.out.exists() else 0.0
            ),
        )
        if ended.problem is None:
            return
        if ended.status == gpu_program.UNWRITTEN:  # nor is this a method's doing
            sys.exit(1)
        command = [__file__, *sys.argv[1:], "--go-on"]
        if not Record.blame(options.out, ended.problem):
            if ended.status == gpu_program.REFUSED:  # the first rank has said why
                sys.exit(gpu_program.REFUSED)
            sys.exit(f"the ranks {ended.problem}, and no method had begun")


def main() -> None:
    parser = Parser()
    parser.add_argument(
        "--ranks", type=at_least(1), default=1, help="GPUs of this machine"
    )
    parser.add_argument("--row", action="append", type=parsed(row_of), default=[])
    parser.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS)
    )
    parser.add_argument(
        "--kernel",
        choices=gpu_program.choices("attention"),
        default="auto",
        help="of the first four methods",
    )
    parser.add_argument("--repeats", type=at_least(1), default=10)
    parser.add_argument(
        "--seconds",
        type=at_least(0, float),
        default=4.0,
        help="of repeats of one figure",
    )
    parser.add_argument("--out", type=new_file)
    parser.add_argument(
        "--limit", type=at_least(1, float), default=3600.0, help="seconds"
    )
    parser.add_argument(
        "--silence",
        type=at_least(1, float),
        default=120.0,
        help="seconds that a method may take",
    )
    parser.add_argument("--table", type=existing_file, help="print a file's tables")
    # Of ranks that go on after others of the same run.
    parser.add_argument("--go-on", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    longest = max((int(row.partition(":")[0]) for row in options.row or ()), default=0)
    if options.table:
        parser.read(options.table, lambda f: print_table(Record.read(f)))
    elif not options.row or not options.out:
        parser.error("--row and --out say what to measure, --table what to print")
    elif "RANK" in os.environ:
        parser.require_gpus_or_few_tokens(parser.world_size(), "--row", longest)
        run_here(parser, options)
    else:
        parser.require_gpus_or_few_tokens(options.ranks, "--row", longest)
        with parser.writing(options.out):
            run_apart(parser, options)
            content = Record.read(options.out)
        gpu_program.end(*failures(content, options.row, options.methods))


if __name__ == "__main__":
    main()
