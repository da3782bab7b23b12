"""Results stand with the setting that they were measured under: no program goes on with a
file of another's, and no table mixes two.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import gpu_attention, gpu_context_parallel, gpu_layouts, gpu_peers
from benchmarks.pages import read_results, write_result
from benchmarks.row_results import Record
from benchmarks.settings import by_setting, card_here, differences, require_same
from tests.benchmarks.test_gpu_programs import run
from tests.benchmarks.test_peers import kernel, step
from tests.paths import ROOT

CASE = ("--case", "dp1:128:1:none")
PEERS = ("--peers", "ours", "--context", "128")
KERNELS = ("--kernels", "reference", "--lengths", "64", "--rows", "one", "--heads", "4")
KERNELS += ("2", "--seconds", "0")
FIGURES = {"computed_by": "it", "forward_tflops": 1.0, "differs": [0.0]}


def write(path: Path, *results: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(result) + "\n" for result in results))
    return path


def here(module: ModuleType, **others: Any) -> dict[str, Any]:
    """The setting of the runs of this file, and what is other there."""
    known = {"card": "a host", "torch": torch.__version__}
    if module is gpu_peers:
        known |= {"ranks": 1, "layers": 2, "context": 128, "row": "one", "repeats": 5}
        known |= {"vocabulary": 8192, "width": None, "peer": "liger", "skipped": "no"}
    else:
        known |= {"heads": [4, 2], "first": "reference", "repeats": 10, "seconds": 0.0}
        known |= {"contender": "reference", "length": 64, "row": "one", "documents": 1}
        known |= {"both_tflops": 1.0, **FIGURES}
    return known | others


def test_a_table_for_each_setting(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also of results that were written before all of a setting stood with them."""
    file = write(
        tmp_path / "mix.jsonl",
        step("ours", [0.7], card="NVIDIA H100", ranks=1),
        step("liger", [1.4], card="NVIDIA H200", context=65_536, parameters=11),
        {"peer": "torchtitan", "skipped": "not installed"},
        step("ours", [1.0], card="NVIDIA H200", context=65_536, parameters=11),
    )
    assert run(gpu_peers, ("--table", str(file)), monkeypatch) is None
    first, second = capsys.readouterr().out.split("\n\n2 x")
    assert "1 x NVIDIA H100, torch 2, 32,768 tokens a row." in first
    assert "liger" not in first
    assert " NVIDIA H200, torch 2, 65,536 tokens a row." in second
    assert "| liger | a kernel | 1.400 |" in second
    assert "| 1.400 | 50.0 |" in second  # over ours of the same setting
    assert "- torchtitan: not installed" in second
    assert "0.700" not in second


def test_a_table_of_kernels_for_each_setting(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = write(
        tmp_path / "mix.jsonl",
        kernel("flash4", "one", card="A100", both_tflops=200.0, **FIGURES),
        kernel("flash3", "one", card="H200", both_tflops=400.0, **FIGURES),
    )
    assert run(gpu_attention, ("--table", str(file)), monkeypatch) is None
    first, second = capsys.readouterr().out.split("\n\nH200")
    assert first.startswith("A100, torch 2;")
    for said, name, others in (
        (first, "flash4", "flash3"),
        (second, "flash3", "flash4"),
    ):
        assert f"| {name} | it | 1 |" in said
        assert "| 1.00 | 1.00 |" in said  # of the best of its own setting
        assert others not in said


def test_profiles_stand_in_the_order_of_the_peers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The first, which is measured once more at the end, by its first profile."""
    rows = [step("ours", [1.0]), step("liger", [1.0]), step("ours", [1.0])]
    for number, row in enumerate(rows):
        row["classes"] = dict.fromkeys(gpu_peers.NAMES, float(number))
    gpu_peers.print_tables(rows)
    lines = capsys.readouterr().out.partition("profiled step")[2].splitlines()
    found = [line.split(" | ")[:2] for line in lines if line.startswith(("| o", "| l"))]
    assert found == [["| ours", "0.0"], ["| liger", "1.0"]]


@pytest.mark.parametrize(
    ("module", "arguments", "other", "words"),
    [
        (gpu_peers, PEERS, {"card": "an H100"}, "card an H100 there and a host here"),
        (gpu_peers, PEERS, {"ranks": 2}, "ranks 2 there and 1 here"),
        (gpu_peers, PEERS, {"torch": "1"}, "torch 1 there and "),
        (gpu_peers, PEERS, {"context": 64}, "context 64 there and 128 here"),
        (gpu_peers, PEERS, {"layers": 3}, "layers 3 there and 2 here"),
        (gpu_peers, PEERS, {"row": "web"}, "row web there and one here"),
        (gpu_peers, PEERS, {"repeats": 1}, "repeats 1 there and 5 here"),
        (gpu_peers, PEERS, {"width": 16}, "width 16 there and None here"),
        (gpu_attention, KERNELS, {"card": "x"}, "card x there and a host here"),
        (
            gpu_attention,
            KERNELS,
            {"heads": [8, 1]},
            "heads [8, 1] there and [4, 2] here",
        ),
        (
            gpu_attention,
            KERNELS,
            {"first": "flash2"},
            "first flash2 there and reference",
        ),
        (gpu_attention, KERNELS, {"seconds": 1.0}, "seconds 1.0 there and 0.0 here"),
    ],
)
def test_no_run_goes_on_with_another_setting(
    module: ModuleType,
    arguments: tuple[str, ...],
    other: dict[str, Any],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the last line of several; nothing is measured, and the file is left as it was."""

    def never(*_: object) -> None:
        raise AssertionError("it has begun")

    monkeypatch.setattr(module, "run_all", never)
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    file = write(tmp_path / "a.jsonl", here(module), here(module, **other))
    before = file.read_bytes()
    assert run(module, (*arguments, "--out", str(file)), monkeypatch) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert "name another --out" in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)
    assert file.read_bytes() == before


