"""The plan before a run, the export after it, and everything in between on one machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.checkpoint import dcp_store
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.errors import AliaError, CheckpointError
from alia_ctx.evaluation.report import Report
from alia_ctx.progress import say
from alia_ctx.spec.execution import loss_chunk_tokens
from alia_ctx.train.run_directory import checkpoints_directory, finished_checkpoint
from alia_ctx.workflow.data import pack, tokenize
from alia_ctx.workflow.evaluation import report, result_path, standard_evaluations


def plan_stages(run: RunConfig, names: Sequence[str] = ()) -> list[Any]:
    """What each stage needs, as rich tables:

    tokens, time, RoPE, memory by item, and the layouts that would fit.
    """
    from alia_ctx.planner import (
        choices_table,
        memory_table,
        plan_stage,
        plan_table,
        suggest_layouts,
    )

    tables: list[Any] = []
    for name in names or run.stages:
        stage = run.stage(name)
        world = run.world_size(stage)
        sizes = (world, stage.tokens, stage.update_tokens)
        shared: dict[str, Any] = {
            "precision": run.engine.precision,
            "cluster": run.cluster,
            "loss_chunk_tokens": loss_chunk_tokens(
                run.engine.loss_chunk_tokens, "cuda"
            ),
        }
        plan = plan_stage(
            run.model,
            stage.rope,
            stage.context,
            stage.layout,
            *sizes,
            recompute=stage.recompute,
            **shared,
        )
        choices = suggest_layouts(
            run.model, stage.rope, stage.context, *sizes, **shared
        )
        tables += [plan_table(plan, name), memory_table(plan), choices_table(choices)]
    return tables


def export(run: RunConfig, name: str) -> Path:
    """The last checkpoint of a finished stage as a Hugging Face directory,
    OUTPUT/hf/STAGE; left as it is if there.
    """
    from alia_ctx.hf import convert

    path, directory = finished_checkpoint(run, name), run.directory("hf", name)
    if not directory.is_dir():
        directory.parent.mkdir(parents=True, exist_ok=True)
        convert.export_hf(path, directory, dcp_store, tokenizer_dir=Path(run.tokenizer))
        say(f"{name}: exported to {directory}")
    return directory


def run_all(config: Path, overrides: Sequence[str], run: RunConfig) -> Report:
    """Every step on this machine; training and evaluation in processes of their own,
    started with torchrun.

    Steps that are finished are not done again, so a stopped run goes on where it was.
    """
    ranks = run.cluster.ranks_per_node
    if run.cluster.nodes != 1:
        raise AliaError(
            f"`run` works on one machine, cluster.nodes={run.cluster.nodes}; use "
            "launch/slurm_stage.sbatch"
        )
    tokenize(run)
    # Held-out text has its lengths in tokens now: too short is said before training.
    load_run(config, overrides, read_text=True)
    for name in run.stages:
        pack(run, name)
        if not _is_finished(run, name):
            torchrun(ranks, ["train", str(config), "--stage", name, *overrides])
    export(run, list(run.stages)[-1])
    if not all(result_path(run, e).is_file() for e in standard_evaluations(run)):
        torchrun(ranks, ["evaluate", str(config), *overrides])
    return report(run)


def _is_finished(run: RunConfig, name: str) -> bool:
    newest = checkpoint.latest(checkpoints_directory(run, name))
    return (
        newest is not None
        and checkpoint.read_manifest(newest).update >= run.stage(name).updates
    )


def torchrun(ranks: int, arguments: Sequence[str]) -> None:
    """Run `alia-ctx ARGUMENTS` on `ranks` processes of this machine;

    CheckpointError where it fails.
    """
    command = [
        sys.executable,
        "-m",
        "alia_ctx.cli.launch",
        "--standalone",
        f"--nproc-per-node={ranks}",
        "-m",
        "alia_ctx.cli",
        *arguments,
    ]
    environment = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks)),
        **os.environ,
    }
    code = subprocess.run(command, env=environment, check=False).returncode
    if code:
        raise CheckpointError(
            f"`alia-ctx {' '.join(arguments)}` stopped with exit status {code}; its "
            "messages are above"
        )
