"""What the page of a run is made from: what its files say, as they say it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval import RetrievalScores
from alia_ctx.evaluation.verdicts import Chain, Measured, Verdict
from alia_ctx.spec.compute_capability import kernel_speed

# What an evaluator is called -> the arguments of `alia-ctx evaluate` that make it.
COMMANDS: Mapping[str, str] = {
    name: f"evaluate CONFIG --evaluators {name}"
    for name in ("positions", "blocks", "longppl", "retrieval", "passkey", "leak")
}


@dataclass(frozen=True)
class Span:
    """What a lane of an update does from `start` for `seconds`; `lane` and `kind` in words."""

    lane: str
    kind: str
    start: float
    seconds: float


@dataclass(frozen=True)
class Planned:
    """What the planner expects of a stage: seconds an update, GiB on the fullest rank,
    share of the peak, and an update as it simulates it on one data-parallel rank; all on
    `layout`, which is that of the configuration. None where it has no figure of the kernel.
    """

    seconds: float | None
    memory_gib: float
    mfu: float | None
    layout: Mapping[str, int]
    timeline: Sequence[Span] = ()


@dataclass(frozen=True)
class Part:
    """Updates of a stage, one after another, that ran alike.

    `layout` has the size of each kind of parallelism, dp among them; None where the log
    does not say it. `kernel` is that of attention, `layers` says whose layers computed,
    with the FP8 of their products; both are `-` where the log does not say it.
    """

    layout: Mapping[str, int] | None
    kernel: str
    layers: str
    lines: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]]) -> Part:
        """The updates of one start, whose first line says how they ran."""
        first = lines[0]
        layout, fp8 = first.get("layout"), str(first.get("fp8", "off"))
        return cls(
            layout if isinstance(layout, Mapping) else None,
            str(first.get("kernel", "-")),
            str(first.get("layers", "-")) + ("" if fp8 == "off" else f", FP8 ({fp8})"),
            lines,
        )

    def ran_as(self, other: Part) -> bool:
        mine, theirs = (
            (part.layout, part.kernel, part.layers) for part in (self, other)
        )
        return mine == theirs

    @property
    def updates(self) -> str:
        first, last = (
            line.get("update", "?") for line in (self.lines[0], self.lines[-1])
        )
        return f"{first}-{last}"

    def values(self, *names: str) -> list[float]:
        """As of `StageFacts.values`, of these updates."""
        return values(self.lines, *names)


def values(lines: Sequence[Mapping[str, Any]], *names: str) -> list[float]:
    """A number of every line that has it, in order; names lead inward."""
    out = []
    for line in lines:
        value: Any = line
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            out.append(float(value))
    return out


def layout_words(layout: Mapping[str, int] | None) -> str:
    """`dp2 cp4`: the sizes that are not 1."""
    if layout is None:
        return "not in its log"
    return " ".join(f"{k}{v}" for k, v in layout.items() if v != 1) or "one rank"


@dataclass(frozen=True)
class StageFacts:
    """One stage, begun or not.

    Args:
        name, context, rope, learning_rate: as the configuration has them.
        updates: those that the stage is to have; `tokens` likewise, in real tokens.
        init_from: the name of what it starts from, as the configuration has it.
        origin: what its newest checkpoint says that it started from; None where it says
            nothing of it.
        ledger: the newest checkpoint's entry of this stage; None without one.
        checkpoint: `checkpoint_statement` of the newest checkpoint.
        lines: the log, a mapping an update.
        again: lines of updates that were computed again after a resume.
        broken: lines of the log that were not whole.
        damaged: checkpoints that were set aside.
        unfinished: checkpoints that were begun and not committed.
        changes: settings that were changed while it trained, as the checkpoint lists them.
        plan: statistics of its pack plan; None without one. `plan_identity`: what that
            was made from.
        planned: what the planner says; None where it cannot.
        problems: what could not be read, a line each.
    """

    name: str
    context: int
    rope: Mapping[str, Any]
    learning_rate: float
    updates: int
    tokens: int
    init_from: str
    origin: str | None = None
    ledger: Mapping[str, Any] | None = None
    checkpoint: Mapping[str, Any] | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    again: int = 0
    broken: int = 0
    damaged: Sequence[str] = ()
    unfinished: Sequence[str] = ()
    changes: Sequence[str] = ()
    plan: Mapping[str, Any] | None = None
    plan_identity: Mapping[str, Any] | None = None
    planned: Planned | None = None
    problems: Sequence[str] = ()

    @property
    def logged(self) -> int:
        """The last update of the log; 0 for none."""
        return max((int(line["update"]) for line in self.lines), default=0)

    @property
    def saved(self) -> int:
        """Updates that the newest checkpoint has; 0 without one."""
        return int(self.ledger["updates"]) if self.ledger else 0

    @property
    def begun(self) -> bool:
        return bool(self.saved or self.logged)

    @property
    def finished(self) -> bool:
        """Whether a checkpoint of the last update is there, and the log does not go on
        beyond it, as where `tokens` were raised.
        """
        return self.ledger is not None and self.saved >= max(self.updates, self.logged)

    @property
    def ahead(self) -> str:
        """` (5 in the log)`, where that is further than the newest checkpoint: what no
        checkpoint has is done again, unless the stage is at work. Nothing else.
        """
        return f" ({self.logged:,} in the log)" if self.logged > self.saved else ""

    @property
    def slower_kernels(self) -> list[str]:
        """Sentences on starts that took no faster kernel, and why."""
        said = dict.fromkeys(
            (str(line.get("kernel")), *map(str, line["kernels_passed_over"]))
            for line in self.lines
            if isinstance(line.get("kernels_passed_over"), list)
        )
        return [
            f"{self.name} ran on {kernel}, {kernel_speed(kernel)} of its GPU: "
            f"{'; '.join(why)}."
            for kernel, *why in said
        ]

    @property
    def parts(self) -> list[Part]:
        """Its updates by how they ran: a part ends where a start changed the layout, the
        kernel of attention or the layers, which the first line of each start says.
        """
        starts = [i for i, line in enumerate(self.lines) if i == 0 or "kernel" in line]
        parts: list[Part] = []
        for first, stop in pairwise([*starts, len(self.lines)]):
            part = Part.of(self.lines[first:stop])
            if parts and parts[-1].ran_as(part):
                part = replace(part, lines=[*parts.pop().lines, *part.lines])
            parts.append(part)
        return parts

    @property
    def layers_not_taken(self) -> list[str]:
        """Sentences on starts that were to take TransformerEngine's layers, and why they
        did not.
        """
        said = dict.fromkeys(
            tuple(map(str, line["layers_passed_over"]))
            for line in self.lines
            if isinstance(line.get("layers_passed_over"), list)
        )
        return [
            f"{self.name} did not run on TransformerEngine's layers: {'; '.join(why)}."
            for why in said
        ]

    def values(self, *names: str) -> list[float]:
        """A number of every line of the log that has it, in order; names lead inward."""
        return values(self.lines, *names)


@dataclass(frozen=True)
class Result:
    """One file of an evaluation: what was measured of which model at which length.

    `differs` says why it is not of the model that is there now, a line each; `outdated`
    what its settings have other than the run's configuration; `unlike` other than those
    of the results that it would stand beside.
    Such a result is named and not shown.
    """

    model: str
    evaluator: str
    context: int
    content: Mapping[str, Any]
    made_from: Mapping[str, Any] = field(default_factory=dict)
    differs: Sequence[str] = ()
    outdated: Sequence[str] = ()
    unlike: Sequence[str] = ()

    @property
    def bands(self) -> PositionBands:
        """Of `positions`; DataError where the content is of another form."""
        return PositionBands.from_json(self.content)

    @property
    def scores(self) -> RetrievalScores:
        """Of `retrieval` and `passkey`; DataError where the content is of another form."""
        return RetrievalScores.from_json(self.content)


@dataclass(frozen=True)
class BesideTable:
    """A table as whoever measured it made it: cells are text."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Beside:
    """What was measured beside the run's comparison, made by the command `how`.

    `differs` says why it is not of the model that is there now: then it is named and not
    shown, and its verdicts are none of the run.
    """

    title: str
    how: str
    tables: Sequence[BesideTable] = ()
    verdicts: Sequence[Verdict] = ()
    notes: Sequence[str] = ()
    differs: Sequence[str] = ()

    @property
    def why_not(self) -> str:
        """Why it is not shown, where it `differs`."""
        reasons = "; ".join(self.differs[:3])
        return f"it is not of the model that is there now: {reasons}"


