"""Files of results that a person has edited, that two programs want at once, or that a disk has
no room for: a message names the file, and nothing of it is lost.
"""

from __future__ import annotations

import argparse
import copy
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from alia_ctx.files import exclusive
from benchmarks import (
    gpu_attention,
    gpu_context_parallel,
    gpu_layouts,
    gpu_peers,
    gpu_program,
    pages,
)
from benchmarks.pages import WriteError, write_result
from benchmarks.process_ranks import Ended
from benchmarks.row_results import Record
from tests.benchmarks.test_gpu_programs import layouts_without_gpus, run
from tests.benchmarks.test_peers import kernel, step

ODD: tuple[Any, ...] = (None, "", 0, -1, [], {}, "x", [None], {"a": 1}, True)
FIGURES = {
    "computed_by": "it",
    "releases": {"alia-ctx": "1"},
    "forward_tflops": 2.0,
    "backward_tflops": 2.0,
    "both_tflops": 2.0,
    "both_seconds": [0.5, 0.25],
}
OF_KERNELS = [
    kernel("flash4", "one", differs=[0.0], **FIGURES),
    kernel("sdpa", "one", skipped="not there"),
]
OF_PEERS = [
    step("ours", [1.0], releases={"alia-ctx": "1"}),
    step("liger", [1.0]),
    {"peer": "megatron_te", "skipped": "not there"},
]
OF_METHODS = {
    "setting": {"cp": 2, "card": "a card", "torch": "2"},
    "begun": None,
    "rows": {
        "64:one": {
            "documents": 1,
            "methods": {
                "ours": {"differs_from_ours": [0.0], **FIGURES},
                "gather": {"skipped": "not there"},
            },
        }
    },
}
PARALLEL = ("--ranks", "1", "--row", "64:one", "--methods", "gather")


def write(file: Path, content: Any) -> None:
    """A document, or a line for each of several."""
    parts = content if isinstance(content, list) else [content]
    file.write_text("".join(json.dumps(part) + "\n" for part in parts))


