"""The steps of a run, one function each, with their places on disk:

OUTPUT/tokens/SOURCE.{bin,idx}       tokenize
OUTPUT/plans/STAGE/                  pack
OUTPUT/stages/STAGE/checkpoints/     train
OUTPUT/evaluation/NAME.json          evaluate
OUTPUT/report/                       report
OUTPUT/hf/STAGE/                     export
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config import RANDOM, RunConfig, StageConfig
from alia_ctx.errors import AliaError, CheckpointError, ConfigError, DataError, Problem
from alia_ctx.evaluation.heldout import HeldOutRow, held_out_rows
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.report import Report, write_report
from alia_ctx.files import write_json
from alia_ctx.metrics import read_lines
from alia_ctx.packing import PackPlan, build_plan
from alia_ctx.progress import meter, say
from alia_ctx.signals import StopRequests, Watchdog
from alia_ctx.tokens import TokenizeProgress, TokenStore, tokenize_source
from alia_ctx.trainer import (
    StageTrainer,
    checkpoints_directory,
    finished_checkpoint,
    position_edges,
    stage_directory,
)

HELD_OUT = "held_out"


# -- plan ---------------------------------------------------------------------------------------------------


def plan_stages(run: RunConfig, names: Sequence[str] = ()) -> list[Any]:
    """What each stage needs, as rich tables: tokens, time, RoPE, memory by item, and the layouts that would fit."""
    from alia_ctx.planner import GpuSpec, choices_table, memory_table, plan_stage, plan_table, suggest_layouts

    cluster = run.cluster
    gpu = GpuSpec(memory_gib=cluster.memory_gib, bf16_tflops=cluster.peak_tflops, gpus_per_node=cluster.ranks_per_node)
    tables: list[Any] = []
    for name in names or run.stages:
        stage = run.stage(name)
        world = run.world_size(stage)
        sizes = (world, stage.tokens, stage.update_tokens)
        shared = {"precision": run.engine.precision, "gpu": gpu, "loss_chunk_tokens": run.engine.loss_chunk_tokens}
        plan = plan_stage(
            run.model, stage.rope, stage.context, stage.layout, *sizes, recompute=stage.recompute, **shared
        )
        choices = suggest_layouts(run.model, stage.rope, stage.context, *sizes, **shared)
        tables += [plan_table(plan, name), memory_table(plan), choices_table(choices)]
    return tables


# -- tokenize and pack --------------------------------------------------------------------------------------


def tokenize(run: RunConfig, sources: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Tokenise the named sources (default: all, and the held-out text) into OUTPUT/tokens."""
    known = dict(run.data.sources)
    if run.evaluation.held_out is not None:
        known[HELD_OUT] = run.evaluation.held_out
    for name in sources or known:
        if name not in known:
            raise ConfigError("", [Problem("--source", name, "is not a source", f"there are {', '.join(known)}")])
        spec = known[name]
        if spec.store:
            say(f"{name}: uses the store {spec.store} as it is")
            continue
        with meter(f"tokenize {name}", 1.0, "token") as bar:

            def show(state: TokenizeProgress, bar: Any = bar) -> None:
                bar.total = max(state.tokens * state.bytes_total / max(state.bytes_done, 1), 1)
                if bar.bar is not None:
                    bar.bar.update(bar.task, total=bar.total)
                bar.update(state.tokens)

            report = tokenize_source(
                spec,
                name,
                run.tokenizer,
                run.directory("tokens"),
                workers=run.data.workers or os.cpu_count() or 1,
                append_eos=run.data.append_eos,
                prepend_bos=run.data.prepend_bos,
                overwrite=overwrite,
                progress=show,
            )
        state = "is there already" if report.unchanged else f"took {report.seconds:.1f} s"
        left_out = f", {report.counts.left_out} left out" if report.counts.left_out else ""
        say(f"{name}: {report.tokens:,} tokens of {report.counts.documents:,} documents{left_out}; {state}")


def open_store(run: RunConfig, source: str) -> TokenStore:
    """The token store of a source; DataError tells to tokenise first where there is none."""
    spec = run.evaluation.held_out if source == HELD_OUT else run.data.sources[source]
    if spec is None:
        raise DataError("there is no held-out text; name some under evaluation.held_out")
    prefix = Path(spec.store) if spec.store else run.directory("tokens", source)
    if not prefix.with_name(prefix.name + ".idx").is_file():
        raise DataError(f"{prefix}.idx: no such file; run `alia-ctx tokenize` first")
    return TokenStore(prefix)


