"""Ids beyond the model's vocabulary are named at every door, before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from alia_ctx import workflow
from alia_ctx.config import load_run
from alia_ctx.data.packing import PackedRow
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import AliaError, DataError
from tests.distributed import run_distributed
from tests.engine import CONTEXT, distributed, make_engine
from tests.small_run import alia, write_run


def test_check_names_tokenizer_and_stores_beyond_the_model(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert alia("check", str(path)).returncode == 0
    done = alia("check", str(path), "model.vocab_size=150")
    assert done.returncode == 2
    assert "tokenizer=" in done.stderr and "beyond the model's 150" in done.stderr
    assert "data.sources.text.store=" in done.stderr
    assert "evaluation.held_out.store=" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("token", [200, 5000, -1])
def test_a_foreign_store_is_refused_at_its_door(tmp_path: Path, token: int) -> None:
    path = write_run(tmp_path)
    ids = np.arange(100, dtype=np.int64) % 200
    ids[37] = token
    write_store(tmp_path / "text", [ids] * 40, 70_000)
    run = load_run(path)
    with pytest.raises(AliaError, match=f"token id {token}"):
        workflow.pack(run, "short")
    assert not (tmp_path / "out" / "plans").exists()


def _train_on(rank: int, tp: int, token: int) -> str:
    from alia_ctx.spec.layout import Layout

    with distributed():
        engine = make_engine(Layout(tp=tp))
        ids = np.arange(CONTEXT) % 250
        ids[20] = token
        try:
            engine.train_update([PackedRow.from_documents([ids], CONTEXT)], 1e-3)
        except DataError as error:
            return str(error)
    return "trained"


@pytest.mark.parametrize("token", [250, 251, 9999, -7, -100])
@pytest.mark.parametrize("tp", [1, 2])
def test_an_update_looks_at_its_ids_on_the_host(tp: int, token: int) -> None:
    """250 words on tp 2 and 4 are padded: 251 would have a row, and train."""
    for message in run_distributed(_train_on, tp, tp, token):
        assert f"token id {token} is outside the model's vocabulary of 250" in message
