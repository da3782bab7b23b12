"""A result that is not finite is shown so and is a status; where nothing was compared no table
says that nothing differs.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.config.run import EngineConfig
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.nn.attention_kernels import resolve_kernel
from benchmarks import (
    gpu_attention,
    gpu_context_parallel,
    gpu_peers,
    row_attention_peers,
)
from benchmarks.figures import differences, differs_by, is_finite, largest
from benchmarks.loss_memory import check_same
from benchmarks.row_attention import Method, Row, UnableError, gather, ours
from benchmarks.row_results import Record, failures, print_table
from tests.benchmarks.test_gpu_programs import run
from tests.benchmarks.test_peers import step
from tests.distributed import run_distributed

NAN = math.nan
SMALL = ("--lengths", "64", "--rows", "one", "--heads", "4", "2", "--seconds", "0")


def test_the_largest_is_nan_where_one_is() -> None:
    assert largest([0.5, 2.0]) == 2.0
    for values in ([NAN, 1.0], [1.0, NAN], [0.0, NAN, 1.0]):
        assert math.isnan(largest(values))
        assert differs_by({"differs": values}, "differs") == "nan"
        assert not is_finite({"differs": values}, "differs")
    assert not is_finite({"differs": [0.0, math.inf]}, "differs")
    assert differs_by({"differs": None}, "differs") == "-"
    assert differs_by({"differs": None, "finite": False}, "differs") == "nan"
    one = [torch.ones(2), torch.zeros(2)]
    assert differences(one, None) is None
    assert differences(one, one) == [0.0, 0.0]
    assert differences([one[1]], [one[0]]) == [1.0]


def test_ways_with_a_nan_do_not_agree() -> None:
    same = {"loss": 1.0, "norm": 2.0}
    check_same({"a": [same], "b": [same]})
    with pytest.raises(SystemExit, match="disagree about the norm"):
        check_same({"a": [same], "b": [same | {"norm": NAN}]})


def kernels(
    tmp_path: Path, patch: pytest.MonkeyPatch, *names: str, odd: str = ""
) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The status and the results of contenders on a host; the gradients of `odd` are NaN."""
    whole = gpu_attention.contender

    @contextlib.contextmanager
    def contender(name: str, shape: gpu_attention.Shape) -> Iterator[Any]:
        with whole(name, shape) as (forward, words):
            yield (
                lambda q, k, v: forward(q, k, v * NAN if name == odd else v),
                words,
            )

    patch.setattr(gpu_attention, "DEVICE", "cpu")
    patch.setattr(gpu_attention, "DTYPE", torch.float32)
    patch.setattr(gpu_attention, "contender", contender)
    out = tmp_path / "out.jsonl"
    arguments = ("--kernels", *names, *SMALL, "--out", str(out))
    status = run(gpu_attention, arguments, patch)
    results = [json.loads(line) for line in out.read_text().splitlines()]
    return status, {result["contender"]: result for result in results}


def cells(said: str) -> dict[str, str]:
    """The last cell of a table's lines, by the third."""
    rows = [line.strip("| ").split(" | ") for line in said.splitlines() if "|" in line]
    return {row[2]: row[-1] for row in rows}


@pytest.mark.parametrize(
    ("odd", "other", "shown"),
    [
        ("sdpa math", "reference", "0e+00"),
        ("reference", "sdpa math", "-"),  # with the first one nothing is compared
    ],
)
def test_a_kernel_that_gives_nan_is_a_status(
    odd: str,
    other: str,
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, _ = kernels(tmp_path, monkeypatch, "reference", "sdpa math", odd=odd)
    said = capsys.readouterr()
    assert status == 1
    assert f"not finite: {odd} (64, one)\n" in said.err
    assert cells(said.out)[odd] == "nan"
    assert cells(said.out)[other] == shown


def test_no_kernel_stands_in_for_the_first(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    status, found = kernels(tmp_path, monkeypatch, "flash4", "sdpa math", "reference")
    said = capsys.readouterr()
    assert status == 1
    assert "not finite" not in said.err
    for name in ("sdpa math", "reference"):
        assert found[name]["first"] == "flash4"
        assert found[name]["differs"] is None
        assert cells(said.out)[name] == "-"


def test_a_loss_that_is_nan_is_shown_in_any_round(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = [step("ours", [1.0]), step("ours", [1.0], loss=NAN)]
    gpu_peers.print_tables(rounds)
    assert "| 50.0 | nan |" in capsys.readouterr().out
    monkeypatch.setattr(gpu_peers, "run_all", lambda *_: rounds)
    assert run(gpu_peers, ("--context", "128"), monkeypatch) == 1
    assert "not finite: ours\n" in capsys.readouterr().err


@contextlib.contextmanager
def with_nan(row: Row) -> Iterator[Method]:
    with gather(row) as method:
        yield Method(
            lambda q, k, v: method.forward(q, k, v * NAN),
            method.tokens,
            method.describe,
        )


def unable(row: Row) -> Any:
    raise UnableError("not here")


def of_methods(rank: int, out: Path, methods: list[str], no_ours: bool) -> None:
    made = {"ours": (unable if no_ours else ours,), "with nan": (with_nan,)}
    row_attention_peers.METHODS.update(made)
    gpu_context_parallel.try_small = lambda maker, *_: (
        maker(None) if maker is unable else None
    )
    options = gpu_context_parallel.argparse.Namespace(
        row=["64:one"], methods=methods, kernel="auto", repeats=1, seconds=0.0, out=out
    )
    with Distributed(EngineConfig()):
        setting = {"cp": 1, "card": "a host", "torch": "2"}
        record = Record.open(out, setting, writes=rank == 0)
        kernel = resolve_kernel("auto", "cpu")
        gpu_context_parallel.Program(options, record, kernel).run()


@pytest.mark.parametrize(
    ("methods", "no_ours", "shown"),
    [
        (["gather"], False, {"gather": "-"}),
        (["ours", "gather"], True, {"gather": "-"}),
        # What the others are compared with is measured first.
        (["with nan", "ours"], False, {"ours": "0e+00", "with nan": "nan"}),
    ],
)
def test_methods_of_a_row(
    methods: list[str],
    no_ours: bool,
    shown: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out.json"
    run_distributed(of_methods, 1, out, methods, no_ours)
    content = Record.read(out)
    print_table(content)
    found = cells(capsys.readouterr().out)
    assert {name: found[name] for name in shown} == shown
    assert failures(content, ["64:one"], methods) == (
        ["ours (64:one)"] * no_ours,
        ["with nan (64:one)"] * ("with nan" in methods),
    )
