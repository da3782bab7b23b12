"""Facts of a run with something in every section, made up for tests of the page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from alia_ctx.data.packing import PackedRow
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.evaluation.retrieval import RULER
from alia_ctx.report.facts import Planned, Result, RunFacts, Span, StageFacts

EDGES = (0, 128, 1024, 5120)
HOSTILE = '<script>alert("x")</script> & $\\frac{1}$'

LAYOUT = {"dp": 1, "tp": 1, "cp": 2, "pp": 1}

TIMELINE = [
    Span("rank 0", "forward", 0.0, 0.1),
    Span("rank 0", "backward", 0.1, 0.2),
    Span("rank 0, messages", "gradients' reduction", 0.2, 0.2),
]


def bands(mean: float, far: float, seed: int = 0, documents: int = 6) -> PositionBands:
    """Losses of `mean` within 128 tokens, of `far` past them."""
    made = PositionBands(EDGES)
    random = np.random.default_rng(seed)
    for document in range(documents):
        row = PackedRow.from_documents([np.arange(5120)], length=5120)
        losses = np.where(np.arange(5120) < 128, mean, far)
        losses = losses + random.normal(0, 0.3, 5120) + 0.1 * document
        losses += 1e-6 * document * far  # no two models differ by one number
        losses[-1] = math.nan
        made.add(_numbered(row, document), losses)
    return made


def _numbered(row: PackedRow, document: int) -> PackedRow:
    import dataclasses

    return dataclasses.replace(row, doc_ids=np.array([document]))


def lines(
    updates: int, tokens: int, source: str = "docs", kernel: str = "flash4"
) -> list[dict[str, Any]]:
    random = np.random.default_rng(0)
    return [
        {
            "stage": "s",
            "update": n,
            "loss": 3 + 3 / n + random.normal(0, 0.1),
            "gradient_norm": 1.0 + random.random(),
            "applied": n != 7,
            "spike": n == 9,
            "tokens": n * tokens,
            "loss_by_source": {source: 3 + 2 / n, "code": 2.5 + 1 / n},
            "seconds": 0.5,
            "tokens_per_second": 4000.0 + random.normal(0, 100),
            "tokens_per_second_per_rank": 2000.0,
            "mfu": 0.2,
            "mfu_6n": 0.25,
            "imbalance": 1.01,
            "memory_gib": 0.8,
            "compute_seconds": 0.4,
            "communication_seconds": 0.05,
            "step_seconds": 0.02,
            "data_seconds": 0.01,
            "save_seconds": 0.0,
            **({"layout": LAYOUT, "kernel": kernel} if n == 1 else {}),
        }
        for n in range(1, updates + 1)
    ]


def stage(name: str, context: int, **changes: Any) -> StageFacts:
    source = {
        "documents": 10,
        "tokens": 1000,
        "trained_tokens": 500,
        "share": 1.0,
        "epochs": 0.5,
    }
    values: dict[str, Any] = {
        "name": name,
        "context": context,
        "rope": {"type": "llama3", "theta": 10000.0, "factor": context / 128},
        "learning_rate": 1e-3,
        "updates": 60,
        "tokens": 60 * 2048,
        "init_from": "base",
        "origin": "base, update 60",
        "ledger": {
            "updates": 60,
            "skipped_updates": 1,
            "rows": 120,
            "tokens": 122880,
            "predicted_tokens": 122000,
        },
        "lines": lines(60, 2048),
        "again": 3,
        "damaged": ["update-00000020.damaged"],
        "changes": ["optimizer.beta1: 0.9 there, 0.8 now"],
        "plan": {
            "rows": 120,
            "row_length": context,
            "fill": 0.98,
            "cut_documents": 3,
            "sources": {"docs": source},
            "context": [[0, 1.0], [10, 0.7], [context - 1, 0.0]],
        },
        "plan_identity": {"spec": {"policy": "best_fit", "long_docs": "split"}},
        "planned": Planned(0.4, 1.2, 0.25, LAYOUT, TIMELINE),
    }
    return StageFacts(**{**values, **changes})


def cells(
    share: float, lengths: tuple[int, ...], task: str = "passkey"
) -> dict[str, Any]:
    return {
        "depths": 10,
        "cells": [
            {
                "task": task,
                "language": "en",
                "length": length,
                "depth": depth,
                "samples": 4,
                "right": round(4 * share),
                "parts": 4,
                "parts_right": round(4 * share),
            }
            for length in lengths
            for depth in range(10)
        ],
    }


def results() -> list[Result]:
    ruler = [cell for t in RULER for cell in cells(0.5, (128, 5120), t)["cells"]]
    blocks = [
        {"first": 0, "last": 128, "documents": 6, "gain": 0.0, "standard_error": 0.0},
        {
            "first": 128,
            "last": 5120,
            "documents": 6,
            "gain": 0.4,
            "standard_error": 0.02,
        },
    ]
    long_ppl = {
        "key_tokens": 100,
        "tokens": 5000,
        "long_ppl": 8.0,
        "ppl": 12.0,
        "contrast_model": "x40",
        "long_context": 5120,
        "short_context": 128,
        "threshold": {"difference": 2.0, "log_likelihood": -2.0},
    }
    leak = {
        "layout": {"dp": 1, "tp": 1, "cp": 2, "pp": 1},
        "positions": 5000,
        "moved": 0,
        "largest_difference": 0.0,
    }
    retrieval = {"depths": 10, "cells": ruler, "native_context": 128}
    of_text = {"settings": {"held_out": "text"}}
    return [
        Result("base", "positions", 128, bands(3.0, 3.2).to_json(), of_text),
        Result("base", "positions", 5120, bands(3.0, 7.0).to_json(), of_text),
        Result("x40", "positions", 5120, bands(3.01, 2.7).to_json(), of_text),
        Result("x40", "blocks", 5120, {"block": 128, "bands": blocks}),
        Result("base", "passkey", 128, cells(1.0, (128,))),
        Result("base", "passkey", 5120, cells(0.0, (1024, 5120))),
        Result("x40", "passkey", 5120, cells(1.0, (128, 1024, 5120))),
        Result("x40", "retrieval", 5120, retrieval),
        Result("x40", "longppl", 5120, long_ppl),
        Result("x40", "leak", 5120, leak),
    ]


def run(**changes: Any) -> RunFacts:
    values: dict[str, Any] = {
        "name": "tiny",
        "output": "runs/tiny",
        "command": "configs/tiny.yaml",
        "base": "base",
        "stages": [
            stage("base", 128, init_from="random", origin="random"),
            stage("x40", 5120),
        ],
        "results": results(),
        "config": {"seed": 1, "stages": {"base": {"context": 128}}},
        "exports": ["runs/tiny/hf/x40/config.json"],
        "notes": ["The mixture has a source of codes to find."],
    }
    return RunFacts(**{**values, **changes})
