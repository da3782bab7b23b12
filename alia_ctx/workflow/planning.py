"""What `plan` says: the needs of each stage, the layouts for 1, 2, 4, ... GPUs, and an update
as a time line.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from alia_ctx.config.layouts import choose, search_settings
from alia_ctx.config.room import remedy, way_out
from alia_ctx.config.run import RunConfig, StageConfig
from alia_ctx.errors import AliaError, ConfigError, DataError, Problem
from alia_ctx.files import require_replaceable, write_json
from alia_ctx.planner import (
    GpuCount,
    LayoutChoice,
    StagePlan,
    assumptions_table,
    best_by_count,
    choices_table,
    counts_table,
    memory_table,
    plan_stage,
    plan_table,
    powers_of_two,
    suggest_layouts,
)
from alia_ctx.planner.timeline import TRACE_MARK, Timeline, simulate
from alia_ctx.spec.execution import Recompute
from alia_ctx.spec.machines import speeds_from
from alia_ctx.train.balance import assign_rows
from alia_ctx.workflow.dry_running import (
    counted_without_memory,
    dry_run_table,
    expected_counts,
)
from alia_ctx.workflow.epochs import epochs_in_words, epochs_of
from alia_ctx.workflow.mixture import mixture_tables
from alia_ctx.workflow.plan_numbers import plan_numbers
from alia_ctx.workflow.plan_question import PlanQuestion, on_gpus, plan_remarks
from alia_ctx.workflow.planned import (
    PackedStage,
    packed_stage,
    planning_sizes,
    room_in_words,
)
from alia_ctx.workflow.readiness import require_warmup

_DRAWN = 8  # data-parallel ranks of a time line: more than that nobody looks at
_SHOWN = 40  # layouts of a search


def plan_stages(run: RunConfig, asked: PlanQuestion) -> list[Any]:
    """What each stage needs, as rich tables: tokens, time, memory by item, the layouts that
    would fit, and what is assumed.
    """
    run = on_gpus(run, asked)
    stages = [_Stage(run, name, asked) for name in asked.stages or run.stages]
    tables: list[Any] = list(plan_remarks(run, asked))
    for stage in stages:
        tables += stage.tables()
    if asked.dry_run:
        tables.append(dry_run_table({s.name: s.plan for s in stages}))
    engine, work = run.engine, stages[0].plan.work
    tables.append(
        assumptions_table(run.cluster, engine.precision, engine.fp8, work.attention)
    )
    return tables


def plan_document(run: RunConfig, asked: PlanQuestion) -> dict[str, Any]:
    """What `plan_stages` says, for other programs: seconds, GiB and tokens."""
    run = on_gpus(run, asked)
    stages = {name: _Stage(run, name, asked) for name in asked.stages or run.stages}
    document: dict[str, Any] = {
        "cluster": dataclasses.asdict(run.cluster),
        "efficiencies": speeds_from(run.cluster),
        "precision": run.engine.precision,
        "fp8": run.engine.fp8,
        "notes": list(plan_remarks(run, asked)),
        "stages": {
            name: {
                "plan": plan_numbers(stage.plan),
                "note": stage.note,
                "epochs": epochs_of(run, name),
                "checkpoints": _kept(run, stage.plan),
                "layouts": [
                    {**plan_numbers(c.plan), "usable": c.usable, "reason": c.reason}
                    for c in stage.choices[:_SHOWN]
                ],
                "counts": [
                    {
                        "gpus": count.gpus,
                        "usable": count.best.usable,
                        "reason": count.best.reason,
                        "plan": plan_numbers(count.best.plan),
                    }
                    for count in stage.counts
                ],
            }
            for name, stage in stages.items()
        },
    }
    if asked.dry_run:
        plans = [stage.plan for stage in stages.values()]
        for name, plan, counts in zip(
            stages, plans, counted_without_memory(plans), strict=True
        ):
            planned = expected_counts(plan)
            document["stages"][name]["dry_run"] = {
                "planned": planned,
                "counted": counts,
                "of": "bf16" if plan.work.fp8 != "off" else plan.work.precision,
            }
    return document


class _Stage:
    """A stage that is asked about. Its pack plan is read once, its layouts searched once."""

    def __init__(self, run: RunConfig, name: str, asked: PlanQuestion) -> None:
        self.run, self.name, self.asked = run, name, asked
        require_warmup(run, name)
        self.stage = run.stage(name)
        self.model = run.model, self.stage.rope, self.stage.context

    def tables(self) -> list[Any]:
        if self.asked.search:
            return [choices_table(self.choices, limit=_SHOWN)]
        plan, kept = self.plan, _kept(self.run, self.plan)
        return [
            *mixture_tables(self.run, self.name),
            *filter(None, (self.note, self.room)),
            *filter(None, (epochs_in_words(self.run, self.name),)),
            *(plan_table(plan, self.name, kept=kept), memory_table(plan)),
            counts_table(self.counts, self.name),
            choices_table(self.choices, limit=8),
        ]

    @cached_property
    def sizes(self) -> tuple[int, int, int]:
        """(GPUs, tokens, tokens of an update)."""
        gpus = self.asked.gpus or self.run.world_size(self.stage)
        return gpus, *planning_sizes(self.run, self.name, self.packed)

    @cached_property
    def packed(self) -> PackedStage | None:
        return packed_stage(self.run, self.name)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        rows = None if self.packed is None else self.packed.row_sizes
        return {**search_settings(self.run, self.stage), "packed": rows}

    @cached_property
    def _modes(self) -> tuple[Recompute | None, bool | None]:
        """The recomputation and offloading (None: all) that layouts are sought with: what
        the command line gives, and what `layout: auto` would take; a search tries all else.
        """
        given, search = self.asked.given, self.asked.search
        offload: bool | None = self.run.engine.offload_activations
        if search and given.value("engine", "offload_activations") is None:
            offload = None
        asked_for = given.of_stage(self.name, "recompute") is not None
        is_open = self.name in self.asked.open_layouts
        stated = is_open and not search and self.name in given.recomputing
        recompute = self.stage.recompute if asked_for or stated else None
        return recompute, offload

    @cached_property
    def choices(self) -> list[LayoutChoice]:
        recompute, offload = self._modes
        return suggest_layouts(
            *(*self.model, *self.sizes),
            **self._shared,
            recompute=recompute,
            offload=offload,
        )

    @cached_property
    def counts(self) -> list[GpuCount]:
        """The best layout of 1, 2, 4, ... GPUs, or what gives them one."""
        recompute, offload = self._modes
        counts = best_by_count(
            *self.model,
            powers_of_two(self.sizes[0]),
            *self.sizes[1:],
            known={self.sizes[0]: self.choices},
            **self._shared,
            recompute=recompute,
            offload=offload,
        )
        return [
            dataclasses.replace(count, way_out=self._way_out(count.gpus))
            if not count.best.usable
            else count
            for count in counts
        ]

    def _way_out(self, gpus: int) -> tuple[str, LayoutChoice] | None:
        room = way_out(self.run, self.name, gpus, self._choose)
        return None if room is None else (" ".join(room.settings), room.choice)

    def _choose(
        self, run: RunConfig, stage: StageConfig, gpus: int, free: bool
    ) -> LayoutChoice:
        """As `choices`, of a run, a stage and GPUs that are changed."""
        if stage.context != self.stage.context:
            return choose(run, stage, gpus, free)
        sizes = self.sizes[1:]
        if stage != self.stage and stage.tokens and stage.update_tokens:
            sizes = stage.tokens, stage.update_tokens
        return suggest_layouts(
            *(run.model, stage.rope, stage.context, gpus, *sizes),
            **search_settings(run, stage),
            packed=self._shared["packed"],
            recompute=None if free else stage.recompute,
            offload=run.engine.offload_activations,
        )[0]

    @property
    def room(self) -> str:
        """A line that says what gives the stage room, where it has none."""
        gpus = self.sizes[0]
        if not self._open and not self.plan.fits and not self.plan.may_fit:
            ranks = min(gpus, self.run.cluster.ranks_per_node)
            nodes = -(-gpus // ranks)
            cluster = dataclasses.replace(
                self.run.cluster, nodes=nodes, ranks_per_node=ranks
            )
            own = dataclasses.replace(
                self.stage, nodes=nodes if self.stage.nodes else None
            )
            stages = {**self.run.stages, self.name: own}
            run = dataclasses.replace(self.run, cluster=cluster, stages=stages)
            return f"{self.name} has no room: {room_in_words(run, self.name)}"
        if not self._open or self.choices[0].fits:
            return ""
        if not self.choices[0].usable:
            words = remedy(self.run, self.name, gpus, self._choose)
            return f"{self.name} has no room: {words}"
        room = way_out(self.run, self.name, gpus, self._choose)
        sure = room is not None and room.choice.fits
        return f"{self.name} may lack room: {room}" if sure else ""

    @cached_property
    def _open(self) -> str:
        """Why the plan is not on the stage's own layout; nothing where it is."""
        key, gpus = f"stages.{self.name}.layout", self.sizes[0]
        broken = self.stage.layout.problems(
            key, self.run.model, self.stage.context, gpus
        )
        if broken:
            return "; ".join(map(str, broken))
        is_open = self.name in self.asked.open_layouts
        return "the stage leaves its layout open" if is_open else ""

    @property
    def note(self) -> str:
        """A line that says so where the plan is on the best layout instead."""
        if not self._open:
            return ""
        usable = self.choices[0].usable
        way = "`layout: auto` takes it" if usable else "no layout is usable"
        return f"{self.name} is planned in the first layout, {self._open}; {way}"

    @cached_property
    def plan(self) -> StagePlan:
        """On the stage's layout, or on the best one where that is open or broken."""
        if self._open:
            return self.choices[0].plan
        shared = {k: v for k, v in self._shared.items() if k != "shortest_row"}
        return plan_stage(
            *self.model,
            self.stage.layout,
            *self.sizes,
            recompute=self.stage.recompute,
            offload=self.run.engine.offload_activations,
            **shared,
        )


