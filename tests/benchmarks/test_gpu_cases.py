"""The programs that measure GPUs in cases: what goes together, that none pays for those before
it, and that one which cannot run costs a line.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from alia_ctx.errors import LayoutError
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import MACHINES, MEASURED_ON_HOPPER
from benchmarks import gpu_layouts, gpu_peers, gpu_program, gpu_step
from benchmarks.gpu_products import Products
from benchmarks.measured_rows import measured_rows
from tests.benchmarks.test_gpu_programs import layouts_without_gpus, run


def test_chunks_of_the_mlp_are_of_local_layers() -> None:
    """Beside others, that have none, where several are asked for."""
    together = Products.of(["local", "te"], ["off", "current"], mlp_chunks=[0, 8])
    assert [str(p) for p in together] == [
        "local:off",
        "local:off:8",
        "te:off",
        "te:current",
    ]


def a_step(case: str, seconds: float) -> dict[str, Any]:
    result = {"case": case, "documents": 1, "kernel": "k", "layers": "l", "fp8": "off"}
    result |= {"offload": "off", "MLP chunk": 0, "seconds": seconds, "spread": 0.0}
    result |= {"tokens_per_second": 1.0, "tflops": 1.0, "matrix_tflops": 1.0}
    return result | {
        "mfu": 0.5,
        "optimizer_seconds": 0.0,
        "losses": [1.0],
        "memory": {},
    }


def test_of_the_first_is_a_rows_time_over_the_firsts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    cases = ["1:64:none:one"] * 2 + ["2:64:none:one"]
    seconds = zip(cases, (2.0, 3.0, 5.0), strict=True)
    gpu_step.print_tables([a_step(*each) for each in seconds])
    head, _, *rows = capsys.readouterr().out.split("\n\n")[1].splitlines()
    place = head.split(" | ").index("of the first")
    assert [row.split(" | ")[place] for row in rows] == ["1.000", "1.500", "1.000"]


@pytest.mark.parametrize(
    ("card", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA H100 80GB HBM3", "h100-80"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 PCIe", "defaults"),
        ("NVIDIA H200 NVL", "defaults"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "defaults"),
    ],
)
def test_layouts_are_planned_by_the_card(card: str, name: str) -> None:
    said, cluster = gpu_layouts.cluster_of(card, 2)
    assert said == name
    assert (cluster.ranks_per_node, cluster.overhead_gib) == (2, 0.0)
    expected = MACHINES.get(name, ClusterSpec())
    assert cluster.memory_gib == expected.memory_gib
    pair = cluster.efficiency, cluster.attention_efficiency
    assert pair == (expected.efficiency, expected.attention_efficiency)
    assert (pair == MEASURED_ON_HOPPER) == name.startswith("h")


def test_layouts_are_planned_as_the_table_of_all_rows_is() -> None:
    names = {"H100": "NVIDIA H100 80GB HBM3", "H200": "NVIDIA H200"}
    # Those without an optimizer are of another program.
    rows = [r for r in measured_rows() if r.gpus > 1 and r.state == "all"]
    for row in rows:
        _, cluster = gpu_layouts.cluster_of(names[row.card], row.gpus)
        assert cluster == row.machine
        case = gpu_layouts.Case.parse(row.case)
        assert case.planned(cluster, row.products).timing.total == row.planned_seconds()
    assert len(rows) > 9


COMPILED: list[int] = []


def compile_another_shape() -> None:
    """What a case does to the process: `several` is compiled for its own shape."""

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        COMPILED.append(1)
        return graph.forward

    torch.compile(several, backend=backend, dynamic=False)(
        torch.ones(len(COMPILED) + 2)
    )


def several(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.fixture
def few_compilations() -> Iterator[None]:
    """torch gives a function up after the second shape."""
    COMPILED.clear()
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=2):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("few_compilations")
def test_the_fixture_counts() -> None:
    for _ in range(5):
        compile_another_shape()
    assert len(COMPILED) == 2


@pytest.mark.usefixtures("few_compilations")
def test_each_step_in_one_process_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*_: object) -> dict[str, Any]:
        compile_another_shape()
        return a_step("1:64:none:one", 1.0)

    monkeypatch.setattr(gpu_program.Parser, "require_gpus", lambda *_: None)
    monkeypatch.setattr(gpu_step, "Distributed", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(gpu_step, "run_here", measured)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    arguments = ["--one-process", *["--case", "1:64:none"] * 5]
    assert run(gpu_step, tuple(arguments), monkeypatch) is None
    assert len(COMPILED) == 5


@pytest.mark.usefixtures("few_compilations")
def test_each_layout_in_one_process_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> dict[str, Any]:
        compile_another_shape()
        return {"seconds": 1.0}

    layouts_without_gpus(monkeypatch)
    monkeypatch.setattr(gpu_layouts, "measure", measured)
    out = tmp_path / "out.json"
    arguments = ["--out", str(out)]
    for context in range(128, 640, 128):
        arguments += ["--case", f"dp1:{context}:1:none"]
    arguments += ["--case", "dp1:640:1:none"]
    assert run(gpu_layouts, tuple(arguments), monkeypatch) is None
    assert len(COMPILED) == 5
    results = json.loads(out.read_text())
    assert len(results) == 5
    assert {r["torch"] for r in results.values()} == {torch.__version__}
    # A second run would overwrite them.
    assert run(gpu_layouts, tuple(arguments), monkeypatch) == 2
    assert json.loads(out.read_text()) == results


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            LayoutError("engine.layers=te: no GPU;\n  set local"),
            "engine.layers=te: no GPU; set",
        ),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module"),
        (gpu_peers.UnableError("it is cuDNN's"), "UnableError: it is cuDNN's"),
        (torch.OutOfMemoryError("no room"), "OutOfMemoryError: no room"),
    ],
)
def test_a_peer_that_cannot_run_says_so_in_a_line(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SystemExit with words is that line, and status 1."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(gpu_peers, "measure", fail)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    arguments = ("--in-process", "ours_te", "--context", "64", "--width", "16")
    said = run(gpu_peers, arguments, monkeypatch)
    assert said.startswith(words)
    assert "\n" not in said


def test_what_is_not_foreseen_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(gpu_peers, "measure", fail)
    monkeypatch.setattr(sys, "stdin", io.StringIO("go\n"))
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(gpu_peers, ("--in-process", "ours", "--width", "16"), monkeypatch)


def test_a_step_in_its_own_process_says_why_it_cannot_run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what the one process prints, the other says the last line."""

    def fail(*_: object) -> None:
        raise LayoutError("engine.layers=te: no GPU;\n  set local")

    monkeypatch.setattr(gpu_program.Parser, "require_gpus", lambda *_: None)
    monkeypatch.setattr(gpu_step, "run_here", fail)
    case = ("--case", "1:128:none")
    assert run(gpu_step, (*case, "--in-process"), monkeypatch) == 1
    printed = capsys.readouterr()
    assert printed.err == ""

    def ran(*_: object, **__: object) -> Any:
        return gpu_step.subprocess.CompletedProcess([], 1, "a line\n" + printed.out)

    monkeypatch.setattr(gpu_step.subprocess, "run", ran)
    assert run(gpu_step, case, monkeypatch) == 1
    assert (
        "did not run (engine.layers=te: no GPU; set local)" in capsys.readouterr().out
    )