def test_a_run_goes_on_with_its_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_attention, "DTYPE", torch.float32)
    file = tmp_path / "a.jsonl"
    for number in (1, 2):
        arguments = (*KERNELS, "--out", str(file))
        assert run(gpu_attention, arguments, monkeypatch) is None
        results = [json.loads(line) for line in file.read_text().splitlines()]
        assert len(by_setting(results, gpu_attention.SETTING)) == 1
        assert len(results) == number

    def no_peer(options: argparse.Namespace, setting: dict[str, Any], _: Any) -> Any:
        return [step("ours", [1.0], **setting)]

    monkeypatch.setattr(gpu_peers, "run_all", no_peer)
    for _ in range(2):
        write(file, here(gpu_peers))
        assert run(gpu_peers, (*PEERS, "--out", str(file)), monkeypatch) is None


@pytest.mark.parametrize(
    "content", ["no results\n", '{"x": 1}\n', "[1]\n", '{"setting": {}}', "[]"]
)
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (gpu_peers, PEERS),
        (gpu_attention, KERNELS),
        (gpu_context_parallel, ("--row", "64:one", "--methods", "ours")),
        (gpu_layouts, CASE),
    ],
)
def test_another_programs_file_is_refused_in_words(
    module: ModuleType,
    arguments: tuple[str, ...],
    content: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    assert run(module, (*arguments, "--out", str(file)), monkeypatch) == 2
    said = capsys.readouterr().err
    another = (
        "is there already" if module is gpu_layouts else "is no file of this program"
    )
    assert f"{file} {another}" in said
    assert file.read_text() == content
    if module is not gpu_layouts:
        assert run(module, ("--table", str(file)), monkeypatch) == 2
        assert f"{file} is no file of this program" in capsys.readouterr().err


@pytest.mark.slow
def test_ranks_that_find_another_setting_say_so_in_a_line(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    setting = {
        "cp": 2,
        "card": "a host",
        "torch": torch.__version__,
        "kernel": "flash3",
    }
    record = Record.open(file, setting | {"repeats": 10, "seconds": 4.0}, writes=True)
    record.begin("64:one", 1, "ours")
    record.finish("64:one", "ours", {"skipped": "a word"})
    command = [sys.executable, "benchmarks/gpu_context_parallel.py", "--ranks", "1"]
    command += ["--row", "64:one", "--methods", "ours", "--out", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert (
        "cp 2 there and 1 here, kernel flash3 there and reference here" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count(str(file)) == 1
    assert Record.read(file)["rows"]["64:one"]["methods"] == {
        "ours": {"skipped": "a word"}
    }


def test_what_differs_is_named() -> None:
    assert differences({"a": 1, "b": [2]}, {"a": 1, "b": [2]}) == ""
    assert differences({"a": 1}, {"b": 2}) == (
        "b not said there and 2 here, a 1 there and not said here"
    )
    with pytest.raises(ValueError, match="file has results of another setting"):
        require_same(Path("file"), {"a": 1}, {"a": 2})


def test_what_says_nothing_belongs_to_its_neighbours() -> None:
    results = [{}, {"a": 1, "n": 0}, {}, {"a": 2}, {}, {"a": 1}]
    groups = by_setting(results, ["a"])
    assert groups == [
        ({"a": 1}, [{}, {"a": 1, "n": 0}, {}, {"a": 1}]),
        ({"a": 2}, [{"a": 2}, {}]),
    ]
    assert by_setting([{}, {}], ["a"]) == [({}, [{}, {}])]


def test_a_host_is_named_without_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert card_here() == "a host"


def test_a_card_is_asked_in_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `torch` of its own, that stands in the way, says what torch would."""
    words = "class cuda:\n    get_device_name = staticmethod(lambda: 'NVIDIA H200')\n"
    (tmp_path / "torch.py").write_text(words)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert card_here() == "NVIDIA H200"


def test_a_line_that_a_kill_cut_short_costs_itself_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of any byte; what is added stands on a line of its own."""
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    results = [{"peer": "ours", "s": 0.5}, {"peer": "lïger", "s": 0.25}]
    for result in results:
        write_result(result, whole)
    assert read_results(whole, "peer") == results
    first, second = whole.read_bytes().splitlines(keepends=True)
    for cut in range(1, len(second) - 1):
        file.write_bytes(first + second[:cut])
        assert read_results(file, "peer") == results[:1]
        assert "cut short" in capsys.readouterr().err
        write_result({"peer": "new"}, file)
        assert read_results(file, "peer") == [results[0], {"peer": "new"}]
    file.write_bytes(first + second[:-1])  # whole, but for its end of line
    write_result({"peer": "new"}, file)
    assert read_results(file, "peer") == [*results, {"peer": "new"}]
    file.write_text("")
    with pytest.raises(ValueError, match="no results"):
        read_results(file, "peer")
