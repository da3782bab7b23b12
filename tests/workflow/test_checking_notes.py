"""What `check` says of the machine that it runs on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.config.load import load_run
from alia_ctx.workflow import checking, gpu_notes
from tests.small_run import write_run


def test_a_machine_without_gpus_needs_no_kernel(tmp_path: Path) -> None:
    assert gpu_notes(load_run(write_run(tmp_path))) == []


@pytest.mark.parametrize(
    "asked, precision, said",
    [
        (
            "auto",
            "bf16",
            "by torch_varlen, about half as fast as the best: .*flash4 needs",
        ),
        ("flash4", "bf16", "engine.attention=flash4: .*install flash-attn-4"),
        ("auto", "fp32", "by reference, many times slower .*: .*precision=bf16"),
    ],
)
def test_a_slower_kernel_is_said_before_the_queue(
    asked: str,
    precision: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for module in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, None)
    run: Any = load_run(
        write_run(tmp_path),
        [f"engine.attention={asked}", f"engine.precision={precision}"],
    )
    assert re.search(said, " | ".join(gpu_notes(run)))


@pytest.mark.parametrize(
    "memory_gib, said",
    [
        (40.0, None),
        (1.0, r"stage .*: .* of 1: it may run out; .*(recompute=|tp, cp or pp)"),
    ],
)
def test_a_stage_without_room_on_this_gpu_is_said_before_it_trains(
    memory_gib: float, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    from alia_ctx.cluster import software

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(software, "gpu_memory_gib", lambda: memory_gib)
    monkeypatch.setattr(software, "kernel_notes", lambda *_: [])
    monkeypatch.setattr(software, "layer_notes", lambda *_: [])
    run: Any = load_run(write_run(tmp_path))
    notes = gpu_notes(run)
    if said is None:
        assert notes == []
    else:
        assert len(notes) == len(run.stages)
        assert all(re.search(said, note) for note in notes)


def test_a_host_without_the_memory_for_offloading_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alia_ctx.cluster import software

    class Poor:
        available = 0

    path, asked = write_run(tmp_path), ["engine.offload_activations=true"]
    full = [*asked, *(f"stages.{s}.recompute=full" for s in load_run(path).stages)]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(software, "gpu_memory_gib", lambda: 40.0)
    monkeypatch.setattr(software, "kernel_notes", lambda *_: [])
    monkeypatch.setattr(software, "layer_notes", lambda *_: [])
    assert gpu_notes(load_run(path, full)) == [], "there is room"
    monkeypatch.setattr(checking.psutil, "virtual_memory", Poor)
    notes = gpu_notes(load_run(path, full))
    assert len(notes) == len(load_run(path).stages)
    assert all("of a node's host memory, and 0 are available" in note for note in notes)
    assert gpu_notes(load_run(path)) == [], "nothing is offloaded"
