"""Rows of conversations are computed as long as their update needs, whatever the context:
tokens that pass the layers are counted, and nothing else changes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx import checkpoint, workflow
from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import TokenStore
from alia_ctx.workflow.function_calls import conversation_rows
from tests.distributed import run_distributed
from tests.engine import tokens_passing
from tests.small_run import metrics
from tests.train.runs import StopAfter, last, numbers, start, train
from tests.train.test_conversations import write_talk

CONTEXT, GRANULE = 2048, 64  # a 128th of the context is less than the least step
BLANK = 16  # what a data-parallel rank without a row computes, where nothing cuts it
LAYERS = 2
LAYOUTS = {"dp": "{}", "cp": "{cp: 2}", "tp": "{tp: 2}", "pp": "{pp: 2}"}


def write_run(folder: Path) -> Path:
    """300 conversations of 8 to 59 tokens in updates of 64, which take one row or two."""
    stage = {"context": CONTEXT, "epochs": 1, "update_instances": 64}
    pack = {"policy": "best_fit", "long_docs": "drop"}
    return write_talk(folder, **stage, pack=pack)


def in_full_rows() -> None:
    """Have every row of a plan computed at the length of the context."""
    from alia_ctx.data.packing import plan

    def full(tokens: np.ndarray, offsets: np.ndarray, context: int) -> np.ndarray:
        return np.full(len(tokens), context)

    plan.row_lengths = full


def train_counted(
    rank: int, path: str, layouts: dict[str, str], full: bool
) -> dict[str, list[int]]:
    """Layout -> the tokens that passed layers on this rank in each update. Outputs go to
    directories of their own.
    """
    from alia_ctx.mcore.engine import MegatronEngine

    original, counted = MegatronEngine.train_update, dict[str, list[int]]()
    if full:
        in_full_rows()
    for name, layout in layouts.items():
        overrides = [
            f"stages.short.layout={layout}",
            f"output={Path(path).parent}/{name}",
            f"cluster.ranks_per_node={torch.distributed.get_world_size()}",
        ]
        if rank == 0:
            workflow.pack(load_run(path, overrides), "short")
        torch.distributed.barrier()
        passed: list[int] | None = None
        updates = counted[name] = []

        def counting(engine: Any, *args: Any) -> Any:
            nonlocal passed
            if passed is None:
                passed = tokens_passing(engine)
            passed.clear()
            result = original(engine, *args)
            updates.append(sum(passed))  # noqa: B023
            return result

        MegatronEngine.train_update = counting  # type: ignore[method-assign]
        assert train(rank, path, overrides) == ""
    MegatronEngine.train_update = original  # type: ignore[method-assign]
    return counted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lengths")


@pytest.fixture(scope="module")
def counts(folder: Path) -> dict[str, list[int]]:
    """The tokens that passed, of all ranks, of one rank on rows of the context (`full`), of
    one on rows as they are (`alone`), and of two on each layout.
    """
    path = str(write_run(folder))
    every = [run_distributed(train_counted, 1, path, {"full": "{}"}, True)]
    every.append(run_distributed(train_counted, 1, path, {"alone": "{}"}, False))
    every.append(run_distributed(train_counted, 2, path, LAYOUTS, False))
    return {
        name: np.sum([rank[name] for rank in ranks], axis=0).tolist()
        for ranks in every
        for name in ranks[0]
    }


def log_of(folder: Path, name: str) -> list[dict[str, Any]]:
    text = (folder / name / "stages/short/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_layers_compute_what_an_update_needs_and_not_the_context(
    folder: Path, counts: dict[str, list[int]]
) -> None:
    lines = log_of(folder, "alone")
    run = load_run(folder / "run.yaml", [f"output={folder}/alone"])
    plan, store = workflow.open_plan(run, "short"), TokenStore(folder / "talk")
    rows = [range(*line["rows"]) for line in lines]
    fullest = [
        max(int(store.lengths[plan.row(number).doc_ids].sum()) for number in of_update)
        for of_update in rows
    ]
    lengths = [-(-tokens // GRANULE) * GRANULE for tokens in fullest]
    assert {len(numbers) for numbers in rows} == {1, 2} and len(set(lengths)) > 2
    assert max(lengths) < CONTEXT - GRANULE
    needed = [
        length * len(of_update) for length, of_update in zip(lengths, rows, strict=True)
    ]
    assert counts["full"] == [CONTEXT * len(numbers) * LAYERS for numbers in rows]
    # Of context, tensor (with sequence) and pipeline parallelism each rank has its part.
    for name in ("alone", "cp", "tp", "pp"):
        assert counts[name] == [tokens * LAYERS for tokens in needed], name
    assert counts["dp"] == [
        (tokens + BLANK * (len(of_update) == 1)) * LAYERS
        for tokens, of_update in zip(needed, rows, strict=True)
    ]


@pytest.mark.parametrize("name", ["alone", *LAYOUTS])
def test_losses_and_weights_are_those_of_full_rows(
    folder: Path, counts: dict[str, list[int]], name: str
) -> None:
    assert name in counts
    for ours, full in zip(log_of(folder, name), log_of(folder, "full"), strict=True):
        for figure in ("rows", "documents", "tokens", "predicted_tokens", "applied"):
            assert ours[figure] == full[figure]
        # The tolerances of the engine's layouts: fp32 sums in another order.
        assert ours["loss"] == pytest.approx(full["loss"], rel=1e-5)
        assert ours["gradient_norm"] == pytest.approx(full["gradient_norm"], rel=1e-4)
        for group in ("loss_by_position", "loss_by_source"):
            assert ours[group] == pytest.approx(full[group], rel=1e-5)
    ours, full = weights(folder / name), weights(folder / "full")
    assert ours.keys() == full.keys() and len(ours) > 5
    for tensor, values in full.items():
        assert torch.allclose(ours[tensor], values, rtol=1e-5, atol=1e-6), tensor
        assert values.dtype == torch.float32


def weights(output: Path) -> dict[str, torch.Tensor]:
    """The weights of a stage's last checkpoint."""
    found = {}
    path = checkpoint.list_checkpoints(output / "stages/short/checkpoints")[-1]
    with open_state(path / checkpoint.STATE) as reader:
        for name, (shape, dtype) in reader.tensors.items():
            if "optimizer" not in name and dtype == torch.float32:
                found[name] = torch.empty(shape, dtype=dtype)
                reader.read_box(name, (0,) * len(shape), found[name])
    return found


def test_stopped_between_rows_of_other_lengths_and_resumed_to_the_bit(
    tmp_path: Path, folder: Path, counts: dict[str, list[int]]
) -> None:
    path = write_run(tmp_path)
    assert "saved, start again" in start(path, sabotage=StopAfter(2))
    assert len(metrics(tmp_path)) == 2
    assert start(path) == ""
    shutil.copytree(folder / "alone", tmp_path / "alone/out")
    assert numbers(tmp_path) == numbers(tmp_path / "alone")
    ours, whole = weights(last(tmp_path).parents[3]), weights(folder / "alone")
    assert all(torch.equal(ours[name], whole[name]) for name in whole)


def test_rows_of_held_out_conversations_are_no_longer_than_they_need(
    folder: Path, counts: dict[str, list[int]]
) -> None:
    """On a context that holds them all: what evaluation in training computes."""
    assert counts
    store = TokenStore(folder / "talk")
    tokens, context = int(store.lengths.sum()), 16 * CONTEXT
    (row,) = conversation_rows(store, context)
    assert row.row.real_tokens == tokens < context // 2
    assert 0 <= row.row.length - tokens < context // 128
