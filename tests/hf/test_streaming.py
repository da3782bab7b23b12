"""Conversion in small pieces, on several ranks, and killed in the middle."""

from __future__ import annotations

import errno
import functools
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from alia_ctx import checkpoint
from alia_ctx.checkpoint import dcp_files, dcp_store
from alia_ctx.errors import AliaError, CheckpointError
from alia_ctx.hf import safetensors_writer
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.ranks import Ranks
from alia_ctx.hf.verify import verify
from alia_ctx.train.stage_identity import checkpoint_statement
from tests.distributed import run_distributed
from tests.hf.conversions import edit_shard, files_below, load_model, poison
from tests.hf_models import (
    same_weights,
)

# -- killed in the middle --------------------------------------------------------------


def _run_and_die(convert: Any, source: Path, target: Path) -> None:
    def die_half_way(done: int, total: int) -> None:
        if done > total // 2:
            os.kill(os.getpid(), signal.SIGKILL)

    convert(source, target, progress=die_half_way)


def _killed(convert: Any, source: Path, target: Path) -> None:
    process = multiprocessing.get_context("fork").Process(
        target=_run_and_die, args=(convert, source, target)
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL


def test_kill_9_leaves_nothing_that_loads_and_the_next_run_succeeds(
    tmp_path: Path, source: Path
) -> None:
    _killed(import_hf, source, tmp_path / "ck")
    assert not (tmp_path / "ck").exists() and (tmp_path / "ck.incomplete").exists()
    with pytest.raises(AliaError):
        checkpoint.read_manifest(tmp_path / "ck.incomplete")
    import_hf(source, tmp_path / "ck")
    _killed(export_hf, tmp_path / "ck", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises((OSError, ValueError)):
        load_model(tmp_path / "out.incomplete")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert verify(tmp_path / "out", tmp_path / "ck").ok
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ck", "hf", "out"]


# -- pieces smaller than a tensor ------------------------------------------------------


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5,000 bytes in blocks of 1,000: what tensors above 32 MiB go through."""
    monkeypatch.setattr(dcp_files, "_BLOCK_BYTES", 1_000)
    monkeypatch.setattr(safetensors_writer, "_BLOCK_BYTES", 1_000)
    write_part = functools.partial(dcp_store.write_part, chunk_bytes=5_000)
    monkeypatch.setattr(dcp_store, "write_part", write_part)


@pytest.mark.usefixtures("small_pieces")
def test_small_pieces_are_the_same_model(tmp_path: Path, source: Path) -> None:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    import_hf(source, tmp_path / "ck")
    with dcp_store.open_state(tmp_path / "ck/state") as state:
        chunks = state._described["decoder.layers.mlp.linear_fc1.weight"].chunks
    assert len(chunks) == 4 * 5  # 4 layers of 192 rows of 128 bytes, 39 rows a chunk
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert verify(source, tmp_path / "ck").ok
    assert same_weights(load_model(tmp_path / "out"), load_model(source))
    # PyTorch's own reader agrees that these are plain records of whole global tensors.
    dcp_to_torch_save(tmp_path / "ck/state", tmp_path / "plain.pt")
    plain = torch.load(tmp_path / "plain.pt", weights_only=False)
    assert plain["decoder.layers.mlp.linear_fc1.weight"].shape == (4, 192, 64)
    assert torch.equal(plain["output_layer.weight"], load_model(source).lm_head.weight)


@pytest.mark.parametrize("chunks", ["small", "whole"])
def test_errors_while_a_record_is_written(
    tmp_path: Path,
    source: Path,
    chunks: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if chunks == "small":
        request.getfixturevalue("small_pieces")
    with monkeypatch.context() as patch:
        patch.setattr(dcp_files.RecordFile, "_put", full)
        said = r"ck: cannot be written .No space left"
        with pytest.raises(CheckpointError, match=said):
            import_hf(source, tmp_path / "ck")
    edit_shard(source, poison(float("nan")))
    with pytest.raises(CheckpointError, match=r"NaN or infinite .* in row 3"):
        import_hf(source, tmp_path / "ck")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hf"]


# -- several ranks ---------------------------------------------------------------------


def _convert_on_ranks(rank: int, folder: str) -> str:
    root = Path(folder)
    with Ranks.from_environment() as ranks:
        import_hf(root / "hf", root / "ck", ranks=ranks)
        export_hf(root / "ck", root / "out", shard_bytes=100_000, ranks=ranks)
        try:
            import_hf(root / "bad", root / "bad-ck", ranks=ranks)
        except CheckpointError as error:
            return str(error)
    return "no error"


def test_ranks_share_the_work(tmp_path: Path, source: Path) -> None:
    shutil.copytree(source, tmp_path / "bad")
    last = sorted((tmp_path / "bad").glob("*.safetensors"))[-1]
    weights = load_file(last)
    weights["lm_head.weight"][90, 0] = float("nan")  # in the share of the last rank
    save_file(weights, last, metadata={"format": "pt"})
    errors = run_distributed(_convert_on_ranks, 2, str(tmp_path))
    assert errors[0].startswith("rank 1 failed") and all(
        "lm_head.weight has NaN" in error for error in errors
    )
    assert not (tmp_path / "bad-ck").exists() and not list(
        tmp_path.glob("*.incomplete")
    )
    assert {"state/__0_0.distcp", "state/__1_0.distcp"} < files_below(tmp_path / "ck")
    sizes = [
        (tmp_path / f"ck/state/__{rank}_0.distcp").stat().st_size for rank in (0, 1)
    ]
    assert max(sizes) < 1.5 * min(sizes)
    assert same_weights(load_model(tmp_path / "out"), load_model(source))
    assert verify(source, tmp_path / "ck").ok
    # What the two have written is what one would have written.
    alone = checkpoint_statement(import_hf(source, tmp_path / "alone"))
    together = checkpoint.read_manifest(tmp_path / "ck")
    assert checkpoint_statement(together) == alone
    edit_shard(source, poison(0.125))
    other = checkpoint_statement(import_hf(source, tmp_path / "other"))
    assert other == {**alone, "weights": other["weights"]} != alone
