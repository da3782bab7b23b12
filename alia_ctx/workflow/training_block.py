"""What is said once before a stage's first update: what is trained, how, from where, what
will be saved, and when it may end.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np

from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import PackPlan
from alia_ctx.errors import AliaError
from alia_ctx.spec.compute_capability import is_special
from alia_ctx.spec.model import ModelSpec
from alia_ctx.train.trainer import StageTrainer
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.idle_settings import idle_settings
from alia_ctx.workflow.planned import planned_stage, room_on_a_gpu

if TYPE_CHECKING:
    from alia_ctx.mcore.engine import MegatronEngine


def training_block(
    run: RunConfig,
    name: str,
    plan: PackPlan,
    engine: MegatronEngine,
    trainer: StageTrainer,
    now: datetime | None = None,
) -> list[str]:
    """The lines, of a trainer that is prepared. `now`: in UTC."""
    stage, model = run.stage(name), run.model
    rope, places = stage.rope, run_directory(run)
    factor = f" x{rope.factor:g}" if rope.factor else ""
    dp = engine.data_parallel_size
    layout = engine.layout
    updates = trainer.task.updates
    saving, left = run.checkpoint, updates - trainer.update
    tokens = int(plan.stats["tokens"])
    start = trainer.state.parent or "random weights"
    if trainer.update:
        start = f"goes on after update {trainer.update:,} of {updates:,}"
    kept = f"the last {saving.keep_last} kept"
    if saving.keep_every:
        kept += f", each {saving.kept_for_good:,}th for good"
    host = engine.device.type == "cpu"
    sinks = ", ".join(["metrics.jsonl", *run.metrics.sinks])
    return [
        f"run {run.name}, stage {name}",
        f"  model   {model.parameters():,} parameters, {model.num_hidden_layers} layers "
        f"of {model.hidden_size:,}; context {stage.context:,}, RoPE {rope.type}{factor}",
        f"  layout  tp={layout.tp} cp={layout.cp} pp={layout.pp} dp={dp} on "
        f"{engine.world_size} rank{'s' if engine.world_size != 1 else ''}, "
        f"recompute {stage.recompute}",
        f"  engine  {engine.device.type}, {run.engine.precision}, attention by "
        f"{engine.kernel}, layers by {engine.layers.words}{_fp8_words(engine, model)}",
        *(
            f"          not by {'another' if is_special(engine.kernel) else 'a faster one'}: {why}"
            for why in engine.kernels_passed_over
        ),
        *(
            f"          not by TransformerEngine's: {why}"
            for why in engine.layers.passed_over
        ),
        *(f"          {note}" for note in idle_settings(run, [name])),
        *_memory(run, name, engine),
        f"  plan    {plan.updates:,} updates of {_rows_an_update(plan)}; in all "
        f"{len(plan):,} rows, {tokens:,} tokens: {plan.directory}",
        *(
            [f"          the stage ends after update {updates:,} of it"]
            if updates < plan.updates
            else []
        ),
        f"  start   {start}",
        f"  saves   every {saving.every_updates:,} updates and at the end, {kept}: "
        f"{places.checkpoints(name)}",
        f"  numbers {sinks}: {places.stage(name)}",
        f"  end     {_end_or_why(run, name, left, now or datetime.now(UTC), host)}",
    ]


def _memory(run: RunConfig, name: str, engine: MegatronEngine) -> list[str]:
    """What the planner finds on a GPU beside what it has, so that an update that has no
    room does not come as a surprise; nothing on hosts.
    """
    if engine.device.type != "cuda":
        return []
    import torch

    there = torch.cuda.get_device_properties(engine.device).total_memory / 2**30
    try:
        words, remedy = room_on_a_gpu(run, name, there)
    except AliaError:
        return []
    return [f"  memory  {words}", *(f"          {text}" for text in remedy)]


def _fp8_words(engine: MegatronEngine, model: ModelSpec) -> str:
    if engine.fp8 == "off":
        return ""
    layers = model.num_hidden_layers
    cast = layers - 2 * engine.config.fp8_bf16_layers
    return f", products of {cast} of {layers} layers in FP8 ({engine.fp8})"


def _rows_an_update(plan: PackPlan) -> str:
    """`8 rows`, or `6 to 8 rows` where updates differ, as those of conversations do."""
    rows = np.diff(plan.update_offsets)
    fewest, most = int(rows.min(initial=len(plan))), int(rows.max(initial=0))
    plural = "s" if most != 1 else ""
    return f"{most:,} row{plural}" if fewest == most else f"{fewest:,} to {most:,} rows"


def _end_or_why(run: RunConfig, name: str, left: int, now: datetime, host: bool) -> str:
    """An estimate never stops a run: this is asked on one rank, and the others, which
    would wait for it, meet what is wrong with the log where all of them open it.
    """
    try:
        return _end(run, name, left, now, host)
    except (AliaError, OSError, KeyError, TypeError, ValueError) as error:
        return f"not known ({' '.join(str(error).split())})"


def _end(run: RunConfig, name: str, left: int, now: datetime, host: bool) -> str:
    """When the updates that are left may be done, by what those before took, or by the
    planner; not where it is asked of a GPU, as without `cluster`, and a host computes.
    """
    from alia_ctx.planner import duration
    from alia_ctx.report.wall_time import seconds_for
    from alia_ctx.train.metrics_log import read_lines

    if not left:
        return "all updates are done"
    lines = read_lines(run_directory(run).metrics(name))
    if (measured := seconds_for(left, lines)) is not None:
        seconds, by = measured, "by the updates so far"
    elif host and run.cluster.is_of_gpus:
        return "no estimate yet: cluster describes a GPU, and a host computes"
    else:
        try:
            plan = planned_stage(run, name)
        except AliaError:
            return "no estimate yet"
        if plan.untimed and not host:
            return f"no estimate yet: {plan.untimed}"
        seconds, by = left * plan.timing.total, "by the planner, not measured"
    whole = max(1.0, seconds)
    if whole > timedelta(days=3650).total_seconds():
        return f"in more than ten years {by}"
    then = (now + timedelta(seconds=whole)).strftime("%Y-%m-%d %H:%M UTC")
    return f"about {then}, in {duration(whole)} ({left:,} updates, {by})"
