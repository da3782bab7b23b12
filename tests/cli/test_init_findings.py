"""What `init` writes takes over what the project measured of a model's size, and looks at
the text that is named.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alia_ctx import workflow
from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig, ScheduleConfig
from tests.cli.beginning import filled, init, said, write_base
from tests.hf_models import edit_json
from tests.text_data import write_jsonl

pytestmark = pytest.mark.long


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_base(tmp_path / "mine")


def begun(base: Path, *arguments: str) -> tuple[RunConfig, str]:
    """What `init` wrote: as a run, and its comments in one line."""
    made = init(base, *arguments)
    assert made.exit_code == 0, said(made)
    file = base.parent / "mine.yaml"
    comments = " ".join(file.read_text().replace("#", " ").split())
    return load_run(file, filled(base.parent)), comments


def test_a_small_model_is_trained_as_the_small_one_that_was_measured(
    base: Path,
) -> None:
    run, comments = begun(base, "--context", "10k")
    ropes = [stage.rope for stage in run.stages.values()]
    assert [(rope.type, rope.factor) for rope in ropes] == [("yarn", 40.0)] * 2
    for stage in run.stages.values():
        assert stage.schedule == ScheduleConfig("linear", warmup=0.05)
    assert run.optimizer.weight_decay == 0.01
    assert "the last stage's from the first stage on" in comments
    assert "rather than llama3 (docs/smollm2.md)" in comments
    assert "ALIA-40b and Llama 3.1 were extended" not in comments


def test_a_large_model_is_trained_as_the_large_one_and_it_is_said_why(
    base: Path,
) -> None:
    sizes = {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    }
    edit_json(base / "config.json", **sizes)
    run, comments = begun(base, "--context", "10k", "--gpus", "64")
    ropes = [(stage.rope.type, stage.rope.factor) for stage in run.stages.values()]
    assert ropes == [("llama3", 8.0), ("llama3", 40.0)]
    assert all(s.schedule == ScheduleConfig() for s in run.stages.values())
    assert run.optimizer.weight_decay == 0.1
    assert "not tried with a model of this size" in comments


def test_a_scaled_small_base_keeps_its_kind(base: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    edit_json(base / "config.json", rope_scaling=scaling)
    run, _ = begun(base)
    [stage] = run.stages.values()
    assert stage.rope.type == "llama3"
    assert stage.schedule.type == "linear"


def test_the_text_that_is_named_is_counted(base: Path, tmp_path: Path) -> None:
    """About as many tokens as `tokenize` finds, and how often the stages read them."""
    text = tmp_path / "text"
    text.mkdir()
    for number in range(3):
        words = [
            f"the {n} rain in Spain, {n * n} times " * (n % 7 + 1) for n in range(400)
        ]
        write_jsonl(text / f"{number}.jsonl", words)
    (text / "long.txt").write_text("a line of its own\n" * 3000)
    arguments = ("--text", str(text), "--context", "2k", "--gpus", "0")
    made = init(base, *arguments)
    [there] = re.findall(r"note: the text has about ([\d,]+) tokens", said(made))
    file = tmp_path / "mine.yaml"
    comment = " ".join(file.read_text().replace("#", " ").split())
    assert f"The text has about {there} tokens" in comment
    [held] = [x for x in filled(tmp_path) if x.startswith("evaluation")]
    run = load_run(file, [held])
    workflow.tokenize(run)
    real = int(workflow.open_store(run, "text").lengths.sum())
    assert int(there.replace(",", "")) == pytest.approx(real, rel=0.05)
    [times] = re.findall(r"read about ([\d.e+]+) times", said(made))
    wanted = sum(stage.tokens or 0 for stage in run.stages.values())
    assert float(times) == pytest.approx(wanted / real, rel=0.1)
    assert wanted > 4 * real and "lower `tokens`" in said(made)

    checked = CliRunner().invoke(app, ["check", str(file), held])
    words = " ".join(checked.output.split())
    [found] = re.findall(
        r"note: 2k: by its end its text was read: text ([\d.e+]+)", words
    )
    assert float(found) == pytest.approx(wanted / real, rel=0.01)
    planned = CliRunner().invoke(app, ["plan", str(file), held])
    assert f"by its end its text was read: text {found} times" in planned.output


def test_text_that_suffices_is_no_note(base: Path, tmp_path: Path) -> None:
    run, _ = begun(base)
    overrides = [
        *filled(tmp_path),
        "stages.2k.tokens=8192",
        "stages.2k.update_tokens=4096",
    ]
    run = load_run(tmp_path / "mine.yaml", overrides)
    assert workflow.epoch_notes(run) == []  # not tokenised yet
    workflow.tokenize(run)
    assert workflow.epoch_notes(run) == []


def test_stages_that_go_on_with_the_data_are_counted_together(
    base: Path, tmp_path: Path
) -> None:
    begun(base, "--context", "4k")
    sizes = [
        f"stages.{n}.{key}"
        for n in ("2k", "4k")
        for key in ("tokens=81920", "update_tokens=8192")
    ]
    run = load_run(tmp_path / "mine.yaml", [*filled(tmp_path), *sizes])
    workflow.tokenize(run)
    lengths = workflow.open_store(run, "text").lengths
    there = int(lengths[lengths >= 2].sum())
    from alia_ctx.workflow.epochs import epochs_of

    assert epochs_of(run, "2k")["text"] == pytest.approx(81920 / there)
    assert epochs_of(run, "4k")["text"] == pytest.approx(2 * 81920 / there)