def edited(whole: Any) -> Iterator[Any]:
    """Each value replaced by each odd one, and each key left out."""

    def places(part: Any, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        keys = part if isinstance(part, dict) else range(len(part))
        for key in keys if isinstance(part, dict | list) else ():
            yield (*before, key)
            if isinstance(part[key], dict | list):
                yield from places(part[key], (*before, key))

    for *above, key in places(whole):
        for value in (*ODD, KeyError):
            other = copy.deepcopy(whole)
            part = other
            for each in above:
                part = part[each]
            if value is KeyError:
                del part[key]
            else:
                part[key] = value
            yield other


@pytest.mark.parametrize(
    ("module", "whole"),
    [
        (gpu_attention, OF_KERNELS),
        (gpu_peers, OF_PEERS),
        (gpu_context_parallel, OF_METHODS),
    ],
)
def test_an_edited_file_is_printed_whole_or_refused_in_words(
    module: ModuleType,
    whole: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "edited"
    refused = 0
    for content in edited(whole):
        write(file, content)
        status = run(module, ("--table", str(file)), monkeypatch)
        said = capsys.readouterr()
        if status is not None:
            refused += 1
            assert said.out == "", content
            assert str(file) in said.err or status == "no peer was measured", content
    assert refused > 50


@pytest.mark.parametrize(
    ("module", "whole", "arguments"),
    [
        (gpu_attention, OF_KERNELS, ("--kernels", "flash4", "--lengths", "64")),
        (gpu_peers, OF_PEERS, ("--peers", "ours", "--context", "128")),
        (gpu_context_parallel, OF_METHODS, PARALLEL),
    ],
)
def test_no_run_goes_on_with_an_edited_file(
    module: ModuleType,
    whole: Any,
    arguments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each is refused: its setting is another at the least."""
    file = tmp_path / "edited"

    def ranks(*_: object, **__: object) -> Ended:
        setting = {"cp": 1, "card": "a host", "torch": "2"}
        try:
            Record.open(file, setting, writes=False, installed={"ours": {}})
        except ValueError as error:
            raise SystemExit(str(error)) from error
        raise AssertionError("it has begun")

    monkeypatch.setattr(gpu_context_parallel, "run_ranks", ranks)
    for content in edited(whole):
        write(file, content)
        status = run(module, (*arguments, "--out", str(file)), monkeypatch)
        assert str(file) in (
            status if isinstance(status, str) else capsys.readouterr().err
        )


def test_peers_of_two_sizes_are_said_before_any_table(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [step("ours", [1.0], layers=1), step("ours", [1.0])]
    rows.append(step("liger", [1.0], parameters=11))
    file = tmp_path / "peers.jsonl"
    write(file, rows)
    assert run(gpu_peers, ("--table", str(file)), monkeypatch) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"{file} is no file of this program" in said.err
    assert "different sizes" in said.err
    monkeypatch.setattr(gpu_peers, "run_all", lambda *_: rows)
    status = run(gpu_peers, ("--context", "128"), monkeypatch)
    assert isinstance(status, str) and "different sizes" in status


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (gpu_attention, ("--kernels", "flash4", "--lengths", "64")),
        (gpu_peers, ("--peers", "ours", "--context", "128")),
        (gpu_context_parallel, PARALLEL),
    ],
)
def test_the_second_program_of_a_file_is_refused(
    module: ModuleType,
    arguments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    with exclusive(out, "the first"):
        status = run(module, (*arguments, "--out", str(out)), monkeypatch)
    assert status == 2
    assert f"{out}: `the first` (pid {os.getpid()}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def layouts(out: Path, patch: pytest.MonkeyPatch, case: str = "dp1:64:1:none") -> Any:
    layouts_without_gpus(patch)
    patch.setattr(gpu_layouts.Case, "problem", lambda *_: None)
    return run(gpu_layouts, ("--case", case, "--out", str(out)), patch)


def test_layouts_of_one_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no room. none")

    out = tmp_path / "out.json"
    monkeypatch.setattr(gpu_layouts, "measure", lambda *_: {"seconds": 1.0})
    with exclusive(out, "the first"):
        assert layouts(out, monkeypatch) == 2
    assert f"{out}: `the first`" in capsys.readouterr().err
    assert layouts(out, monkeypatch) is None
    assert list(tmp_path.iterdir()) == [out]
    out.unlink()
    monkeypatch.setattr(gpu_layouts, "measure", full)
    assert layouts(out, monkeypatch) == 1
    assert "did not run: dp1:64:1:none" in capsys.readouterr().err
    out.unlink()

    def end(status: int) -> None:
        raise SystemExit(f"at once {status}")

    # Its peers of other stages would wait for it.
    monkeypatch.setattr(gpu_program.os, "_exit", end)
    assert layouts(out, monkeypatch, "pp2:64:2:none") == "at once 1"
    assert "pp2:64:2:none: out of memory on rank 0" in capsys.readouterr().err
    assert "no room" in out.read_text()


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("module", [gpu_attention, gpu_peers])
def test_a_full_disk_is_said_in_a_line(
    module: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out.jsonl"

    def measured(options: argparse.Namespace, *_: object) -> list[dict[str, Any]]:
        monkeypatch.setattr(Path, "open", full_disk)
        write_result({"a": 1}, options.out)
        return []

    monkeypatch.setattr(module, "run_all", measured)
    small = ("--lengths", "64") if module is gpu_attention else ("--context", "128")
    status = run(module, (*small, "--out", str(out)), monkeypatch)
    assert isinstance(status, str)
    assert f"{out} cannot be written (No space left on device)" in status
    assert '{"a": 1}' in capsys.readouterr().err  # not lost


def test_a_full_disk_is_no_methods_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of the rank that writes, nor of the program that started it."""
    out = tmp_path / "out.json"

    def ranks(*_: object, **__: object) -> Ended:
        Record.open(out, {"cp": 1}, writes=True).begin("64:one", 1, "gather")
        return Ended("ended with status 74", "", gpu_program.UNWRITTEN)

    monkeypatch.setattr(gpu_context_parallel, "run_ranks", ranks)
    arguments = (*PARALLEL, "--out", str(out))
    assert run(gpu_context_parallel, arguments, monkeypatch) == 1
    assert Record.read(out)["rows"]["64:one"]["methods"] == {}
    record = Record.open(out, {"cp": 1}, writes=True)
    before = out.read_bytes()
    monkeypatch.setattr(pages, "atomic_file", full_disk)
    with pytest.raises(WriteError, match=r"out\.json cannot be written"):
        record.finish("64:one", "gather", {"skipped": "x"})
    status = run(gpu_context_parallel, arguments, monkeypatch)
    assert isinstance(status, str) and f"{out} cannot be written" in status
    monkeypatch.undo()
    assert out.read_bytes() == before


def test_what_was_skipped_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the first ranks of a run; those after a method that ended them go on."""
    out = tmp_path / "out.json"
    out.write_text(json.dumps(OF_METHODS))
    record = Record.open(out, OF_METHODS["setting"], writes=True)  # type: ignore[arg-type]
    assert record.missing("64:one", ["ours", "gather"]) == []
    record.forget_skipped(["64:one", "64:web"], ["ours", "gather"])
    assert record.missing("64:one", ["ours", "gather"]) == ["gather"]
    told: list[bool] = []

    def ranks(command: list[str], *_: object, **__: object) -> Ended:
        told.append("--go-on" in command)
        if len(told) == 2:
            return Ended(None, "")
        record.begin("64:one", 1, "gather")
        return Ended("killed after 9 s", "")

    monkeypatch.setattr(gpu_context_parallel, "run_ranks", ranks)
    assert run(gpu_context_parallel, (*PARALLEL, "--out", str(out)), monkeypatch) == 1
    assert told == [False, True]
    methods = Record.read(out)["rows"]["64:one"]["methods"]
    assert methods["gather"] == {"skipped": "killed after 9 s"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("WORLD_SIZE", ""), ("WORLD_SIZE", "abc"), ("WORLD_SIZE", "0"), ("RANK", "")],
)
@pytest.mark.parametrize("module", [gpu_layouts, gpu_context_parallel])
def test_variables_that_are_no_numbers_are_said(
    module: ModuleType,
    name: str,
    value: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv(name, value)
    arguments = ["--out", str(tmp_path / "out.json")]
    arguments += (
        ["--case", "dp1:64:1:none"] if module is gpu_layouts else ["--row", "64:one"]
    )
    assert run(module, tuple(arguments), monkeypatch) == 2
    said = capsys.readouterr().err
    assert f"{name}={value} in the environment" in said and said.count("\n") == 1
