"""A training step of ALIA-shaped layers beside the same step of other programs, in one run.

    python benchmarks/gpu_peers.py --layers 2 --context 32768 --out peers.jsonl
    python benchmarks/gpu_peers.py --row web --peers ours liger_flash4 --out web.jsonl
    python benchmarks/gpu_peers.py --ranks 2 --peers ours liger megatron_te --out two.jsonl
    python benchmarks/gpu_peers.py --table peers.jsonl

Peers, each in processes of its own, in turn, `--rounds` times over and the first once more
at the end, which shows how far the cards have moved:

- `ours`: the product's engine, as `gpu_step.py` has it: bf16, gradients added up in fp32,
  the attention kernel that it takes by itself; `ours_flash4` with FlashAttention 4,
  `ours_te` on TransformerEngine's layers, `ours_fp8_current` and `ours_fp8_blockwise`
  with all their products in FP8.
- `transformers`: `LlamaForCausalLM` as it comes, torch's attention (cuDNN's kernel first),
  gradients in bf16.
- `liger`: the same with Liger's kernels (RMS norm, RoPE, SwiGLU, fused loss).
- `liger_fp32`: that, with gradients added up in fp32, as ours are: on one GPU as each is
  made; on several, where FSDP2 keeps gradients as it keeps weights, by fp32 weights that
  are cast to bf16 in each step.
- `liger_flash4`: `liger_fp32` with FlashAttention 4, which knows the documents of a packed
  row. Beside `ours_flash4` what is left is all but attention; `ours` may take another
  kernel, which its row says.
- `megatron_te`: Megatron-Core's own GPT with TransformerEngine's layers and attention in
  its DistributedDataParallel; with `_fp8_current` and `_fp8_blockwise` by its own FP8.
- `torchtitan`: its own Llama 3 as it comes but for compilation, which its pages advise
  (`torchtitan_peer.py`): flex attention, which knows documents, fp32 weights and gradients,
  products in bf16; `torchtitan_flash` with FlashAttention 4 for flex's own kernel,
  `torchtitan_sdpa` with torch's attention (cuDNN's kernel first) as `liger` has it, and
  `torchtitan_bf16` that with weights and gradients in bf16, also as `liger`. Each compiles
  in its first step: give `--limit` minutes.

With `--ranks` each rank has a row of its own: ours and Megatron's data-parallel, torchtitan
and those on transformers sharded by FSDP2, a layer a unit. A step is forward, backward and, on
several ranks, all that reduces gradients and gathers weights; the optimizer's step is no
part of any figure. A packed row (`--row web`) is given only to those that keep its
documents apart.

Each result is a line of `--out`, written as it comes with the setting it was measured under
and the releases of what computed it; a file of another setting (card, GPUs, torch, sizes,
`--repeats`), or with another release of what a peer is computed by, is refused before
anything starts, one with another kernel when that shows, and `--table` prints a table for
each. While one peer is measured the next
one's processes import what they need. A peer that fails, hangs or is not installed is a
line with the reason, and the program ends with status 1. The sizes are the same for all,
and it is checked: parameters are counted. Weights are random, so losses are near
ln(vocabulary) and are printed to show that all did the work. `--profile` also says where
a step's time on the GPU goes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.model import ModelSpec
from benchmarks import gpu_program
from benchmarks.figures import first_odd, first_or_odd
from benchmarks.gpu_program import Parser, at_least, existing_file, new_file
from benchmarks.gpu_step import ROWS, Case, make_row
from benchmarks.kernel_time import NAMES, matrix_rate, profile_step
from benchmarks.pages import read_results, table, write_result
from benchmarks.peers import PEERS, Task, device, packages_of
from benchmarks.process_ranks import RankGroup
from benchmarks.releases import (
    Columns,
    Computed,
    by_computation,
    print_installed,
    releases,
)
from benchmarks.row_attention import UnableError
from benchmarks.settings import Setting, by_setting, card_here
from benchmarks.stacks import alia_stack
from benchmarks.torchtitan_peer import import_for_any_torch

KNOWS_DOCUMENTS = (
    *("ours", "ours_flash4", "ours_te", "ours_fp8_current", "ours_fp8_blockwise"),
    *("liger_flash4", "torchtitan", "torchtitan_flash"),
)
WARM_UP = 2


def measure(peer: str, task: Task, profiled: bool) -> dict[str, Any]:
    """Seconds of each step after the warm-up, the slowest rank's, and what it took."""
    on_gpu = device().type == "cuda"
    with Distributed(EngineConfig()):
        rate = matrix_rate(repeats=40) if on_gpu else 0.0
        step = PEERS[peer](task)
        seconds, losses = [], []
        for number in range(WARM_UP + task.repeats):
            if number == WARM_UP and on_gpu:
                torch.cuda.reset_peak_memory_stats()
            dist.barrier()
            _synchronize(on_gpu)
            start = time.perf_counter()
            loss = step.run()
            _synchronize(on_gpu)
            taken = torch.tensor(time.perf_counter() - start, device=device())
            dist.all_reduce(taken, dist.ReduceOp.MAX)
            if number >= WARM_UP:
                seconds.append(float(taken))
                losses.append(loss)
        peak = torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0
        classes, kernels = profile_step(step.run) if profiled and on_gpu else ({}, [])
    return {
        "peer": peer,
        "kernel": step.describe(),
        "releases": releases(packages_of(peer)),
        "parameters": step.parameters,
        "seconds": seconds,
        "loss": first_or_odd(losses),
        "gib": peak,
        "matrix_tflops": rate,
        "flops": task.flops,
        "classes": classes,
        "kernels": kernels,
    }


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def run_here(options: argparse.Namespace) -> None:
    """As one of a peer's ranks, once told to begin; the first prints its result."""
    peer = options.in_process
    if not peer.startswith("ours"):
        with contextlib.suppress(ImportError):  # the peer says so
            import transformers  # noqa: F401
    if peer.startswith("torchtitan"):
        with contextlib.suppress(ImportError):
            import_for_any_torch()
    sys.stdin.readline()
    model = alia_stack(options.layers, options.vocabulary)
    if options.width:
        model = ModelSpec(
            num_hidden_layers=options.layers,
            hidden_size=options.width,
            intermediate_size=3 * options.width,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=options.width // 8,
            vocab_size=options.vocabulary,
        )
    case = Case(options.layers, options.context, "none", options.row)
    row = make_row(case, options.vocabulary)
    task = Task(model, row, options.context, options.repeats)
    try:
        result = measure(peer, task, options.profile)
    except (*gpu_program.REFUSALS, UnableError) as error:
        # On one rank alone the others may wait for it; their end is the group's.
        sys.exit(gpu_program.one_line(error))
    if int(os.environ.get("RANK", "0")) == 0:
        print(json.dumps(result))


