"""The passkeys of the exported model by plain transformers, beside what was measured.

Only the questions come from this project: `generate` of transformers answers them, greedy,
from the exported directory, each in a process with a GPU of its own. No row is packed, no
layer is ours, and the answer is read as text.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from alia_ctx.config.run import RunConfig
from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import (
    RetrievalScores,
    SampleRows,
    SampleSpec,
    passkey_specs,
)
from alia_ctx.evaluation.verdicts import Verdict
from alia_ctx.progress import say
from alia_ctx.report.facts import Beside, BesideTable
from alia_ctx.workflow.evaluation_tasks import native_context, retrieval_settings


def answer_passkeys(
    run: RunConfig, exported: Path, context: int, lengths: Sequence[int], devices: int
) -> dict[str, list[int]]:
    """Right answers and how many were asked, by length and tenth of the depth, as
    `LENGTH:TENTH`.

    Args:
        context: what the passkeys were measured at; the grid is that of it.
        lengths: of the grid's lengths those to ask at.
        devices: GPUs; 0 is the host.
    """
    settings, native = run.evaluation.retrieval, native_context(run)
    rows = _samples(str(exported), settings, context)
    specs = [
        spec
        for spec in passkey_specs(rows.settings, rows, context, native)
        if spec.length in lengths
    ]
    workers = ProcessPoolExecutor(
        max(1, devices),
        get_context("spawn"),
        _begin,
        (get_context("spawn").Value("i", 0), devices),
    )
    jobs = [(str(exported), settings, context, spec) for spec in specs]
    found: dict[str, list[int]] = {}
    with workers as pool:
        for spec, right in zip(specs, pool.map(_answer, jobs), strict=True):
            tenth = int((spec.depth or 0.0) * 10)
            counts = found.setdefault(f"{spec.length}:{tenth}", [0, 0])
            counts[0] += right
            counts[1] += 1
    return found


def compare(found: dict[str, list[int]], measured: Path) -> dict[str, Any]:
    """Counts by length of both, and the cells in which they differ."""
    content = json.loads(measured.read_text(encoding="utf-8"))["content"]
    scores = RetrievalScores.from_json(content)

    def measured_at(cell: str) -> list[int]:
        length, depth = map(int, cell.split(":"))
        score = scores.score(length=length, depth=depth)
        return [score.right, score.samples]

    ours = {cell: measured_at(cell) for cell in found}
    by_length: dict[str, dict[str, list[int]]] = {}
    for cell, counts in found.items():
        length = cell.partition(":")[0]
        sums = by_length.setdefault(
            length, {"transformers": [0, 0], "measured": [0, 0]}
        )
        for name, right in (("transformers", counts), ("measured", ours[cell])):
            sums[name] = [a + b for a, b in zip(sums[name], right, strict=True)]
    different = {c: [found[c], ours[c]] for c in found if found[c] != ours[c]}
    for length, sums in by_length.items():
        say(f"passkey at {int(length):,}: {_both(sums)}")
    return {"by_length": by_length, "different": different}


def _both(sums: Mapping[str, Sequence[int]]) -> str:
    (right, asked), (mine, of) = sums["transformers"], sums["measured"]
    return f"transformers {right} of {asked}, measured {mine} of {of}"


def as_document(compared: Mapping[str, Any], how: str) -> Beside:
    """The comparison for the page of the run, where `how` makes it again."""
    by_length, different = compared["by_length"], compared["different"]
    rows = [
        [f"{int(length):,}", *(_counts(sums[n]) for n in ("transformers", "measured"))]
        for length, sums in by_length.items()
    ]
    tables = [
        BesideTable(
            "Passkeys that generate of transformers answers from the export, greedy, "
            "beside those measured here: right of asked, by length in tokens.",
            ["length", "transformers", "measured"],
            rows,
        )
    ]
    if different:
        cells = [
            [f"{int(length):,}", f"{tenth}0%", *map(_counts, different[cell])]
            for cell in different
            for length, tenth in [cell.split(":")]
        ]
        heads = ["length", "depth", "transformers", "measured"]
        tables.append(BesideTable("Where the two differ.", heads, cells))
    detail = "; ".join(f"{int(n):,}: {_both(sums)}" for n, sums in by_length.items())
    verdict = Verdict(
        "The export answers passkeys in transformers as was measured",
        not different if by_length else None,
        detail or "none was asked",
    )
    return Beside("Passkeys by transformers", how, tables, [verdict])


def _counts(counts: Sequence[int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def require_agreement(compared: Mapping[str, Any], page: str) -> None:
    """DataError where another program found something else than was measured, or where
    there was nothing to find; `page` says where both stand.
    """
    if not compared["by_length"]:
        raise DataError(
            "transformers was asked for no passkey, so nothing is proven by it: none of "
            "the lengths fits; take longer contexts"
        )
    if compared["different"]:
        told = "; ".join(
            f"passkey at {int(length):,}: {_both(compared['by_length'][length])}"
            for length in dict.fromkeys(
                c.partition(":")[0] for c in compared["different"]
            )
        )
        raise DataError(
            f"the export does not answer in transformers as was measured ({told}), see "
            f"{page}; do not use it before it is known which of the two is wrong"
        )


# --- in a worker ----------------------------------------------------------------------

_device = "cpu"


def _begin(taken: Any, devices: int) -> None:
    """A worker takes the next GPU."""
    global _device
    os.environ["HF_HUB_OFFLINE"] = "1"
    with taken.get_lock():
        number = taken.value
        taken.value += 1
    if devices:
        _device = f"cuda:{number % devices}"


@cache
def _model(exported: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if _device != "cpu" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=dtype)
    return model.to(_device).eval()


@cache
def _tokenizer(exported: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(exported)


def _samples(exported: str, settings: Any, context: int) -> SampleRows:
    def encode(text: str) -> list[int]:
        ids: list[int] = _tokenizer(exported)(text, add_special_tokens=False).input_ids
        return ids

    return SampleRows(retrieval_settings(settings, True), (), encode, context)


def _answer(job: tuple[str, Any, int, SampleSpec]) -> bool:
    """Whether the model writes the code that the sample asks for."""
    import torch

    exported, settings, context, spec = job
    sample = _samples(exported, settings, context).make(spec)
    start, stop = sample.answer
    model = _model(exported)
    ids = torch.from_numpy(sample.tokens[:start]).unsqueeze(0).to(_device)
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=stop - start,
        do_sample=False,
        pad_token_id=model.config.pad_token_id or 0,
    )
    text: str = _tokenizer(exported).decode(written[0, start:])
    return text.strip().startswith(sample.texts[0])
