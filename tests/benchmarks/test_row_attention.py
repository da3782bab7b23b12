"""Each method of attention of a packed row, on ranks of a host, against dense fp32."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn.attention_kernels import resolve_kernel
from benchmarks import gpu_context_parallel, row_attention_peers, te_backends
from benchmarks.row_attention import UnableError, ours
from benchmarks.row_results import Record, print_table
from tests.benchmarks import attention_stand_ins, te_attention
from tests.distributed import run_distributed

ROWS = ["256:one", "400:web"]
OWN = ["ours", "ours, zigzag", "gather", "ulysses"]
TORCH = ["torch, cuDNN", "torch, flash"]
TE = [f"TransformerEngine {c}" for c in ("p2p", "all_gather", "a2a", "a2a+p2p")]
TE_FLASH = [f"TransformerEngine {c}, flash" for c in ("p2p", "all_gather", "a2a")]
RING = ["ring-flash-attn zigzag", "ring-flash-attn llama3"]


def measure(rank: int, out: Path, methods: list[str], flash: bool = True) -> None:
    options = argparse.Namespace(
        **{"row": ROWS, "methods": methods, "kernel": "auto", "repeats": 1},
        **{"seconds": 0.0, "out": out},
    )
    if methods == TORCH:
        attention_stand_ins.give_torch_flash_on_a_host()
    if methods == RING:
        attention_stand_ins.give_flash_attn()
        # In fp32 its first sum of gradients is the buffer that the next part overwrites
        # (`dq_buffer.to(torch.float32)`); it is made for 16 bits.
        gpu_context_parallel.DTYPE = torch.bfloat16
    bounds = {"one": [0, 256], "web": [0, 131, 132, 190, 400]}
    gpu_context_parallel.offsets_of = lambda kind, _: np.array(bounds[kind])
    with Distributed(EngineConfig()):
        record = Record.open(out, {"cp": dist.get_world_size()}, writes=rank == 0)
        kernel = resolve_kernel("auto", "cpu")
        dist.barrier()
        te_attention.INSTALLED["flash"] = flash
        with te_attention.transformer_engine():
            gpu_context_parallel.Program(options, record, kernel).run()


def results(
    out: Path, ranks: int, methods: list[str], flash: bool = True
) -> dict[str, dict[str, Any]]:
    run_distributed(measure, ranks, out, methods, flash)
    rows = json.loads(out.read_text())["rows"]
    return {row: rows[row]["methods"] for row in ROWS}


def assert_measured(result: dict[str, Any]) -> None:
    assert "skipped" not in result, result
    assert max(result["differs_from_ours"]) < 1e-5
    assert result["both_seconds"] and result["forward_tflops"] > 0


@pytest.mark.slow
def test_own_methods_agree(tmp_path: Path) -> None:
    for found in results(tmp_path / "out.json", 2, OWN).values():
        for method in OWN:
            assert_measured(found[method])


@pytest.mark.slow
def test_torch_has_one_document_alone(tmp_path: Path) -> None:
    """Its ring over heads of groups, with its balancing; our product beside it."""
    found = results(tmp_path / "out.json", 2, TORCH)
    for method in TORCH:
        assert_measured(found["256:one"][method])
        assert "repeated" not in found["256:one"][method]["computed_by"]
        assert "documents" in found["400:web"][method]["skipped"]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_transformer_engine_is_asked_as_its_pages_say(
    tmp_path: Path, ranks: int
) -> None:
    found = results(tmp_path / "out.json", ranks, TE)
    one, web = found["256:one"], found["400:web"]
    for communication in ("p2p", "all_gather", "a2a"):
        assert_measured(one[f"TransformerEngine {communication}"])
    if ranks == 4:
        assert_measured(one["TransformerEngine a2a+p2p"])
    else:
        assert "4 ranks" in one["TransformerEngine a2a+p2p"]["skipped"]
    for communication in ("p2p", "a2a"):
        assert_measured(web[f"TransformerEngine {communication}"])
    for communication in ("all_gather", "a2a+p2p"):
        assert "skipped" in web[f"TransformerEngine {communication}"]


@pytest.mark.slow
def test_transformer_engine_by_flash_attention(tmp_path: Path) -> None:
    """Beside what it chooses itself, before and after. FlashAttention takes no filled-up
    places, so that these are counted to the documents.
    """
    methods = [TE[0], *TE_FLASH, TE[2]]
    found = results(tmp_path / "out.json", 2, methods)
    for row in ROWS:
        for method in (TE[0], TE[2]):
            assert_measured(found[row][method])
            assert "cuDNN" in found[row][method]["computed_by"]
        for method in (TE_FLASH[0], TE_FLASH[2]):
            assert_measured(found[row][method])
            assert "flash-attn 3.0.0b1" in found[row][method]["computed_by"]
    assert_measured(found["256:one"][TE_FLASH[1]])
    assert "not supported" in found["400:web"][TE_FLASH[1]]["skipped"]
    assert "that attend" not in found["400:web"][TE[0]]["computed_by"]
    assert "that attend" in found["400:web"][TE_FLASH[0]]["computed_by"]


@pytest.mark.slow
def test_without_flash_attention_nothing_else_is_taken_for_it(tmp_path: Path) -> None:
    for found in results(
        tmp_path / "out.json", 2, [TE[0], TE_FLASH[0]], False
    ).values():
        assert_measured(found[TE[0]])
        assert "No dot product attention" in found[TE_FLASH[0]]["skipped"]


def test_another_backend_than_asked_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As from a release that would read other variables."""
    monkeypatch.setattr(te_backends, "FLASH_ALONE", {"NVTE_OTHER": "1"})
    with te_attention.transformer_engine(), te_backends.flash_alone():
        te_attention.choose()
        with pytest.raises(UnableError, match=r"asked for, and it is .*cuDNN"):
            te_backends.require_flash()


