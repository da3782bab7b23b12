"""What a load brings over: weights in the precision that they are kept in, moments,
constants of the configuration, on any layout and for any vocabulary.

Saved states are compared tensor by tensor through the checkpoint's own reader, in which
layouts no longer show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.config.run import OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

MAIN = "optimizer.state.param."


def tensors(state: Path) -> dict[str, Tensor]:
    """Every tensor of a saved state, whole."""
    with open_state(state) as reader:
        whole = {}
        for key, (shape, dtype) in reader.tensors.items():
            whole[key] = torch.empty(shape, dtype=dtype)
            reader.read_box(key, (0,) * len(shape), whole[key])
        return whole


# ---- an update in which nothing is predicted ----


def predict_nothing(rank: int, folder: str, layout: Layout) -> tuple[Any, Any, Any]:
    """The state before and after it, and what the update after it does with and without."""
    with small.distributed():
        engine = small.make_engine(layout, constants=OptimizerConfig(weight_decay=0.5))
        small.train(engine, range(2))
        small.save(engine, Path(folder) / "before" / "state")
        expected = small.train(engine, [2])
        engine.load(Path(folder) / "before" / "state", with_optimizer=True)
        documents = [torch.tensor([i]).numpy() for i in range(small.CONTEXT)]
        row = PackedRow.from_documents(documents, small.CONTEXT)
        result = engine.train_update([row], 0.1)
        small.save(engine, Path(folder) / "after" / "state")
        return result, small.train(engine, [2]), expected


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(pp=2), Layout(cp=2)])
def test_an_update_that_predicts_nothing_changes_nothing(
    tmp_path: Path, layout: Layout
) -> None:
    for result, then, expected in run_distributed(
        predict_nothing, 2, str(tmp_path), layout
    ):
        assert not result.applied and result.predicted_tokens == 0
        assert result.loss == 0.0 and result.gradient_norm == 0.0
        assert then == expected
    before = tensors(tmp_path / "before" / "state")
    after = tensors(tmp_path / "after" / "state")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