# What results have in common that one table compares.
SETTING = (
    *("ranks", "card", "torch", "layers", "context", "row", "vocabulary", "width"),
    "repeats",
)
COMPUTED = Columns("peer", "kernel")


def setting_of(options: argparse.Namespace) -> Setting:
    """That of this run."""
    here = {"card": card_here(), "torch": torch.__version__}
    return {n: here[n] if n in here else getattr(options, n) for n in SETTING}


def run_all(
    options: argparse.Namespace, setting: Setting, known: Computed
) -> list[dict[str, Any]]:
    """Each peer in its turn; results, which are also written as they come. MixedError where
    another kernel computed one than computed it in the file, which has those `known`.
    """
    turns = options.peers * options.rounds
    turns += options.peers[:1] if len(options.peers) > 1 else []
    arguments = [
        *("--layers", str(options.layers), "--context", str(options.context)),
        *("--vocabulary", str(options.vocabulary), "--row", options.row),
        *("--repeats", str(options.repeats)),
        *(("--width", str(options.width)) if options.width else ()),
        *(("--profile",) if options.profile else ()),
    ]
    results: list[dict[str, Any]] = []
    failed: set[str] = set()
    with contextlib.ExitStack() as stack:

        def prepare(peer: str) -> tuple[contextlib.ExitStack, RankGroup]:
            own = stack.enter_context(contextlib.ExitStack())
            command = [__file__, "--in-process", peer, *arguments]
            return own, own.enter_context(RankGroup(command, options.ranks))

        waiting = {0: prepare(turns[0])}
        for number, peer in enumerate(turns):
            own, group = waiting.pop(number)
            if number + 1 < len(turns):
                waiting[number + 1] = prepare(turns[number + 1])
            if peer not in failed:
                group.go()
                results.append(setting | _result(peer, group, options.limit))
                if "skipped" in results[-1]:
                    failed.add(peer)  # once is enough
                else:
                    known.require(options.out, results[-1], COMPUTED)
                write_result(results[-1], options.out)
            own.close()
    return results


def _result(peer: str, group: RankGroup, limit: float) -> dict[str, Any]:
    ended = group.wait(limit=limit)
    if ended.problem is not None:
        return {"peer": peer, "skipped": ended.problem}
    result: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
    return result


COLUMNS = (
    *("peer", "kernel", "s", "spread", "tokens/s a GPU", "TFLOP/s a GPU"),
    *("of the matrix rate", "time over ours", "GiB", "loss"),
)


def print_tables(results: list[dict[str, Any]]) -> None:
    """Markdown, for each setting and for each release and kernel of a peer: the peers, their
    time by class of kernel, and who was not measured. ValueError where peers of one table
    have models of different sizes.
    """
    if all("skipped" in result for result in results):
        sys.exit("no peer was measured")
    tables = [
        (setting, *one)
        for setting, group in by_setting(results, SETTING)
        for one in by_computation(group, COMPUTED)
    ]
    for _, _, own in tables:
        counts = {r["parameters"] for r in own if "skipped" not in r}
        if len(counts) > 1:
            raise ValueError(f"the peers have models of different sizes: {counts}")
    for number, (setting, computed, own) in enumerate(tables):
        if number:
            print()
        _print_setting(setting, computed, own)


