"""`plan` as its user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from alia_ctx.checkpoint.directory import list_checkpoints, retain
from alia_ctx.cli.run_commands import app
from tests.paths import ROOT
from tests.small_run import write_run

ALIA = str(ROOT / "configs" / "alia-40b.yaml")


def plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def test_it_answers_without_a_layout(tmp_path: Path) -> None:
    shown = plan(write_run(tmp_path), "cluster.ranks_per_node=4", "tokenizer=/nowhere")
    assert shown.exit_code == 0, shown.output
    for part in (
        "long is planned in the first layout, the stage leaves its layout open",
        "`layout: auto` takes it",
        "long by number of GPUs",
        "node-hours",
        "host memory",
        "GiB a checkpoint",
        "cluster.attention_efficiency",
    ):
        assert part in shown.output
    assert "0.0 hours" not in shown.output


def test_a_layout_that_cannot_be_is_named_and_the_rest_is_said(tmp_path: Path) -> None:
    shown = plan(write_run(tmp_path), "--stage", "long", "stages.long.layout.cp=3")
    assert shown.exit_code == 0
    assert "stages.long.layout.cp=3" in shown.output
    assert "long by number of GPUs" in shown.output


def test_other_machines_and_numbers_of_gpus() -> None:
    shown = plan(ALIA, "--stage", "32k", "--search", "--on", "h200", "--gpus", "64")
    assert shown.exit_code == 0, shown.output
    assert "fits" in shown.output and "tp=8" in shown.output
    for arguments, words in (
        (("--on", "h300"), ["--on=h300", "h200", "a100-80"]),
        (("--gpus", "0"), ["--gpus=0"]),
    ):
        refused = plan(ALIA, *arguments)
        assert refused.exit_code == 2 or refused.exception
        said = refused.output + str(refused.exception)
        assert all(word in said for word in words)


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_of_the_first_update(tmp_path: Path, packed: bool) -> None:
    path, trace = write_run(tmp_path), tmp_path / "trace.json"
    settings = [path, "cluster.ranks_per_node=4", "stages.long.layout={pp: 2}"]
    if packed:
        done = CliRunner().invoke(app, ["pack", *map(str, settings), "--stage", "long"])
        assert done.exit_code == 0, done.output
        shown = plan(*settings, "--stage", "long")
        assert "masked as in the pack plan" in shown.output
    done = plan(*settings, "--stage", "long", "--trace", trace)
    assert done.exit_code == 0, done.output
    document = json.loads(trace.read_text())
    slices = [e for e in document["traceEvents"] if e["ph"] == "X"]
    rows = {e["args"]["row"] for e in slices} - {-1}
    assert rows == {0, 1, 2}  # 800 tokens are three rows of 256
    assert {e["pid"] for e in slices} == {0, 1}
    attention = sum(e["dur"] for e in slices if e["cat"] == "attention")
    everything = {e["cat"] for e in slices}
    assert attention > 0 and "gradients' reduction" in everything


def test_a_trace_and_what_else_is_asked(tmp_path: Path) -> None:
    """All that is asked is said, in words and as JSON."""
    trace = tmp_path / "trace.json"
    asked = [write_run(tmp_path), "--stage", "long", "--trace", trace]
    shown = plan(*asked, "--search", "cluster.ranks_per_node=2")
    assert shown.exit_code == 0 and trace.is_file()
    assert "fits" in shown.output and "ui.perfetto.dev" in shown.output
    trace.unlink()
    shown = plan(*asked, "--dry-run")
    assert "counted" in shown.output and "ui.perfetto.dev" in shown.output
    trace.unlink()
    said = json.loads(plan(*asked, "--dry-run", "--json").stdout)
    assert said["trace"] == str(trace) and trace.is_file()
    run = said["stages"]["long"]["dry_run"]
    assert run["counted"]["parameters"] == run["planned"]["parameters"]
    alone = json.loads(plan(*asked, "--json").stdout)
    assert set(alone) == {"trace", "update_seconds"}


def test_precision_is_in_the_time(tmp_path: Path) -> None:
    """fp32 has the peak without tensor cores; a machine whose own peak is less keeps it."""
    config = write_run(tmp_path)
    without_sums = "cluster.memory_gb_per_s=1e15"  # gradients are fp32 in either

    def compute(*settings: str) -> float:
        asked = ["--stage", "long", without_sums, *settings, "--json"]
        said = json.loads(plan(config, *asked).stdout)
        return float(said["stages"]["long"]["plan"]["update_seconds"]["compute"])

    bf16 = compute("engine.precision=bf16")
    assert compute() == pytest.approx(bf16 * 989 / 67)
    assert compute("cluster.peak_fp32_tflops=495") == pytest.approx(bf16 * 989 / 495)
    assert compute("cluster.peak_tflops=0.1") == pytest.approx(bf16 * 9890)
    shown = plan(config, "--stage", "long").output
    assert "fp32: 6.7e+13" in shown or "fp32: 67e12" in shown
    refused = plan(config, "cluster.peak_fp32_tflops=0")
    assert "cluster.peak_fp32_tflops" in str(refused.exception)


def test_what_is_assumed_is_what_is_planned() -> None:
    shown = plan(ALIA, "--stage", "32k", "--gpus", "1024", "--json")
    said = json.loads(shown.stdout)
    assert said["cluster"]["nodes"] == 256 and said["cluster"]["ranks_per_node"] == 4


def test_a_search_offers_what_the_engine_can_do() -> None:
    """Virtual pipelines and FP8 are not of this engine: no setting, and no choice."""
    said = json.loads(
        plan(ALIA, "--stage", "32k", "--gpus", "64", "--search", "--json").stdout
    )
    choices = said["stages"]["32k"]["layouts"]
    assert {name for c in choices for name in c["layout"]} == {"tp", "cp", "pp"}
    assert {c["precision"] for c in choices} == {"bf16"}
    assert {c["offload"] for c in choices} == {False, True}


def test_a_trace_is_of_one_stage(tmp_path: Path) -> None:
    refused = plan(write_run(tmp_path), "--trace", tmp_path / "trace.json")
    said = refused.output + str(refused.exception)
    assert "name one with --stage" in said
    assert not (tmp_path / "trace.json").exists()
    nowhere = tmp_path / "run.yaml" / "trace.json"
    refused = plan(tmp_path / "run.yaml", "--stage", "long", "--trace", nowhere)
    assert str(nowhere) in refused.output + str(refused.exception)


@pytest.mark.parametrize(
    ("every", "last", "kept", "updates"),
    [(50, 2, 2, 9), (3, 2, 2, 40), (3, 1, 5, 31), (4, 3, 4, 40), (1, 2, 7, 30)],
)
def test_as_many_checkpoints_are_counted_as_there_are(
    tmp_path: Path, every: int, last: int, kept: int, updates: int
) -> None:
    """Against the retention of the trainer itself, update by update."""
    root, most = tmp_path / "checkpoints", 0
    for update in range(1, updates + 1):
        if update % every == 0 or update == updates:
            (root / f"update-{update:08d}").mkdir(parents=True)
            retain(root, keep_last=last, keep_every=kept)
            most = max(most, len(list_checkpoints(root)))
    said = plan(
        write_run(tmp_path),
        *("--stage", "short", "--json", f"stages.short.tokens={512 * updates}"),
        *(f"checkpoint.every_updates={every}", f"checkpoint.keep_last={last}"),
        f"checkpoint.keep_every={kept}",
    )
    counted = json.loads(said.stdout)["stages"]["short"]["checkpoints"] - 1
    assert most <= counted <= most + last  # the last may be among those kept for good