@dataclass(frozen=True)
class RunFacts:
    """A run as its files have it. `models` are those that results are shown of, the base
    first; `command` is what stands for CONFIG in commands, `target` in that of the page.
    `native` is the base's own context, which is no stage's where the base was imported.
    """

    name: str
    output: str
    command: str
    base: str
    stages: Sequence[StageFacts]
    results: Sequence[Result] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    exports: Sequence[str] = ()
    notes: Sequence[str] = ()
    problems: Sequence[str] = ()
    target: str = ""
    native: int = 0
    beside: Sequence[Beside] = ()

    @property
    def chain(self) -> Chain:
        contexts = {stage.name: stage.context for stage in self.stages}
        return Chain(self.base, self.native, contexts)

    @property
    def lines(self) -> list[Measured]:
        """What was measured and is shown, a line a result, in the order of `of`."""
        return [
            Measured(r.model, r.model, r.context, {evaluator: r.content})
            for evaluator in COMMANDS
            for r in self.of(evaluator)
        ]

    @property
    def models(self) -> list[str]:
        stages = [stage.name for stage in self.stages]
        first = [] if self.base in stages else [self.base]
        known = [*first, *stages]
        others = [result.model for result in self.results if result.model not in known]
        return [*known, *dict.fromkeys(others)]

    @property
    def stale(self) -> list[Result]:
        return [r for r in self.results if r.differs or r.outdated or r.unlike]

    def of(self, evaluator: str) -> list[Result]:
        """What was measured by an evaluator, is of what is there and by one choice of
        settings; the base first, short contexts before long ones.
        """
        order, stale = self.models, self.stale
        kept = [r for r in self.results if r.evaluator == evaluator and r not in stale]
        return sorted(kept, key=lambda r: (order.index(r.model), r.context))

    def how(self, arguments: str) -> str:
        """The command line that `arguments` of alia-ctx make for this run."""
        of_page = arguments.startswith("report") and self.target
        return "alia-ctx " + arguments.replace("CONFIG", of_page or self.command)
