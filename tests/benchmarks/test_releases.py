"""What computed a result stands with it: no table has two releases of a package, nor two
kernels of one row, and no run goes on with another's. What is not installed is called so.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import megatron.core
import pytest
import torch

import alia_ctx
from benchmarks import gpu_attention, gpu_context_parallel, gpu_peers, gpu_program
from benchmarks.peers import PEERS, packages_of
from benchmarks.releases import ENGINE, MODULES, releases
from benchmarks.row_attention_peers import METHODS
from benchmarks.row_attention_peers import packages_of as of_method
from benchmarks.row_results import Record, print_table
from tests.benchmarks.test_gpu_programs import run
from tests.benchmarks.test_peers import kernel, step
from tests.benchmarks.test_settings import FIGURES, KERNELS, here, write
from tests.benchmarks.test_settings import PEERS as RUN_OF_PEERS
from tests.paths import ROOT

OLD, NEW = {"transformers": "5.17.0"}, {"transformers": "5.23.0"}


def tables(results: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> Any:
    gpu_peers.print_tables(results)
    return capsys.readouterr().out.split("\n\n2 x")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"releases": NEW}, {"releases": OLD}),
        ({"releases": NEW}, {}),  # one says none
        ({"kernel": "flash3"}, {"kernel": "flash4"}),
        ({"releases": NEW}, {"releases": NEW | {"liger-kernel": "0.8"}}),
    ],
)
def test_a_table_for_each_release_and_kernel(
    first: Any, second: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [
        step("ours", [1.0], releases={"alia-ctx": "1"}),
        step("transformers", [2.0], **first),
        {"peer": "liger", "skipped": "not installed"},
        step("transformers", [4.0], **second),
        {"peer": "torchtitan", "skipped": "no room"},
        step("ours", [1.0], releases={"alia-ctx": "1"}),
    ]
    one, two = tables(results, capsys)
    assert "| transformers | " in one and "| 2.000 | 50.0 |" in one
    assert "| 4.000 |" not in one and "liger: not installed" in one
    assert "| 4.000 | 0.0% |" in two and "torchtitan: no room" in two
    assert "With alia-ctx 1" in one and "alia-ctx" not in two
    (whole,) = tables([*results[:3], results[1], results[5]], capsys)
    assert whole.count("| transformers |") == 1


def test_a_package_has_one_release_in_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of two peers as of one."""
    liger = {"liger-kernel": "0.8"}
    results = [
        step("transformers", [1.0], releases=NEW),
        step("liger", [1.0], releases=OLD | liger),
    ]
    assert len(tables(results, capsys)) == 2
    results[1]["releases"] = NEW | liger
    (whole,) = tables(results, capsys)
    assert "With transformers 5.23.0, liger-kernel 0.8.\n" in whole


def test_results_that_say_nothing_are_a_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    (whole,) = tables([step("ours", [1.0]), step("liger", [1.0])], capsys)
    assert "With " not in whole and "| liger |" in whole


