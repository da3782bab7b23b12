"""The programs that measure GPUs say what is wrong with what they are asked before they
start, in words and with status 2; what did not run ends them with status 1.
"""

from __future__ import annotations

import contextlib
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist

from benchmarks import (
    gpu_attention,
    gpu_context_parallel,
    gpu_layouts,
    gpu_loss,
    gpu_peers,
    gpu_program,
    gpu_step,
)
from tests.paths import ROOT

LAYOUTS = ("--out", "out.json", "--case")
WRONG: list[tuple[ModuleType, tuple[str, ...], str]] = [
    (gpu_step, ("--case", "1:128"), "a case is layers:context:recompute[:row]"),
    (gpu_step, ("--case", "1:128:nought"), "none, selective, full"),
    (gpu_step, ("--case", "1:128:none:books"), "one, web"),
    (gpu_step, ("--case", "0:128:none"), "1 or more"),
    (gpu_step, ("--case", "a:128:none"), "invalid literal"),
    (gpu_step, ("--layers", "tee", "--case", "1:128:none"), "invalid choice: 'tee'"),
    (gpu_step, ("--fp8", "on", "--case", "1:128:none"), "invalid choice: 'on'"),
    (gpu_step, ("--attention", "x", "--case", "1:128:none"), "invalid choice: 'x'"),
    (gpu_step, ("--repeats", "0", "--case", "1:128:none"), "0 is below 1"),
    (
        gpu_step,
        ("--layers", "local", "--fp8", "current", "--case", "1:128:none"),
        "--fp8 current goes with none of --layers local",
    ),
    (
        gpu_step,
        ("--layers", "local", "--fp8", "off", "current", "--case", "1:128:none"),
        "--fp8 current goes with none",
    ),
    (
        gpu_step,
        ("--layers", "local", "--mlp-chunk", "8", "--case", "1:128:none"),
        "without full recomputation",
    ),
    (
        gpu_step,
        ("--mlp-chunk", "8", "--case", "1:128:full"),
        "--mlp-chunk 8 goes with none of --layers auto",
    ),
    (
        gpu_step,
        ("--layers", "te", "--mlp-chunk", "0", "8", "--case", "1:128:full"),
        "--mlp-chunk 8 goes with none of --layers te",
    ),
    (gpu_layouts, (*LAYOUTS, "foo:128:1:none"), "a layout is tp, cp, pp and dp"),
    (gpu_layouts, (*LAYOUTS, "none:128:1:none"), "a layout is tp, cp, pp and dp"),
    (gpu_layouts, (*LAYOUTS, "tp2tp2:128:1:none"), "a layout is tp, cp, pp and dp"),
    (gpu_layouts, (*LAYOUTS, "tp0:128:1:none"), "a layout is tp, cp, pp and dp"),
    (gpu_layouts, (*LAYOUTS, "tp1:128:1"), "layout:context:layers:recompute[:rows]"),
    (gpu_layouts, (*LAYOUTS, "tp1:128:1:none:0"), "1 or more"),
    (gpu_layouts, (*LAYOUTS, "tp2:128:1:none"), "is of 2 GPUs and there are 1"),
    (gpu_layouts, (*LAYOUTS, "dp4:128:1:none"), "is of 4 GPUs and there are 1"),
    (
        gpu_layouts,
        ("--layers", "te", "--tp-chunks", "1", "2", *LAYOUTS, "tp1:128:1:none"),
        "--tp-chunks 2 goes with none",
    ),
    (
        gpu_layouts,
        ("--tp-chunks", "2", *LAYOUTS, "dp1:128:1:none"),
        "--tp-chunks above 1 are of tp above 1",
    ),
    (
        gpu_layouts,
        ("--out", "/none/there.json", "--case", "dp1:128:1:none"),
        "/none/there.json cannot be written",
    ),
    (gpu_loss, ("--tokens", "0"), "0 is below 1"),
    (gpu_loss, ("--words", "many"), "invalid number value: 'many'"),
    (gpu_attention, ("--rows", "nonsense"), "invalid choice: 'nonsense'"),
    (gpu_attention, ("--heads", "3", "2"), "divide those of queries"),
    (gpu_attention, ("--lengths", "-1"), "-1 is below 1"),
    (gpu_attention, ("--table", "/none/there"), "/none/there is not there"),
    (
        gpu_context_parallel,
        ("--row", "256", "--out", "out.json"),
        "a row is length:documents",
    ),
    (gpu_context_parallel, ("--row", "256:many", "--out", "o"), "one, 8k, short"),
    (gpu_context_parallel, ("--row", "256:one"), "--row and --out say"),
    (gpu_context_parallel, ("--ranks", "0", "--row", "256:one"), "0 is below 1"),
    (gpu_context_parallel, ("--kernel", "x"), "invalid choice: 'x'"),
    (gpu_context_parallel, ("--table", "/none/there"), "is not there"),
    (gpu_peers, ("--table", "/none/there"), "/none/there is not there"),
    (gpu_peers, ("--table", "pyproject.toml"), "is no file of this program's results"),
    (gpu_peers, ("--width", "100"), "multiple of 16"),
    (
        gpu_peers,
        ("--row", "web", "--peers", "ours", "liger"),
        "liger know no documents",
    ),
    (gpu_peers, ("--rounds", "0"), "0 is below 1"),
]


