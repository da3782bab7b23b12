"""What shows that the model learned it: evaluations, the export, answers by transformers.

All of it stands in the page of the run; what is none of its comparison as documents beside
it (OUTPUT/beside), with the checkpoint that it was measured of.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.cli.output import print_table
from alia_ctx.evaluation.tables import tables
from alia_ctx.evaluation.verdicts import Measured
from alia_ctx.files import write_json
from alia_ctx.progress import say
from alia_ctx.report.facts import Beside, BesideTable
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.beside import write_beside
from alia_ctx.workflow.chain import run_directory
from scripts.smollm2 import by_transformers
from scripts.smollm2.interruption import DONE
from scripts.smollm2.notes import read_note
from scripts.smollm2.sizes import FAR
from scripts.smollm2.steps import Steps

_HOW = "make smollm2"


class Proof:
    """The evaluations of a run whose stages are trained."""

    def __init__(self, steps: Steps) -> None:
        self._steps, self._last = steps, steps.stages[-1]
        self._directory = run_directory(steps.run)

    def prove(self) -> None:
        """Evaluate base and stages, export, have transformers answer, and write the page.

        DataError, when the page is written, where transformers answers otherwise than was
        measured.
        """
        steps, last = self._steps, self._last
        steps.command("evaluate", *steps.settings, on_ranks=True)
        passkeys = ("--stage", last, "--evaluators", "passkey")
        steps.command("evaluate", *steps.settings, *passkeys, on_ranks=True)
        newest = steps.newest(last)
        self._short_text(newest)
        if steps.longest > FAR:
            far = ("--stage", last, "--context", FAR, "--evaluators", "retrieval")
            found = steps.document("evaluate", *steps.settings, *far)
            self._keep("far-retrieval", f"Retrieval at {FAR:,} tokens", found)
        exported = steps.output / f"hf-{last}"
        if not exported.is_dir():
            steps.command("export-hf", newest, exported)
        hint = f"if it is of an earlier checkpoint, remove {exported}: the next start "
        steps.command("verify", exported, newest, hint=hint + "exports it anew")
        compared = self._answers_of_transformers(exported)
        self._interruption()
        steps.command("report", *steps.settings)
        page = self._directory.report / "index.html"
        by_transformers.require_agreement(compared, str(page))

    def _short_text(self, last: Path) -> None:
        """Text of kinds that are not trained on, and all retrieval tasks, at lengths that
        the base knows, base and last stage in one table.
        """
        output, sizes = self._steps.output, self._steps.sizes
        found = self._steps.document(
            *("evaluate", output / "base", last),
            *("--text", output / "text" / "held-out-short.jsonl"),
            *("--tokenizer", output / "hf", "--context", sizes.short),
            *("--evaluators", "positions,retrieval"),
            *("--output", output / "evaluation-short", *sizes.options),
        )
        self._keep(
            "short-text", "Short text of other kinds, and retrieval there", found
        )

    def _keep(self, name: str, title: str, found: Mapping[str, Any]) -> None:
        """A document of `evaluate --json`, on the terminal and beside the run."""
        document = evaluated(title, found)
        for table in tables(_lines(found)):
            print_table(table)
        for note in document.notes:
            say(f"- {note}")
        self._write(name, document, self._last)

    def _answers_of_transformers(self, exported: Path) -> dict[str, Any]:
        import torch

        steps = self._steps
        context, devices = steps.longest, torch.cuda.device_count()
        began = time.monotonic()
        found = by_transformers.answer_passkeys(
            steps.run, exported, context, [context, context // 2], devices
        )
        measured = self._directory.evaluations / self._last / f"passkey-{context}.json"
        compared = by_transformers.compare(found, measured)
        write_json(steps.output / "passkeys-by-transformers.json", compared)
        document = by_transformers.as_document(compared, _HOW)
        self._write("passkeys-by-transformers", document, self._last)
        steps.note("passkeys by transformers", time.monotonic() - began)
        return compared

    def _interruption(self) -> None:
        """What a kill changed, where there was one."""
        file = self._steps.output / DONE
        if file.is_file():
            kinds = {"before": dict, "after": dict, "went_on_after": int}
            document = interrupted(read_note(file, kinds, "name another --output"))
            self._write("interruption", document, self._steps.stages[0])

    def _write(self, name: str, document: Beside, stage: str) -> None:
        manifest = checkpoint.read_manifest(self._steps.newest(stage))
        of = {stage: checkpoint_statement(manifest)}
        write_beside(self._directory.root, name, document, of)


def evaluated(title: str, found: Mapping[str, Any]) -> Beside:
    """The document of `evaluate --json` as tables for the page of a run."""
    reasons = dict.fromkeys(
        f"not measured: {result['name']}, {result['evaluator']}: {result['reason']}"
        for result in found["results"]
        if result["reason"]
    )
    made = [
        BesideTable(
            str(table.title),
            [str(column.header) for column in table.columns],
            [
                list(map(str, row))
                for row in zip(*(c.cells for c in table.columns), strict=True)
            ],
        )
        for table in tables(_lines(found))
    ]
    left_out = dict.fromkeys(
        f"not measured: {result['name']}, {task}: {why}"
        for result in found["results"]
        for task, why in ((result["content"] or {}).get("left_out") or {}).items()
    )
    notes = [*found["verdicts"], *found["notes"], *reasons, *left_out]
    return Beside(title, _HOW, made, notes=notes)


def _lines(found: Mapping[str, Any]) -> list[Measured]:
    """The results as lines of the tables, as `evaluate` has them."""
    lines: dict[str, Measured] = {}
    for result in found["results"]:
        if result["content"] is None:
            continue
        made_from, name = result["made_from"], result["name"]
        text = made_from.get("settings", {}).get("held_out")
        line = lines.get(name) or Measured(
            name, made_from["model"]["name"], made_from["context"], {}
        )
        contents = {**line.contents, result["evaluator"]: result["content"]}
        lines[name] = Measured(
            name, line.model, line.context, contents, line.text or text
        )
    return list(lines.values())


def interrupted(compared: Mapping[str, Any]) -> Beside:
    """Differences between the stage that was killed and the one that was not."""
    rows = [
        [name, when, f"{difference['mean']:.1e}", f"{difference['greatest']:.1e}"]
        for when in ("before", "after")
        for name, difference in compared[when].items()
    ]
    table = BesideTable(
        "Relative differences between a stage that was killed and went on by another "
        "layout and one that was not disturbed, over the updates that both have. Before "
        "the kill both did the same: that is what two runs differ by anyway.",
        ["of", "the kill", "mean", "greatest"],
        rows,
    )
    title = f"A kill, gone on with after update {compared['went_on_after']}"
    return Beside(title, f"{_HOW} SMOLLM2_ARGS=--interrupt...", [table])
