"""The section on the plan: what the planner said of each stage, beside what was measured."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from alia_ctx.report import html
from alia_ctx.report.facts import RunFacts, StageFacts, layout_words, values
from alia_ctx.report.figures import time_line
from alia_ctx.report.training import duration
from alia_ctx.report.wall_time import wall_seconds

_SPANS = 400  # of a time line; a lane of more is a grey bar


def reality(facts: RunFacts) -> str:
    """What the planner said, beside what was measured on the layout that it spoke of."""
    rows, others = [], []
    for stage in facts.stages:
        planned = stage.planned
        if planned is None or not stage.lines:
            continue
        alike = [part.lines for part in stage.parts if part.layout == planned.layout]
        lines = [line for part in alike for line in part]
        if not lines:
            ran = dict.fromkeys(layout_words(part.layout) for part in stage.parts)
            others.append(f"{stage.name} ({', '.join(ran)})")
            continue
        seconds, memory = values(lines, "seconds"), values(lines, "memory_gib")
        rows.append(
            [
                stage.name,
                layout_words(planned.layout),
                f"{len(lines):,} of {len(stage.lines):,}",
                html.number(planned.seconds, 3) if planned.seconds else "-",
                html.number(median(seconds), 3),
                f"{median(seconds) / planned.seconds:.2f}" if planned.seconds else "-",
                f"{planned.mfu:.1%}" if planned.mfu is not None else "-",
                f"{median(values(lines, 'mfu')):.1%}",
                html.number(planned.memory_gib, 2),
                html.number(max(memory), 2),
            ]
        )
    how = facts.how("plan CONFIG")
    simulated = html.figures(*filter(None, map(_simulated(facts), facts.stages)))
    elsewhere = html.paragraph(
        "Not compared, as their logs name another layout than the configuration's, or none: "
        f"{', '.join(others)}."
    )
    left_out = [elsewhere] if others else []
    if not rows:
        lacking = html.missing("Plan against reality", how)
        parts = (lacking, *left_out, simulated)
        return html.section("reality", "Plan against reality", *parts)
    heads = ["stage", "layout", "updates", "s an update, planned", "measured"]
    heads += ["measured / planned"]
    heads += ["MFU, planned", "measured", "memory (GiB), planned", "peak"]
    table = html.table(
        heads,
        rows,
        caption="The planner's arithmetic on sizes, fitted to nothing, beside medians of "
        "the updates that ran on the planned layout. Planned memory is for GPUs; on a "
        "CPU the peak is all that the process holds, libraries included.",
        how=how,
    )
    total = sum(wall_seconds(stage.lines) for stage in facts.stages)
    spent = html.paragraph(
        f"Training took {duration(total)} in all, saves and evaluations included."
    )
    parts = (table, *left_out, spent, simulated)
    return html.section("reality", "Plan against reality", *parts)


def _simulated(facts: RunFacts) -> Callable[[StageFacts], str]:
    """Draws the planner's time line of a stage; nothing where there is none."""

    def drawn(stage: StageFacts) -> str:
        spans = stage.planned.timeline if stage.planned else ()
        if not spans:
            return ""
        shown = spans[:_SPANS]
        part = f" Its first {len(shown)} steps." if len(spans) > len(shown) else ""
        svg = time_line(
            f"time line of {stage.name}",
            [(s.lane, s.kind, s.start, s.seconds) for s in shown],
        )
        caption = (
            f"Stage {stage.name}: an update as the planner simulates it, not measured: "
        )
        caption += (
            "what each pipeline rank of the data-parallel rank with most work does."
        )
        command = f"plan CONFIG --stage {stage.name} --trace trace.json"
        return html.figure(svg, caption + part, facts.how(command))

    return drawn