def open_stores(run: RunConfig) -> dict[str, TokenStore]:
    return {name: open_store(run, name) for name in run.data.sources}


def plan_directory(run: RunConfig, stage: str) -> Path:
    return run.directory("plans", stage)


def pack(run: RunConfig, name: str, *, overwrite: bool = False) -> PackPlan:
    """Plan the rows of a stage into OUTPUT/plans/STAGE; a finished identical plan is left as it is."""
    stage = run.stage(name)
    with meter(f"pack {name}", 1.0, "plan") as bar:
        return build_plan(
            open_stores(run),
            stage.pack,
            stage.context,
            stage.rows,
            plan_directory(run, name),
            seed=run.seed,
            overwrite=overwrite,
            progress=lambda what, done: bar.update(done, what),
        )


def open_plan(run: RunConfig, name: str) -> PackPlan:
    directory = plan_directory(run, name)
    if not directory.is_dir():
        raise DataError(f"{directory}: stage {name} has no plan; run `alia-ctx pack CONFIG --stage {name}` first")
    stage = run.stage(name)
    return PackPlan.open(directory, open_stores(run), spec=stage.pack, row_length=stage.context, seed=run.seed)


# -- train --------------------------------------------------------------------------------------------------


def train(run: RunConfig, name: str, *, exit_before: float | None = None) -> Path:
    """Train a stage to its end on the ranks that this process is one of. Returns the last checkpoint.

    `exit_before`: seconds from the start of the process by which it must have saved and left (RequeueError).
    """
    from alia_ctx.mcore.engine import Distributed, MegatronEngine

    stage = run.stage(name)
    plan = open_plan(run, name)
    with StopRequests(exit_before) as stop, Distributed(run.engine):
        engine = MegatronEngine(
            run.model,
            stage.rope,
            stage.context,
            stage.layout,
            run.engine,
            run.optimizer,
            recompute=stage.recompute,
            seed=run.seed,
        )
        main = engine.rank == 0
        hang = Watchdog(run.engine.hang_minutes * 60, stage_directory(run, name), engine.rank)
        with hang, meter(f"train {name}", stage.rows * stage.context, "token", shown=main) as bar:
            trainer = StageTrainer(
                run,
                name,
                engine,
                plan,
                stop=stop,
                watchdog=hang,
                report=lambda line: _show_update(bar, stage, line),
                notice=(lambda text: say(f"[bold red]{escape(text)}")) if main else (lambda text: None),
                evaluate=_held_out_evaluation(run, name, engine) if run.evaluation.every_updates else None,
            )
            bar.begin_at(trainer.prepare() * stage.rows_per_update * stage.context)
            return trainer.train()


def _held_out_evaluation(run: RunConfig, name: str, engine: Any) -> Callable[[], dict[str, Any]]:
    """Held-out loss of the model in training, at its own length and at those of the stages before it."""
    contexts = previous_contexts(run, name)
    store = open_store(run, HELD_OUT)
    rows = {
        n: held_out_rows(
            store,
            context=n,
            length=max(contexts),
            documents=run.evaluation.documents,
            row_length=run.stage(name).context,
        )
        for n in contexts
    }

    def measure() -> dict[str, Any]:
        results = {}
        for n, held_out in rows.items():
            bands = measure_bands(engine, held_out, position_edges(run))
            results[str(n)] = {f"{b.start}-{b.stop - 1}": b.loss for b in bands.bands() if b.tokens}
        return results

    return measure


def previous_contexts(run: RunConfig, name: str) -> list[int]:
    """The stage's context and those of the stages that it comes from, the shortest first."""
    found = {run.stage(name).context}
    while (name := run.stage(name).init_from) in run.stages:
        found.add(run.stage(name).context)
    return sorted(found)


def _show_update(bar: Any, stage: StageConfig, line: dict[str, Any]) -> None:
    note = f"update {line['update']}/{stage.updates} loss {line['loss']:.4f} grad norm {line['gradient_norm']:.2f}"
    bar.update(line["update"] * stage.rows_per_update * stage.context, note)


# -- evaluate and report ------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One curve of the report: a stage's last checkpoint, shown `context` tokens at a time."""

    name: str
    stage: str
    context: int


def standard_evaluations(run: RunConfig) -> list[Evaluation]:
    """Every stage at its own context, and the first one given the longest input."""
    longest = longest_context(run)
    first = next(iter(run.stages))
    every = [Evaluation(name, name, stage.context) for name, stage in run.stages.items()]
    if run.stages[first].context < longest:
        every.insert(1, Evaluation(f"{first}, given {longest:,} tokens", first, longest))
    return every


