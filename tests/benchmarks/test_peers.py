"""The programs that measure ours beside others: what they print of a file, and that one who
cannot be measured costs the others nothing.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from benchmarks import gpu_attention, gpu_peers
from benchmarks.kernel_time import NAMES
from tests.module_result import result_of
from tests.paths import ROOT


def step(peer: str, seconds: list[float], **others: Any) -> dict[str, Any]:
    result = {
        "peer": peer,
        "kernel": "a kernel",
        "card": "a card",
        "ranks": 2,
        "torch": "2",
        "context": 32_768,
        "parameters": 10,
        "seconds": seconds,
        "loss": 9.0,
        "gib": 50.0,
        "matrix_tflops": 700.0,
        "flops": 350e12,
        "classes": {},
        "kernels": [],
    }
    return result | others


def test_table_of_steps(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_peers.print_tables(
        [
            step("ours", [1.0, 1.0], classes=dict.fromkeys(NAMES, 2.0)),
            step("liger", [1.25]),
            {"peer": "megatron_te", "skipped": "not installed"},
            step("ours", [1.1, 1.0]),
        ]
    )
    said = capsys.readouterr().out
    assert "2 x a card, torch 2, 32,768 tokens a row." in said
    ours = "| ours | a kernel | 1.000 | 10.0% | 32,768 | 350 | 50.0% | 1.000 | 50.0 | 9.000 |"
    assert ours in said
    assert "| liger | a kernel | 1.250 | 0.0% | 26,214 | 280 | 40.0% | 1.250 |" in said
    assert "| ours | " + " | ".join(["2.0"] * len(NAMES)) + " |" in said
    assert "- megatron_te: not installed" in said
    # Of a round without a profile the other's is shown.
    known = {"layers": 2, "row": "web"}
    profiled = step("ours", [1.0], classes=dict.fromkeys(NAMES, 3.0), **known)
    gpu_peers.print_tables([step("ours", [1.0], **known), profiled])
    said = capsys.readouterr().out
    assert "torch 2, layers 2, 32,768 tokens a row, packed documents." in said
    assert "| ours | " + " | ".join(["3.0"] * len(NAMES)) + " |" in said


def test_models_of_two_sizes_are_no_comparison() -> None:
    with pytest.raises(ValueError, match="different sizes"):
        gpu_peers.print_tables(
            [step("ours", [1.0]), step("other", [1.0], parameters=9)]
        )


def kernel(name: str, row: str, **others: Any) -> dict[str, Any]:
    known = {"card": "a card", "torch": "2", "heads": [64, 8], "length": 32_768}
    return known | {"row": row, "documents": 1, "contender": name} | others


def test_table_of_kernels(capsys: pytest.CaptureFixture[str]) -> None:
    figures = {
        "computed_by": "it",
        "forward_tflops": 600.0,
        "both_seconds": [0.1],
        "differs": [0.0, 2e-4],
    }
    gpu_attention.print_table(
        [
            kernel("flash4", "one", both_tflops=600.0, **figures),
            kernel("sdpa", "one", both_tflops=300.0, **figures),
            kernel("flash4", "web", both_tflops=400.0, **figures),
            kernel("sdpa", "web", skipped="no documents"),
        ]
    )
    said = capsys.readouterr().out
    assert "64 query and 8 key/value heads of 128" in said
    assert "| 32,768, one | 1 | sdpa | it | 600 | 300 | 0.50 | 1.00 | 2e-04 |" in said
    assert "| 32,768, web | 1 | flash4 | it | 600 | 400 | 1.00 | 1.50 | 2e-04 |" in said
    assert "- sdpa (32,768, web): no documents" in said


@pytest.mark.slow
def test_two_ranks_each_in_turn(tmp_path: Path) -> None:
    """Ours data-parallel, transformers sharded, a peer that is not there, torchtitan where it
    is and a line with the reason where not, ours again.
    """
    out = tmp_path / "peers.jsonl"
    command = [
        *(sys.executable, "benchmarks/gpu_peers.py", "--ranks", "2", "--repeats", "1"),
        *("--layers", "1", "--context", "128", "--vocabulary", "256", "--width", "64"),
        *("--peers", "ours", "megatron_te", "transformers", "torchtitan_sdpa"),
        *("--out", str(out)),
    ]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 1, done.stderr[-3000:]
    assert "did not run: megatron_te" in done.stderr
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert [r["peer"] for r in results] == [
        "ours",
        "megatron_te",
        "transformers",
        "torchtitan_sdpa",
        "ours",
    ]
    if importlib.util.find_spec("transformer_engine") is None:
        assert results[1]["skipped"].endswith("transformer_engine is not installed")
    first, last, other = results[0], results[4], results[2]
    assert first["releases"] == last["releases"]
    assert other["releases"] == {"transformers": transformers.__version__}
    assert first["ranks"] == other["ranks"] == 2
    assert first["loss"] == last["loss"]  # no step between, and the same row
    assert first["parameters"] == other["parameters"]
    assert other["loss"] == pytest.approx(first["loss"], rel=0.05)  # ln 256
    assert "| transformers |" in done.stdout
    titan = results[3]
    if importlib.util.find_spec("torchtitan") is None:
        assert titan["skipped"].endswith("torchtitan is not installed")
        assert "- torchtitan_sdpa: " in done.stdout
    else:
        assert titan["ranks"] == 2
        assert titan["parameters"] == first["parameters"]
        assert titan["loss"] == pytest.approx(first["loss"], rel=0.05)


@pytest.mark.slow
def test_transformer_engine_s_peers_are_of_one_model() -> None:
    """Megatron-Core's own model over a stand-in beside ours: one size and, drawn alike, about
    one loss; no step lies between two, and each has its own products.
    """
    recipes = {
        "ours_te": "off",
        "megatron_te": "off",
        "megatron_te_flash": "off",
        "megatron_te_fp8_current": "Float8CurrentScaling",
        "megatron_te_fp8_blockwise": "Float8BlockScaling",
    }
    found = result_of("tests.benchmarks.te_peers", *recipes, timeout=300)
    for name, recipe in recipes.items():
        assert found[name]["recipes"] == [recipe]
        assert found[name]["parameters"] == found["ours_te"]["parameters"]
        first, second = found[name]["losses"]
        assert first == second
        # They rotate by other frequencies, and in 8 bits; ln 128 is 4.85.
        assert first == pytest.approx(found["ours_te"]["losses"][0], rel=0.01)
    kernels = {name: found[name]["kernel"] for name in recipes}
    assert kernels["megatron_te"] == "transformer_engine, cuDNN, FP8 off"
    assert kernels["megatron_te_flash"].startswith(
        "transformer_engine, flash-attn 3.0.0b1,"
    )


@pytest.mark.slow
def test_kernels_on_a_host(tmp_path: Path) -> None:
    out = tmp_path / "kernels.jsonl"
    arguments = [
        *(
            "benchmarks/gpu_attention.py",
            "--kernels",
            "reference",
            "sdpa math",
            "flash4",
        ),
        *("--lengths", "256", "--rows", "one", "mixed", "--heads", "4", "2"),
        *("--seconds", "0", "--out", str(out)),
    ]
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-3000:]
    results = [json.loads(line) for line in out.read_text().splitlines()]
    assert "did not run: flash4 (256, one), sdpa math (256, mixed), " in done.stderr
    found = {(r["row"], r["contender"]): r for r in results}
    assert max(found["one", "sdpa math"]["differs"]) < 1e-5
    assert "documents" in found["mixed", "sdpa math"]["skipped"]
    assert "GPU" in found["one", "flash4"]["skipped"]
    assert found["mixed", "reference"]["both_tflops"] > 0
