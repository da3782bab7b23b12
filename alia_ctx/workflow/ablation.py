"""The same stage trained under several choices of RoPE, over seeds, and ranked.

A cell is a choice and a seed: a run of its own in OUTPUT/ablation/STAGE/CHOICE/seed-N,
which starts from what the stage starts from and trains on the same text. So everything
that a run is refused or resumed by holds for a cell: a finished one is left as it is,
one that was trained with other settings is named.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.ranking import Ranked, bands_of, ranked
from alia_ctx.files import write_json
from alia_ctx.hf.ranks import Ranks
from alia_ctx.identity import sealed
from alia_ctx.planner import RopeFigures, choice_table, rope_figures
from alia_ctx.progress import is_main, say
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.rendezvous import World
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.chain import check_trained, origin, run_directory
from alia_ctx.workflow.comparing_rope import base_rope
from alia_ctx.workflow.evaluated_models import of_stage
from alia_ctx.workflow.evaluation import measure_models
from alia_ctx.workflow.evaluation_results import Evaluation
from alia_ctx.workflow.evaluation_tasks import run_measurement, run_task
from alia_ctx.workflow.measuring import Measurement
from alia_ctx.workflow.pipeline import torchrun
from alia_ctx.workflow.plans import pack
from alia_ctx.workflow.stores import (
    has_store,
    require_same_text,
    store_prefix,
    text_sources,
    tokenize,
)
from alia_ctx.workflow.trained_choices import BUILTIN, choices_to_train
from alia_ctx.workflow.training import train

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Ranking:
    """What came out: for the whole and for each band of positions the choices in order,
    beside what the heuristics say of them.
    """

    stage: str
    context: int
    seeds: int
    bands: tuple[tuple[Ranked, ...], ...]
    figures: tuple[RopeFigures, ...]
    path: Path
    remarks: tuple[str, ...] = ()  # choices that are left out, what is not measured

    @property
    def verdict(self) -> str:
        """Who is ahead, who cannot be told apart, and whether the heuristic agrees."""
        whole = self.bands[0]
        best = whole[0]
        level = [one.name for one in whole[1:] if not one.is_clear]
        behind = [one.name for one in whole[1:] if one.is_clear]
        words = f"{best.name} has the lowest loss ({best.loss:.4f} nats a token)"
        if level:
            words += (
                f"; not told apart from it (two standard errors): {', '.join(level)}"
            )
        if behind:
            words += f"; clearly behind: {', '.join(behind)}"
        return f"{words}. {self._heuristic()}"

    def _heuristic(self) -> str:
        reach = {one.name: one.first_negative or one.context for one in self.figures}
        losses = {one.name: one.loss for one in self.bands[0]}
        names = sorted(losses)
        agree = counted = 0
        for i, a in enumerate(names):
            for b in names[i + 1 :]:
                if reach[a] != reach[b]:
                    counted += 1
                    agree += (reach[a] > reach[b]) == (losses[a] < losses[b])
        if not counted:
            return (
                "The heuristic (arXiv 2405.14591) gives all choices the same reach, so "
                "that it orders none."
            )
        return (
            f"The heuristic (arXiv 2405.14591: who reaches further is better) agrees in "
            f"{agree} of the {counted} pairs that it orders."
        )

    def tables(self) -> list[Table]:
        """A table for the whole and each band, and that of the heuristics."""
        from rich.table import Table

        tables = []
        for band in self.bands:
            start, stop = band[0].start, band[0].stop
            table = Table(
                title=f"{self.stage}, positions {start:,}-{stop - 1:,}: {self.seeds} "
                f"seeds, {band[0].documents} documents"
            )
            for name in ("choice", "loss (nats a token)", "behind the best"):
                table.add_column(name, justify="left" if name == "choice" else "right")
            for one in band:
                error = "" if one.error is None else f" ± {one.error:.4f}"
                behind = f"{one.behind:+.4f}{error}" if one is not band[0] else "-"
                table.add_row(one.name, f"{one.loss:.4f}", behind)
            tables.append(table)
        title = f"what the heuristics say at {self.context:,} tokens"
        return [*tables, choice_table(title, self.figures)]

    def to_json(self) -> dict[str, Any]:
        """In JSON's types."""
        return {
            "stage": self.stage,
            "context": self.context,
            "seeds": self.seeds,
            "bands": [[dataclasses.asdict(one) for one in band] for band in self.bands],
            "heuristics": [one.to_json() for one in self.figures],
            "verdict": self.verdict,
            "remarks": list(self.remarks),
        }