def longest_context(run: RunConfig) -> int:
    return max(stage.context for stage in run.stages.values())


def measure_bands(
    engine: Any, rows: Sequence[HeldOutRow], edges: Sequence[int], progress: Callable[[int], None] = lambda done: None
) -> PositionBands:
    """Losses of `rows` by position; collective, the same on every rank."""
    bands = PositionBands(edges)
    ranks = engine.data_parallel_size
    for first in range(0, len(rows), ranks):
        part = rows[first : first + ranks]
        mine = part[engine.data_parallel_rank : engine.data_parallel_rank + 1]
        # A rank without a row takes part all the same: gathering the weights may be collective.
        for losses in engine.row_losses([held_out.row for held_out in mine]):
            if mine:
                bands.add(losses.row, losses.as_row(), mine[0].position_offsets)
        progress(first + len(part))
    total = PositionBands(edges)
    for gathered in engine.gather_objects(bands.to_json()):
        total.merge(PositionBands.from_json(gathered))
    return total


def evaluate(run: RunConfig, evaluations: Sequence[Evaluation]) -> dict[str, PositionBands]:
    """Measure losses by position on the held-out text; collective, results on every rank and in OUTPUT/evaluation."""
    from alia_ctx.mcore.engine import Distributed

    store = open_store(run, HELD_OUT)
    paths = {e.name: finished_checkpoint(run, e.stage) for e in evaluations}
    with Distributed(run.engine):
        return {e.name: _evaluate_one(run, e, paths[e.name], store) for e in evaluations}


def _evaluate_one(run: RunConfig, evaluation: Evaluation, path: Path, store: TokenStore) -> PositionBands:
    from alia_ctx.mcore.engine import MegatronEngine

    stage = run.stage(evaluation.stage)
    manifest = checkpoint.read_manifest(path)
    engine = MegatronEngine(manifest.model, manifest.rope, evaluation.context, stage.layout, run.engine, None)
    engine.load(path / checkpoint.STATE, with_optimizer=False)
    rows = held_out_rows(
        store, context=evaluation.context, length=longest_context(run), documents=run.evaluation.documents
    )
    with meter(f"evaluate {evaluation.name}", len(rows), "row", shown=engine.rank == 0) as bar:
        total = measure_bands(engine, rows, position_edges(run), bar.update)
    if engine.rank == 0:
        _result_path(run, evaluation).parent.mkdir(parents=True, exist_ok=True)
        write_json(_result_path(run, evaluation), {"checkpoint": str(path), **total.to_json()})
    return total


@dataclasses.dataclass(frozen=True)
class RecomputedLoss:
    """The loss of one update of the log, computed again from the plan and the checkpoint before it."""

    update: int
    loss: float
    logged: float | None

    def __str__(self) -> str:
        if self.logged is None:
            return f"update {self.update}: loss {self.loss:.9f}; the log has none (skipped, or not there)"
        difference = abs(self.loss - self.logged) / abs(self.logged)
        return f"update {self.update}: loss {self.loss:.9f}, in the log {self.logged:.9f}, relative {difference:.1e}"


def recompute(run: RunConfig, name: str, update: int) -> RecomputedLoss:
    """Compute the training loss of `update` again: forward only, on any layout. Collective.

    CheckpointError where no checkpoint holds the state before it, naming the updates that can be recomputed.
    """
    from alia_ctx.mcore.engine import Distributed, MegatronEngine

    stage = run.stage(name)
    plan = open_plan(run, name)
    path = _state_before(run, name, update)
    with Distributed(run.engine):
        engine = MegatronEngine(run.model, stage.rope, stage.context, stage.layout, run.engine, None, seed=run.seed)
        if path is not None:
            engine.load(path / checkpoint.STATE, with_optimizer=False)
        first = (update - 1) * stage.rows_per_update
        rows = range(first, first + stage.rows_per_update)[engine.data_parallel_rank :: engine.data_parallel_size]
        losses = engine.row_losses([plan.row(i) for i in rows])
        loss, _ = engine.reduce_losses(losses if rows else ())
    log = {line["update"]: line["loss"] for line in read_lines(stage_directory(run, name) / "metrics.jsonl")}
    return RecomputedLoss(update, loss, log.get(update))