def checkpoints_gib(run: RunConfig, name: str) -> float:
    """GiB that the checkpoints of a stage take on disk at most; 0 where that cannot be
    planned.
    """
    try:
        plan = _Stage(run, name, PlanQuestion()).plan
    except AliaError:
        return 0.0
    return plan.checkpoint_gib * _kept(run, plan)


def _kept(run: RunConfig, plan: StagePlan) -> int:
    """Checkpoints on disk at a time: the last, those kept for good, the best, one being
    written.
    """
    saving, updates = run.checkpoint, plan.work.updates
    saves = -(-updates // saving.every_updates)
    for_good = updates // saving.kept_for_good if saving.keep_every else 0
    best = run.evaluation.best is not None
    return min(saves, saving.keep_last) + for_good + best + 1


def draw_update(run: RunConfig, asked: PlanQuestion, path: Path) -> Timeline:
    """Simulate the first update of the one stage that is asked about, with the rows of its
    pack plan where there is one, and write it to `path` as a Chrome trace.

    ConfigError where several stages are asked about, or `path` is a file that is no trace.
    """
    require_replaceable(path, "--trace", "a trace", (".json",), TRACE_MARK.encode())
    run, names = on_gpus(run, asked), list(asked.stages or run.stages)
    if len(names) != 1:
        rule = f"draws one stage, and there are {', '.join(names)}"
        problem = Problem("--trace", path, rule, "name one with --stage")
        raise ConfigError("", [problem])
    timeline = _simulated(_Stage(run, names[0], asked), _DRAWN)
    try:
        write_json(path, timeline.to_trace())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another place for "
            "--trace"
        ) from error
    return timeline


def simulated_update(run: RunConfig, name: str, ranks: int = 1) -> Timeline:
    """The first update of a stage on its layout, simulated; events of the `ranks`
    data-parallel ranks with most work. AliaError where it cannot be planned.
    """
    return _simulated(_Stage(run, name, PlanQuestion()), ranks)


def _simulated(stage: _Stage, drawn: int) -> Timeline:
    plan, work = stage.plan, stage.plan.work
    if plan.untimed:
        problem = Problem(
            "engine.attention",
            work.attention,
            f"no update can be simulated: {plan.untimed}",
            "set engine.precision=bf16 and engine.attention=auto for a time line of those",
        )
        raise ConfigError("", [problem])
    pairs = [work.causal_pairs] * work.rows_per_update
    if (packed := stage.packed) is not None:
        first, last = packed.update_offsets[:2].tolist()
        pairs = [float(n) for n in packed.pairs[first:last]]
        work = work.in_rows_of(int(packed.lengths[first]))
    groups = assign_rows(pairs, work.data_parallel, work.layout.pp)
    shares = [[(row, pairs[row]) for row in group] for group in groups]
    return simulate(work, plan.cluster, shares, drawn)