def test_the_choice_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVTE_FUSED_ATTN", "1")
    monkeypatch.delenv("NVTE_FLASH_ATTN", raising=False)
    with te_attention.transformer_engine():
        te_attention.choose()
        with te_backends.flash_alone():
            te_attention.choose()
            te_backends.require_flash()
            assert te_backends.te_backend().endswith("flash-attn 3.0.0b1")
        te_attention.choose()
        assert te_backends.te_backend().endswith("cuDNN")
    assert os.environ["NVTE_FUSED_ATTN"] == "1"
    assert "NVTE_FLASH_ATTN" not in os.environ


@pytest.mark.skipif(
    importlib.util.find_spec("ring_flash_attn") is None,
    reason="ring-flash-attn is not installed",
)
@pytest.mark.slow
def test_ring_flash_attn(tmp_path: Path) -> None:
    for found in results(tmp_path / "out.json", 2, RING).values():
        for method in RING:
            assert_measured(found[method])


def fail_on_one(rank: int, out: Path) -> list[str]:
    """Whether what fails, or computes something else, on one rank is skipped on both."""

    def broken(row: Any) -> Any:
        if rank == 1:
            raise RuntimeError("no kernel\nfor this")
        return ours(row)

    said = []
    with Distributed(EngineConfig()):
        for action in (
            lambda: gpu_context_parallel.try_small(
                broken, True, resolve_kernel("auto", "cpu")
            ),
            lambda: 1 / rank,
            lambda: sys.exit("needs CUDA"),
        ):
            try:
                gpu_context_parallel.together(action)
                said.append("done")
            except UnableError as error:
                said.append(str(error))
    return said


@pytest.mark.slow
def test_ranks_agree_to_skip(tmp_path: Path) -> None:
    first, second = run_distributed(fail_on_one, 2, tmp_path)
    assert first == second
    assert first[0] == "RuntimeError: no kernel for this (rank 1)"
    assert first[1] == "ZeroDivisionError: division by zero"
    assert first[2] == "SystemExit: needs CUDA"