def _state_before(run: RunConfig, name: str, update: int) -> Path | None:
    """The checkpoint that update `update` started from; None where that was random weights."""
    stage = run.stage(name)
    found = {int(p.name.rsplit("-", 1)[1]): p for p in checkpoint.list_checkpoints(checkpoints_directory(run, name))}
    if update == 1 and stage.init_from == RANDOM:
        return None
    if update == 1:
        known = stage.init_from in run.stages
        return finished_checkpoint(run, stage.init_from) if known else Path(stage.init_from)
    if update - 1 in found and update <= stage.updates:
        return found[update - 1]
    possible = [1, *(u + 1 for u in sorted(found) if u < stage.updates)]
    raise CheckpointError(
        f"no checkpoint of stage {name} holds the state before update {update}; "
        f"updates {', '.join(map(str, possible))} can be recomputed (checkpoint.keep_every keeps more)"
    )


def _result_path(run: RunConfig, evaluation: Evaluation) -> Path:
    return run.directory("evaluation", f"{evaluation.stage}-{evaluation.context}.json")


def report(run: RunConfig) -> Report:
    """Tables, plot and verdicts of the standard evaluations, in OUTPUT/report."""
    results = {}
    for evaluation in standard_evaluations(run):
        path = _result_path(run, evaluation)
        if not path.is_file():
            raise DataError(f"{path}: no such file; run `alia-ctx evaluate CONFIG` first")
        results[evaluation.name] = PositionBands.from_json(json.loads(path.read_text(encoding="utf-8")))
    names = list(results)
    base = next(iter(run.stages))
    return write_report(
        results,
        run.directory("report"),
        base=base,
        final=list(run.stages)[-1],
        baselines=[name for name in names if name == base or name.startswith(f"{base}, ")],
        title=f"{run.name}: loss by position in the document",
        notes=_report_notes(run),
    )


def _report_notes(run: RunConfig) -> list[str]:
    notes = ["Held-out documents; a model sees its own context, or what its name says, in blocks from the start."]
    for name in run.stages:
        ledger = checkpoint.read_manifest(finished_checkpoint(run, name)).ledger[-1]
        notes.append(
            f"{name}: context {ledger.context:,}, RoPE {ledger.rope.type}, {ledger.updates} updates, "
            f"{ledger.tokens:,} tokens, learning rate {ledger.learning_rate:g}"
        )
    return notes


# -- export -------------------------------------------------------------------------------------------------


def export(run: RunConfig, name: str) -> Path:
    """The last checkpoint of a finished stage as a Hugging Face directory, OUTPUT/hf/STAGE; left as it is if there."""
    from alia_ctx.hf import convert
    from alia_ctx.mcore import store

    path, directory = finished_checkpoint(run, name), run.directory("hf", name)
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        convert.export_hf(path, directory, store, tokenizer_dir=Path(run.tokenizer))
        say(f"{name}: exported to {directory}")
    return directory


# -- all of it ----------------------------------------------------------------------------------------------


def run_all(config: Path, overrides: Sequence[str], run: RunConfig) -> Report:
    """Every step on this machine; training and evaluation in processes of their own, started with torchrun.

    Steps that are finished are not done again, so a stopped run goes on where it was.
    """
    ranks = run.cluster.ranks_per_node
    if run.cluster.nodes != 1:
        raise AliaError(f"`run` works on one machine, cluster.nodes={run.cluster.nodes}; use launch/slurm_stage.sbatch")
    tokenize(run)
    for name in run.stages:
        pack(run, name)
        if not _is_finished(run, name):
            torchrun(ranks, ["train", str(config), "--stage", name, *overrides])
    export(run, list(run.stages)[-1])
    if not all(_result_path(run, e).is_file() for e in standard_evaluations(run)):
        torchrun(ranks, ["evaluate", str(config), *overrides])
    return report(run)


def _is_finished(run: RunConfig, name: str) -> bool:
    newest = checkpoint.latest(checkpoints_directory(run, name))
    return newest is not None and checkpoint.read_manifest(newest).update >= run.stage(name).updates


def torchrun(ranks: int, arguments: Sequence[str]) -> None:
    """Run `alia-ctx ARGUMENTS` on `ranks` processes of this machine; CheckpointError where it fails."""
    command = [
        sys.executable,
        "-m",
        "alia_ctx.launch",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "alia_ctx.cli",
        *arguments,
    ]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)), **os.environ}
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise CheckpointError(
            f"`alia-ctx {' '.join(arguments)}` stopped with exit status {code}; its messages are above"
        )
