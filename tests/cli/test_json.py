"""`--json` of any command: one document on standard output, and nothing else."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from alia_ctx.cli.failing import Command
from alia_ctx.cli.output import print_json
from alia_ctx.cli.run_commands import app
from alia_ctx.errors import DataError
from alia_ctx.workflow.recomputing import RecomputedLoss
from tests.small_run import alia, write_run


def document(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)  # type: ignore[no-any-return]


def test_a_check_without_problems(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    said = document("check", config)
    assert said["ok"] and said["config"] == str(config)
    short = said["stages"]["short"]
    assert (short["updates"], short["rows"], short["tokens"]) == (12, 8, 64 * 8 * 12)
    assert short["layout"] == {"tp": 1, "cp": 1, "pp": 1}
    assert isinstance(said["notes"], list)


@pytest.mark.parametrize(
    ("override", "key"),
    [("stages.short.context=-1", "stages.short.context"), ("nothing=1", "nothing")],
)
def test_a_check_with_problems(override: str, key: str, tmp_path: Path) -> None:
    said = document("check", write_run(tmp_path), override, status=2)
    assert not said["ok"] and said["error"] == "ConfigError"
    assert key in [problem["key"] for problem in said["problems"]]
    assert all(p["rule"] and p["remedy"] for p in said["problems"])


def test_a_check_of_nothing(tmp_path: Path) -> None:
    said = document("check", tmp_path / "no.yaml", status=2)
    assert "no such file" in said["message"] and said["problems"] == []


def test_a_plan(tmp_path: Path) -> None:
    said = document("plan", write_run(tmp_path), "cluster.ranks_per_node=4")
    assert said["cluster"]["ranks_per_node"] == 4
    for name, updates in (("short", 12), ("long", 4)):
        stage = said["stages"][name]
        plan = stage["plan"]
        assert plan["updates"] == updates and plan["gpus"] == 4
        items = {k: v for k, v in plan["memory_gib"].items() if isinstance(v, float)}
        total = items.pop("total")
        assert 0 < max(items.values()) <= total
        seconds = dict(plan["update_seconds"])
        assert seconds.pop("total") == pytest.approx(sum(seconds.values()))
        assert [count["gpus"] for count in stage["counts"]] == [1, 2, 4]
        assert stage["layouts"][0]["usable"]


def test_a_pack(tmp_path: Path) -> None:
    said = document("pack", write_run(tmp_path), "--stage", "short", "--inspect")
    assert said["rows"] == 96 and said["row_length"] == 64
    # The held-out documents count on as those of training do, from other numbers.
    assert said["held_out"]["text"]["same"] == 0
    assert said["held_out"]["text"]["nearly"] > 0
    assert said["repeats"]["text"]["documents"] == 120
    again = document("pack", tmp_path / "run.yaml", "--stage", "short")
    assert again["fingerprint"] == said["fingerprint"]


COMMANDS = {
    "check": [],
    "plan": [],
    "pack": ["--stage", "short"],
    "evaluate": [],
    "status": [],
    "rope": [],
    "ablate": ["--stage", "short"],
    "doctor": [],
}


def test_every_command_with_json_is_listed() -> None:
    named = {
        command.callback.__name__.replace("_", "-")
        for command in app.registered_commands
        if command.callback and "as_json" in signature(command.callback).parameters
    }
    assert named == {*COMMANDS, "evaluate-calls"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("fault", ["no file", "value"])
def test_an_error_is_a_document_too(command: str, fault: str, tmp_path: Path) -> None:
    config: Path | str = tmp_path / "no.yaml"
    more = []
    if fault == "value":
        config, more = write_run(tmp_path), ["stages.short.context=-1"]
    said = document(command, config, *COMMANDS[command], *more, status=2)
    assert said["ok"] is False and said["message"]
    if fault == "value":
        assert "stages.short.context" in [p["key"] for p in said["problems"]]


def test_calls_of_nothing() -> None:
    said = document("evaluate-calls", "--data", "nowhere", status=2)
    assert said["ok"] is False


def test_a_refusal_of_the_file_system_is_a_document(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plans").write_text("a file")
    said = document("pack", config, "--stage", "short", status=2)
    assert said["ok"] is False and "plans" in said["message"]


def test_a_trace(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    said = document("plan", write_run(tmp_path), "--stage", "short", "--trace", trace)
    assert said["trace"] == str(trace) and said["update_seconds"] > 0


def test_a_status(tmp_path: Path) -> None:
    said = document("status", write_run(tmp_path))
    assert [stage["stage"] for stage in said["stages"]] == ["short", "long"]


def test_on_the_command_line_nothing_else_is_printed(tmp_path: Path) -> None:
    """A base that is trained and evaluated: what libraries print goes elsewhere."""
    config = str(write_run(tmp_path))
    few = ["stages.short.tokens=1024", "metrics.sinks=[]"]
    document("pack", config, "--stage", "short", *few)
    assert alia("train", config, "--stage", "short", *few).returncode == 0
    measured = alia("evaluate", config, "--stage", "short", *few, "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["verdicts"] is not None


def test_a_recomputed_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = RecomputedLoss(3, 2.5, None)
    monkeypatch.setattr("alia_ctx.workflow.recompute", lambda *_: made)
    said = document(
        "evaluate", write_run(tmp_path), "--stage", "short", "--update", "3"
    )
    assert said == {"update": 3, "loss": 2.5, "logged": None}


@pytest.mark.parametrize("plot", ["x.pdf", "x", "taken/x.svg"])
def test_a_plot_that_cannot_be_drawn_is_the_only_document(
    plot: str, tmp_path: Path
) -> None:
    (tmp_path / "taken").write_text("a file")
    config = write_run(tmp_path)
    said = document("rope", config, "--plot", tmp_path / plot, status=2)
    assert said["ok"] is False and "x" in said["message"]


def test_what_fails_after_a_document_takes_its_place() -> None:
    """Whatever a command has printed: two documents in a row are none."""
    program = typer.Typer()

    @program.command(cls=Command)
    def fail(as_json: Annotated[bool, typer.Option("--json")] = False) -> None:
        print_json({"done": True})
        raise DataError("the plot")

    done = CliRunner().invoke(program, ["--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["message"] == "the plot"