def ablate(
    config: Path,
    overrides: Sequence[str],
    run: RunConfig,
    name: str,
    choices: str = BUILTIN,
    seeds: int = 3,
) -> Ranking:
    """Train stage `name` under each choice and seed, measure, and rank.

    Started alone, it starts the machine's ranks; under torchrun or srun it takes those
    that are there. ConfigError for a stage or a choice that breaks a rule, DataError for
    held-out text too short to rank by, before anything is trained; IdentityError where a
    cell was trained with other settings.
    """
    ropes, remarks = choices_to_train(run, name, choices)
    cells = _cells(run, name, ropes, seeds)
    missing = [source for source in text_sources(run) if not has_store(run, source)]
    if missing and "RANK" not in os.environ:
        tokenize(run, missing)
    remarks += _not_measured(cells[0].run, name)
    starts_ranks = "RANK" not in os.environ and run.cluster.ranks_per_node > 1
    if is_main() and not starts_ranks:  # the first of them says it
        for remark in remarks:
            say(escape(remark))
    if starts_ranks:
        if run.cluster.nodes != 1:
            raise ConfigError(
                "",
                [
                    Problem(
                        "cluster.nodes",
                        run.cluster.nodes,
                        "`ablate` starts ranks on one machine alone",
                        "start it with srun on all nodes, as launch/slurm_stage.sbatch "
                        "starts `train`",
                    )
                ],
            )
        torchrun(
            run.cluster.ranks_per_node,
            [
                *("ablate", str(config), "--stage", name),
                *("--choices", choices, "--seeds", str(seeds), *overrides),
            ],
        )
    results = _train_and_measure(run, cells, name)
    grouped: dict[str, list[PositionBands]] = {}
    for cell in cells:
        grouped.setdefault(cell.choice, []).append(results[cell])
    return _ranking(run, name, ropes, seeds, grouped, cells, remarks)


@dataclass(frozen=True, eq=False)
class Cell:
    """A choice and a seed, as a run of its own."""

    choice: str
    seed: int
    run: RunConfig


def _cells(
    run: RunConfig, name: str, ropes: Mapping[str, RopeSpec], seeds: int
) -> list[Cell]:
    root = run_directory(run).root / "ablation" / name
    start = origin(run, name)
    cells = []
    for label, rope in ropes.items():
        for number in range(seeds):
            stage = dataclasses.replace(
                run.stage(name),
                rope=rope,
                init_from="random" if start is None else str(start),
                pack=dataclasses.replace(run.stage(name).pack, data="restart"),
            )
            cells.append(
                Cell(
                    label,
                    run.seed + number,
                    dataclasses.replace(
                        run,
                        name=f"{run.name}: {label}, seed {run.seed + number}",
                        output=str(root / label / f"seed-{run.seed + number}"),
                        seed=run.seed + number,
                        stages={**run.stages, name: stage},
                        data=dataclasses.replace(run.data, sources=_stores(run)),
                        evaluation=_evaluation(run),
                        metrics=dataclasses.replace(run.metrics, sinks=[]),
                        checkpoint=dataclasses.replace(run.checkpoint, keep_last=1),
                    ),
                )
            )
    return cells


def _stores(run: RunConfig) -> dict[str, Any]:
    """The run's token stores, which all cells read where they are."""
    return {
        name: dataclasses.replace(spec, inputs=[], store=str(store_prefix(run, name)))
        for name, spec in run.data.sources.items()
    }


def _evaluation(run: RunConfig) -> Any:
    held_out = run.evaluation.held_out
    if held_out is None:
        rule = "there is no held-out text, by which the choices are ranked"
        raise ConfigError("", [Problem("evaluation.held_out", None, rule, "name some")])
    store = str(store_prefix(run, HELD_OUT))
    apart = dataclasses.replace(held_out, inputs=[], store=store)
    return dataclasses.replace(
        run.evaluation, held_out=apart, every_updates=0, measure=["positions"]
    )