def run(
    module: ModuleType, arguments: tuple[str, ...], patch: pytest.MonkeyPatch
) -> Any:
    """The status that it ends with; None where it comes to its end."""
    patch.setattr(sys, "argv", [f"{module.__name__}.py", *arguments])
    patch.setattr(torch.cuda, "is_available", lambda: False)
    patch.chdir(ROOT)
    try:
        module.main()
    except SystemExit as end:
        return end.code
    return None


def layouts_without_gpus(patch: pytest.MonkeyPatch) -> None:
    """Let `gpu_layouts.py` run as one rank on a host; `measure` is the caller's to set."""
    tensor = torch.as_tensor

    def gathered(values: list[Any], value: Any) -> None:
        values[0] = value

    patch.setattr(gpu_program.Parser, "require_gpus", lambda *_: None)
    patch.setattr(gpu_layouts, "Distributed", lambda *_: contextlib.nullcontext())
    patch.setattr(gpu_layouts, "matrix_rate", lambda: 1.0)
    patch.setattr(torch, "tensor", lambda value, device: tensor(value))
    patch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    patch.setattr(dist, "all_reduce", lambda *_: None)
    patch.setattr(dist, "get_rank", lambda: 0)
    patch.setattr(dist, "get_world_size", lambda: 1)
    patch.setattr(dist, "all_gather_object", gathered)


@pytest.mark.parametrize(
    ("module", "arguments", "words"),
    WRONG,
    ids=[f"{m.__name__.rsplit('.')[-1]} {' '.join(a)}" for m, a, _ in WRONG],
)
def test_what_cannot_be_is_said_before(
    module: ModuleType,
    arguments: tuple[str, ...],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(module, arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert said.out == ""
    assert not (ROOT / "out.json").exists()


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (gpu_step, ("--case", "1:128:none")),
        (gpu_layouts, (*LAYOUTS, "dp1:128:1:none")),
        (gpu_loss, ()),
    ],
)
def test_no_gpu_is_one_line(
    module: ModuleType,
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(module, arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err.endswith(".py: needs 1 GPU(s), and torch finds 0\n")
    assert (said.out, said.err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("module", "arguments", "option"),
    [
        (gpu_attention, (), "--lengths"),
        (gpu_peers, (), "--context"),
        (gpu_peers, ("--ranks", "2", "--width", "64"), "--context"),
        (gpu_context_parallel, ("--row", "8193:web", "--out", "out.json"), "--row"),
    ],
)
def test_long_rows_are_not_begun_on_a_host(
    module: ModuleType,
    arguments: tuple[str, ...],
    option: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their defaults are a GPU's work of minutes."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(module, arguments, monkeypatch) == 2
    said = capsys.readouterr()
    assert said.err.endswith(f"rows of at most 8,192 tokens ({option})\n")
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert not (ROOT / "out.json").exists()


def test_of_several_ranks_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(gpu_layouts, (*LAYOUTS, "dp4:128:1:none"), monkeypatch) == 2
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert run(gpu_layouts, (*LAYOUTS, "dp4:128:1:none"), monkeypatch) == 2
    assert "is of 4 GPUs and there are 2" in capsys.readouterr().err


@pytest.mark.parametrize("kernels", [("reference",), ("reference", "flash4")])
def test_a_kernel_that_did_not_run_is_a_status(
    kernels: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = ("--kernels", *kernels, "--lengths", "64", "--rows", "one")
    arguments += ("--heads", "4", "2", "--seconds", "0")
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_attention, "DTYPE", torch.float32)
    status = run(gpu_attention, arguments, monkeypatch)
    assert status == (1 if "flash4" in kernels else None)
    said = capsys.readouterr()
    assert ("did not run: flash4 (64, one)" in said.err) == (status == 1)
    assert "| 64, one | 1 | reference |" in said.out


def test_a_step_that_did_not_run_is_a_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(gpu_program.Parser, "require_gpus", lambda *_: None)
    monkeypatch.setattr(gpu_step, "run_apart", fail)
    assert run(gpu_step, ("--case", "1:128:none"), monkeypatch) == 1
    said = capsys.readouterr()
    assert "1:128:none:one auto:off: did not run (no room)" in said.out
    assert "did not run: 1:128:none:one auto:off" in said.err


def test_a_layout_names_all_of_its_gpus() -> None:
    case = gpu_layouts.Case.parse("tp2cp2dp2:128:4:full:3")
    assert (case.layout.tp, case.layout.cp, case.dp, case.rows) == (2, 2, 2, 3)
    assert case.problem(8) is None
    assert case.data_parallel(8) == 2
    assert "is of 8 GPUs and there are 4" in str(case.problem(4))
    # Heads: 8 of keys and values on 16 ranks.
    assert "layout.tp" in str(gpu_layouts.Case.parse("tp16:128:1:none").problem(16))


def test_a_trial_on_a_host_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_program.note_trial()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("torch finds no GPU: a trial")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    gpu_program.note_trial()
    assert not capsys.readouterr().err
