"""What `check` says of the machine that it runs on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.config.load import load_run
from alia_ctx.workflow import checking, host_memory_notes, kernel_notes
from tests.small_run import write_run


def test_a_machine_without_gpus_needs_no_kernel(tmp_path: Path) -> None:
    assert kernel_notes(load_run(write_run(tmp_path))) == []


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
    for module in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, None)
    run: Any = load_run(
        write_run(tmp_path),
        [f"engine.attention={asked}", f"engine.precision={precision}"],
    )
    assert re.search(said, " | ".join(kernel_notes(run)))


def test_a_host_without_the_memory_for_offloading_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poor:
        available = 0

    path, asked = write_run(tmp_path), ["engine.offload_activations=true"]
    full = [*asked, *(f"stages.{s}.recompute=full" for s in load_run(path).stages)]
    assert host_memory_notes(load_run(path, full)) == [], "no GPU here"
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert host_memory_notes(load_run(path, full)) == [], "there is room"
    monkeypatch.setattr(checking.psutil, "virtual_memory", Poor)
    notes = host_memory_notes(load_run(path, full))
    assert len(notes) == len(load_run(path).stages)
    assert all("of a node's host memory, and 0 are available" in note for note in notes)
    assert host_memory_notes(load_run(path)) == [], "nothing is offloaded"