def _train_and_measure(
    run: RunConfig, cells: Sequence[Cell], name: str
) -> dict[Cell, PositionBands]:
    """Collective where there are ranks; what is finished is only read."""
    from alia_ctx.mcore.runtime import Distributed

    results = {}
    with Distributed(cells[0].run.engine):
        ranks = Ranks(World().rank, World().world_size)
        # A cell has the stores alone, and would not know that the text is another.
        ranks.first(partial(require_same_text, run))
        for cell in cells:
            # Where it fails all ranks are told: nobody waits for a plan.
            ranks.first(partial(_pack, cell, name))
            if not check_trained(cell.run, name):
                train(cell.run, name)
            results[cell] = _measured(cell.run, name)
    return results


def _pack(cell: Cell, name: str) -> None:
    pack(cell.run, name)


def _measurement(run: RunConfig, name: str) -> Measurement:
    """What the cells of a stage are measured on; DataError where the held-out text has no
    document as long as the shortest stage.
    """
    known = sorted({stage.context for stage in run.stages.values()})
    measurement = run_measurement(run, known[0], known)
    if measurement.text is None:
        raise DataError(
            "the held-out text, by which choices are ranked, is not tokenised yet; "
            "`alia-ctx tokenize` does it"
        )
    if not measurement.length:
        raise DataError(
            f"{measurement.text.where}: no held-out document has the {known[0]:,} tokens "
            f"of the shortest stage (the longest has {_longest(measurement):,}), so that "
            "no choice could be ranked; give longer ones under evaluation.held_out"
        )
    return measurement


def _longest(measurement: Measurement) -> int:
    assert measurement.text is not None
    return int(measurement.text.lengths.max(initial=0))


def _not_measured(run: RunConfig, name: str) -> list[str]:
    """What the held-out text is too short for, as a sentence."""
    context, measurement = run.stage(name).context, _measurement(run, name)
    if measurement.length >= context:
        return []
    assert measurement.text is not None
    return [
        f"{measurement.text.where}: no held-out document has the {context:,} tokens of "
        f"stage {name} (the longest has {_longest(measurement):,}): choices are ranked by "
        f"the first {measurement.length:,} positions alone; give longer ones under "
        "evaluation.held_out"
    ]


def _measured(run: RunConfig, name: str) -> PositionBands:
    measurement = _measurement(run, name)
    context = min(run.stage(name).context, measurement.length)
    evaluation = Evaluation(run.name, of_stage(run, name), context, ("positions",))
    evaluated = measure_models(run_task(run, [evaluation], measurement))
    return evaluated.positions()[run.name]


def _ranking(
    run: RunConfig,
    name: str,
    ropes: Mapping[str, RopeSpec],
    seeds: int,
    grouped: Mapping[str, Sequence[PositionBands]],
    cells: Sequence[Cell],
    remarks: Sequence[str],
) -> Ranking:
    stage = run.stage(name)
    base, trained = base_rope(run, name)
    found = Ranking(
        name,
        stage.context,
        seeds,
        tuple(tuple(ranked(grouped, *band)) for band in bands_of(grouped)),
        tuple(
            rope_figures(label, rope, run.model.head_dim, stage.context, base, trained)
            for label, rope in ropes.items()
        ),
        run_directory(run).root / "ablation" / name / "ranking.json",
        tuple(remarks),
    )
    if is_main():
        made_from = dict(_made_from(cells, name))
        write_json(found.path, sealed(made_from, found.to_json()))
    return found


def _made_from(cells: Sequence[Cell], name: str) -> Iterator[tuple[str, Any]]:
    from alia_ctx import checkpoint
    from alia_ctx.workflow.chain import finished_checkpoint

    for cell in cells:
        manifest = checkpoint.read_manifest(finished_checkpoint(cell.run, name))
        yield f"{cell.choice}, seed {cell.seed}", checkpoint_statement(manifest)