def _print_setting(
    setting: Setting, computed: Computed, results: list[dict[str, Any]]
) -> None:
    measured: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        if "skipped" not in result:
            measured.setdefault(result["peer"], []).append(result)
    medians = {
        peer: statistics.median(s for r in rounds for s in r["seconds"])
        for peer, rounds in measured.items()
    }
    words = f"{setting['ranks']} x {setting['card']}, torch {setting['torch']}, "
    if "layers" in setting:
        words += f"layers {setting['layers']}, "
    words += f"{setting['context']:,} tokens a row"
    if "row" in setting:
        words += {"one": ", one document"}.get(setting["row"], ", packed documents")
    print(f"{words}.\n")
    print_installed(computed)
    lines = []
    for peer, rounds in measured.items():
        middle, first = medians[peer], rounds[0]
        every = [s for r in rounds for s in r["seconds"]]
        rate = max(r["matrix_tflops"] for r in rounds)
        tflops = first["flops"] / middle / 1e12
        lines.append(
            [
                *(peer, first["kernel"], f"{middle:.3f}"),
                f"{(max(every) - min(every)) / middle:.1%}",
                f"{setting['context'] / middle:,.0f}",
                f"{tflops:,.0f}",
                f"{tflops / rate:.1%}" if rate else "",
                f"{middle / medians['ours']:.3f}" if "ours" in medians else "",
                f"{max(r['gib'] for r in rounds):.1f}",
                f"{first_or_odd([r['loss'] for r in rounds]):.3f}",
            ]
        )
    if lines:
        print(table(COLUMNS, lines))
    profiled: dict[str, dict[str, Any]] = {}
    for result in results:
        if result.get("classes"):
            profiled.setdefault(result["peer"], result)
    if profiled:
        print("\nMilliseconds of a profiled step on the first GPU:\n")
        rows = [
            [peer, *(f"{result['classes'][name]:.1f}" for name in NAMES)]
            for peer, result in profiled.items()
        ]
        print(table(("peer", *NAMES), rows))
    skipped = {r["peer"]: r["skipped"] for r in results if "skipped" in r}
    if skipped:
        print("\nNot measured:\n")
    for peer, reason in skipped.items():
        print(f"- {peer}: {reason}")


def main() -> None:
    parser = Parser()
    number = at_least(1)
    parser.add_argument("--layers", type=number, default=2)
    parser.add_argument("--context", type=number, default=32_768)
    parser.add_argument("--vocabulary", type=number, default=8192)
    parser.add_argument("--row", choices=ROWS, default="one")
    parser.add_argument("--peers", nargs="+", choices=PEERS)
    parser.add_argument("--repeats", type=number, default=5)
    parser.add_argument("--rounds", type=number, default=1)
    parser.add_argument("--ranks", type=number, default=1, help="GPUs of this machine")
    parser.add_argument(
        "--profile", action="store_true", help="one more step, by class of kernel"
    )
    parser.add_argument("--out", type=new_file, help="a line of JSON for each result")
    parser.add_argument(
        "--limit",
        type=at_least(1, float),
        default=120.0,
        help="seconds that a peer may take",
    )
    parser.add_argument("--table", type=existing_file, help="print a file's tables")
    parser.add_argument("--in-process", choices=PEERS)
    parser.add_argument(
        "--width",
        type=number,
        help="a small stack of this hidden size, to try it anywhere",
    )
    options = parser.parse_args()
    if options.table:
        parser.read(options.table, lambda f: print_tables(read_results(f, "peer")))
        return
    if options.width and options.width % 16:
        parser.error("--width: 8 heads of an even size make a multiple of 16")
    able = [p for p in PEERS if options.row == "one" or p in KNOWS_DOCUMENTS]
    options.peers = options.peers or able
    if unable := [p for p in options.peers if p not in able]:
        parser.error(f"--row {options.row}: {', '.join(unable)} know no documents")
    if options.in_process:
        run_here(options)
        return
    parser.require_gpus_or_few_tokens(options.ranks, "--context", options.context)
    setting = setting_of(options)
    installed = {peer: releases(packages_of(peer)) for peer in options.peers}
    with parser.writing(options.out):
        known = parser.require_setting(options.out, setting, COMPUTED, installed)
        results = parser.begun(lambda: run_all(options, setting, known))
    try:
        print_tables(results)
    except ValueError as error:
        sys.exit(str(error))
    gpu_program.end(
        (r["peer"] for r in results if "skipped" in r),
        (r["peer"] for r in results if first_odd([r.get("loss", 0.0)]) is not None),
    )


if __name__ == "__main__":
    main()