def test_kernels_of_two_releases_are_two_tables(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """TransformerEngine may take another kernel for another row, and then it is one table."""
    te = {"releases": {"transformer_engine": "2.12"}, **FIGURES, "both_tflops": 1.0}
    first = kernel("TransformerEngine", "one", **te | {"computed_by": "cuDNN"})
    other = kernel("TransformerEngine", "web", **te | {"computed_by": "flash"})
    gpu_attention.print_table([first, other])
    assert capsys.readouterr().out.count("| row |") == 1
    for changed in (
        first | {"computed_by": "flash"},
        other | {"releases": {"transformer_engine": "2.13"}},
    ):
        gpu_attention.print_table([first, other, changed])
        said = capsys.readouterr().out
        assert said.count("| row |") == 2


@pytest.mark.parametrize("known", [{"alia-ctx": "0.0.1"}, {}, None])
def test_no_run_goes_on_with_another_release(
    known: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("it has begun")

    said = {} if known is None else {"releases": known}
    words = "no releases" if known is None else "alia-ctx "
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    for module, arguments, others in (
        (gpu_peers, RUN_OF_PEERS, {"peer": "ours", "kernel": "reference"}),
        (gpu_attention, KERNELS, {}),
    ):
        monkeypatch.setattr(module, "run_all", never)
        result = here(module, **said, **others)
        result.pop("skipped", None)
        file = write(tmp_path / "a.jsonl", result)
        before = file.read_bytes()
        assert run(module, (*arguments, "--out", str(file)), monkeypatch) == 2
        error = capsys.readouterr().err
        assert words in error and "name another --out" in error
        assert error.count("\n") == 1
        assert file.read_bytes() == before


def test_another_kernel_is_refused_when_it_shows(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_attention, "DTYPE", torch.float32)
    known = here(gpu_attention, releases=releases(ENGINE)) | {"computed_by": "another"}
    file = write(tmp_path / "a.jsonl", known)
    before = file.read_bytes()
    assert run(gpu_attention, (*KERNELS, "--out", str(file)), monkeypatch) == 2
    assert "reference by another there and by reference here" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_a_record_of_rows_is_of_one_release(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A method whose package is new to the file may be added."""
    file, ours = tmp_path / "a.json", {"ours": {"alia-ctx": "1"}}
    setting = {"cp": 1, "card": "a", "torch": "2"}
    record = Record.open(file, setting, writes=True, installed=ours)
    record.begin("64:one", 1, "ours")
    figures = {**FIGURES, "both_tflops": 1.0, "backward_tflops": 1.0}
    figures |= {"both_seconds": [1.0], "differs_from_ours": [0.0]}
    record.finish("64:one", "ours", figures | {"releases": ours["ours"]})
    added = ours | {"TransformerEngine p2p": {"transformer_engine": "2.12"}}
    for installed in (ours, added):
        Record.open(file, setting, writes=False, installed=installed)
    with pytest.raises(ValueError, match="alia-ctx 1 there and 2 here"):
        Record.open(
            file, setting, writes=False, installed={"gather": {"alia-ctx": "2"}}
        )
    print_table(Record.read(file))
    assert "With alia-ctx 1." in capsys.readouterr().out
    record.finish("64:one", "ours", figures)
    with pytest.raises(ValueError, match="ours with no releases there"):
        Record.open(file, setting, writes=False, installed=ours)
    print_table(Record.read(file))
    assert "| ours | it |" in capsys.readouterr().out


def test_releases_are_those_that_an_import_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a folder before the environment's, with and without metadata, and of what is
    hidden in this process.
    """
    found = releases(["alia-ctx", "megatron-core", "transformers"])
    assert found["alia-ctx"] == alia_ctx.__version__
    # The package states its commit too, behind a plus.
    assert found["megatron-core"] == megatron.core.__version__.partition("+")[0]
    package = tmp_path / "transformers"
    package.mkdir()
    (package / "__init__.py").write_text('__version__ = "1.2"\n')
    monkeypatch.syspath_prepend(tmp_path)
    assert releases(["transformers"]) == {"transformers": "1.2"}
    (package / "__init__.py").write_text("")
    metadata = tmp_path / "transformers-1.3.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: transformers\nVersion: 1.3\n")
    (tmp_path / "flash_attn_interface.py").write_text("__version__ = '3'\n")
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, "transformers", None)
    said = releases(["transformers", "flash-attn-3", "ring-flash-attn"])
    assert said == {"transformers": "1.3", "flash-attn-3": "3"}


def test_each_peer_and_method_has_its_packages() -> None:
    peers = {peer: packages_of(peer) for peer in PEERS}
    methods = {method: of_method(method) for method in METHODS}
    kernels = {
        name: gpu_attention.packages_of(name) for name in gpu_attention.CONTENDERS
    }
    for names in (*peers.values(), *methods.values(), *kernels.values()):
        assert MODULES.keys() >= {*names}
    assert {peer for peer, names in peers.items() if "transformers" in names} == {
        *("transformers", "liger", "liger_fp32", "liger_flash4")
    }
    assert all(peers.values())
    assert {m for m, names in methods.items() if not names} == {
        *("torch, cuDNN", "torch, flash")
    }


def test_what_is_hidden_is_said_to_be_missing_or_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("not_there", "not_there.inner"):
        for hidden in (False, True):
            if hidden:
                monkeypatch.setitem(sys.modules, "not_there", None)
            with pytest.raises(ImportError) as failed:
                importlib.import_module(module)
            assert gpu_program.one_line(failed.value) == "not_there is not installed"
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError) as failed:
        importlib.import_module("there.inner")
    assert "No module named 'there.inner'" in gpu_program.one_line(failed.value)
    monkeypatch.setitem(sys.modules, "there", None)
    with pytest.raises(ImportError) as failed:
        importlib.import_module("there.inner")
    assert gpu_program.one_line(failed.value).startswith("there is there and left out")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "gpu_attention.py --kernels TransformerEngine --lengths 64 --rows one",
        "gpu_context_parallel.py --row 64:one --methods TransformerEngine@p2p --out {}",
        "gpu_peers.py --peers megatron_te --width 64 --context 64 --layers 1 --out {}",
    ],
)
def test_programs_say_what_is_not_installed(command: str, tmp_path: Path) -> None:
    if releases(["transformer_engine"]):
        pytest.skip("TransformerEngine is installed")
    script, *options = command.format(tmp_path / "out").split()
    options = [option.replace("@", " ") for option in options]
    done = subprocess.run(
        [sys.executable, f"benchmarks/{script}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert "transformer_engine is not installed" in done.stdout + done.stderr
    assert "None in sys.modules" not in done.stdout + done.stderr
    assert "is not a package" not in done.stdout + done.stderr


def test_the_other_programs_say_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A result of `gpu_attention.py` as its file has it."""
    monkeypatch.setattr(gpu_attention, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_attention, "DTYPE", torch.float32)
    file = tmp_path / "a.jsonl"
    assert run(gpu_attention, (*KERNELS, "--out", str(file)), monkeypatch) is None
    (result,) = map(json.loads, file.read_text().splitlines())
    assert result["releases"] == releases(ENGINE)
    assert gpu_context_parallel.packages_of("ours") == ENGINE