def wrong_answers(rank: int) -> str:
    """A method that sees the document before."""

    def blind(row: Any) -> Any:
        other = row.offsets[[0, 2, 3]]
        return ours(type(row)(other, row.kernel))

    with Distributed(EngineConfig()):
        kernel = resolve_kernel("auto", "cpu")
        with pytest.raises(UnableError) as caught:
            gpu_context_parallel.try_small(blind, True, kernel)
    return str(caught.value)


def test_another_mask_is_no_peer() -> None:
    for said in run_distributed(wrong_answers, 2):
        assert "from dense fp32" in said


def usable(rank: int, out: Path) -> tuple[bool, int, str]:
    """Whether the second form of a method is taken after the first; how often that was tried;
    what is said where there is none.
    """
    tried: list[int] = []

    def broken(row: Any) -> Any:
        tried.append(rank)
        raise UnableError("not this one")

    row_attention_peers.METHODS.update(
        {"two": (broken, ours), "none": (broken, broken)}
    )
    with Distributed(EngineConfig()):
        record = Record.open(out, {"cp": 1}, writes=False)
        kernel = resolve_kernel("auto", "cpu")
        program = gpu_context_parallel.Program(argparse.Namespace(), record, kernel)
        taken = [program.usable_form("two", several=False) is ours for _ in range(2)]
        count = len(tried)
        with pytest.raises(UnableError) as caught:
            program.usable_form("none", several=False)
    return all(taken), count, str(caught.value)


def test_forms_are_tried_in_turn(tmp_path: Path) -> None:
    assert run_distributed(usable, 1, tmp_path / "out.json") == [
        (True, 1, "not this one")
    ]
    names = [m.keywords["grouped"] for m in row_attention_peers.METHODS["torch, flash"]]
    assert names == [True, False]


def test_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.json"
    setting = {"cp": 2, "card": "a card", "torch": "2"}
    record = Record.open(path, setting, writes=True)
    figures = {
        "computed_by": "a kernel",
        "differs_from_ours": [0.0, 3e-4],
        "forward_tflops": 400.0,
        "backward_tflops": 450.0,
        "both_tflops": 430.0,
        "both_seconds": [0.012, 0.011],
    }
    record.begin("32768:web", 33, "ours")
    record.finish("32768:web", "ours", figures)
    record.begin("32768:web", 33, "peer")
    record.finish("32768:web", "peer", figures | {"both_tflops": 215.0})
    record.begin("32768:web", 33, "other")
    assert Record.blame(path, "killed after 9 s")
    assert not Record.blame(path, "killed after 9 s")
    again = Record.open(path, setting, writes=False)
    assert again.missing("32768:web", ["ours", "other", "new"]) == ["new"]
    # A run that was killed had begun one, which is not why the next one ends.
    again.writes = True
    again.begin("32768:web", 33, "new")
    Record.forget_begun(path)
    assert not Record.blame(path, "ended with status 1")
    assert Record.open(path, setting, writes=False).missing("32768:web", ["new"])
    Record.forget_begun(tmp_path / "none.json")
    for other, words in (
        ({"cp": 4}, "cp 2 there and 4 here"),
        ({"kernel": "flash3"}, "kernel not said there and flash3 here"),
        ({"card": "another", "torch": "3"}, "torch 2 there and 3 here"),
    ):
        with pytest.raises(ValueError, match=f"{words}.*name another"):
            Record.open(path, setting | other, writes=False)
    capsys.readouterr()
    print_table(json.loads(path.read_text()))
    said = capsys.readouterr().out
    assert (
        "| 32,768, web | 33 | peer | a kernel | 400 | 450 | 215 | 0.50 "
        "| 11.00 to 12.00 | 3e-04 |" in said
    )
    assert "- other (32,768, web): killed after 9 s" in said
