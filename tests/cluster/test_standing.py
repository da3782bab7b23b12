"""`status` of what is there."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from alia_ctx import workflow
from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from alia_ctx.report.training import ledger
from alia_ctx.report.verdicts import verdicts
from alia_ctx.train.faults import RankName, fault, read_faults, record_fault
from alia_ctx.workflow.queued import own_user
from alia_ctx.workflow.run_facts import run_facts
from alia_ctx.workflow.standing import run_status
from alia_ctx.workflow.watching import find_watched
from tests.cluster.launched import SLURM, cluster, commands
from tests.small_run import write_run
from tests.train.runs import start


def test_faults_are_counted_and_what_is_no_line_is_passed_over(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    folder = tmp_path / "out/stages/short"
    who = RankName(3, "node7", "GPU 1, H100")
    record_fault(folder, 0, fault("slow", who, 5, f"{who} takes 3.0 times"))
    record_fault(folder, 3, fault("hung", who, 9, f"{who}: no progress"))
    with open(folder / "faults/rank-3.jsonl", "a") as stream:
        stream.write('{"half": \n[1]\n')
    assert [line["kind"] for line in read_faults(folder)] == ["slow", "hung"]
    [short, _] = run_status(path).stages
    assert short.faults == {"slow rank": 1, "hung rank": 1}
    assert "rank 3 on node7 (GPU 1, H100) takes 3.0 times" in short.words[0]


def test_a_rank_that_is_lost_is_told_before_slow_ones(tmp_path: Path) -> None:
    path, folder = write_run(tmp_path), tmp_path / "out/stages/short"
    for update, kind in enumerate(("slow", "lost", "hung", *["slow"] * 9)):
        who = RankName(update, "node7", "cpu")
        line = fault(kind, who, update, f"{kind} {update}")
        record_fault(folder, 0, {**line, "time": f"2026-01-01T00:00:{update:02d}"})
    words = [text.split(": ")[1] for text in run_status(path).stages[0].words]
    assert words == ["lost 1", "hung 2", "slow 9", "slow 10", "slow 11"]


def test_a_cluster_file_says_where_a_run_is(tmp_path: Path) -> None:
    """As for `launch`, whose jobs were of the configuration with that file over it."""
    path = write_run(tmp_path)
    over = tmp_path / "over.yaml"
    over.write_text(f"output: {tmp_path}/scratch\n")
    assert run_status(path, cluster=over).output == f"{tmp_path}/scratch"
    done = CliRunner().invoke(app, ["status", str(path), "--cluster", str(over)])
    assert done.exit_code == 0 and "scratch" in done.output


def test_a_directory_that_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was launched from it"):
        run_status(tmp_path)
    path = write_run(tmp_path)
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    shutil.copytree(tmp_path / "out", tmp_path / "elsewhere")
    status = run_status(tmp_path / "elsewhere")
    assert [stage.state for stage in status.stages] == ["not begun", "not begun"]
    assert status.output == str(tmp_path / "elsewhere")


def test_jobs_that_left_the_queue_and_their_work_undone_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    commands(
        tmp_path,
        sbatch=f"echo x >>{tmp_path}/n; wc -l <{tmp_path}/n",
        squeue="true",
    )
    path, over = write_run(tmp_path), cluster(tmp_path, SLURM)
    numbers = workflow.launch(path, cluster=over, submit=True).numbers
    assert [*numbers.values()] == ["1", "2", "3", "4"]
    log = tmp_path / "out/launch/logs/00-data-1.out"
    log.touch()
    status = run_status(path)
    states = [stage.state for stage in status.stages]
    assert states == ["not begun, job 2 is gone", "not begun, job 3 is gone"]
    [problem] = status.stages[0].problems
    assert problem.startswith(
        "job 2 has left the queue and stage short is not finished"
    )
    assert "one that it waited for has failed" in problem
    data, evaluation = status.problems
    assert data.startswith(
        "job 1 has left the queue and there is no plan of stage short"
    )
    assert f"see {log}" in data and "job 4 has left" in evaluation
    # What was submitted again is there, and what is finished is well.
    waits = f"'|PENDING|None||N/A|0:00|1:00|{own_user()}|small-short|'"
    commands(tmp_path, squeue=f'for n in 5 6 7 8; do echo "$n"{waits}; done')
    assert start(path) == ""
    workflow.pack(load_run(path), "long")
    workflow.launch(path, cluster=over, submit=True)
    status = run_status(path)
    assert [stage.state for stage in status.stages] == [
        "finished",
        "not begun, job 5 is gone",  # the queue has another job of that number
    ]
    assert len(status.problems) == 1 and "no report" in status.problems[0]
    shutil.copytree(tmp_path / "out", tmp_path / "copy")
    status = run_status(tmp_path / "copy")
    assert "is a copy" in status.problems[0] and "gone" not in status.stages[1].state


def test_stages_that_are_newer_than_the_last_checkpoint_are_shown(
    tmp_path: Path,
) -> None:
    """Launched since, or begun without a configuration that is known."""
    path, out = write_run(tmp_path), tmp_path / "out"
    assert start(path) == ""  # `short` is done, of a run of two
    document = yaml.safe_load(path.read_text())
    document["stages"]["longer"] = {
        **document["stages"]["long"],
        "init_from": "long",
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.launch(path, cluster=cluster(tmp_path, SLURM))
    begun = out / "stages/by hand"
    begun.mkdir()
    line = {"update": 3, "tokens": 30, "loss": 2.5, "seconds": 1.0}
    (begun / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    for copied in (out, tmp_path / "copy"):
        if copied != out:  # as a transfer that does not keep times
            shutil.copytree(out, copied, copy_function=shutil.copyfile)
            os.utime(copied / "launch" / next(out.glob("launch/run-*")).name, (0, 0))
        status = run_status(copied)
        shown = {stage.stage: stage.state for stage in status.stages}
        assert list(shown) == ["short", "long", "longer", "by hand"]
        assert shown["short"] == "finished" and shown["longer"] == "not begun"
        assert shown["by hand"] == "begun"
        [by_hand] = [s for s in status.stages if s.stage == "by hand"]
        assert (by_hand.update, by_hand.updates, by_hand.loss) == (3, None, 2.5)


def test_a_stage_beyond_what_the_configuration_asks_is_not_finished(
    tmp_path: Path,
) -> None:
    """`tokens` were raised by an override, which the file does not have; the log of a copy
    says how old it is, not the copy.
    """
    path = write_run(tmp_path)
    assert start(path) == ""
    log = tmp_path / "out/stages/short/metrics.jsonl"
    last = json.loads(log.read_text().splitlines()[-1])
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.updates) == ("finished", 12, 12)
    old = {**last, "update": 13, "time": "2020-01-01T00:00:00+00:00"}
    with open(log, "a") as stream:
        stream.write(json.dumps(old) + "\n")
    for target in (path, tmp_path / "out"):
        [short, _] = run_status(target).stages
        assert (short.state, short.update, short.updates) == ("begun", 13, None)
        assert short.seconds_left is None and short.tokens_planned is None
        assert short.last_line_seconds is not None and short.last_line_seconds > 1e8
    fewer = ["stages.short.tokens=3072"]
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    [short, _] = run_status(path, fewer).stages
    assert (short.state, short.update, short.updates) == ("finished", 12, 12)
    assert find_watched(path, fewer).now().updates == 12


def saved_last(folder: Path, update: int) -> None:
    """Have `update` be the newest checkpoint of `short`."""
    for path in (folder / "out/stages/short/checkpoints").glob("update-*"):
        if int(path.name.rpartition("-")[2]) > update:
            shutil.rmtree(path)


def facts_of(target: Path) -> tuple[str, str, bool]:
    """The ledger's words and the verdict on `short`, and whether it is finished."""
    facts = run_facts(load_run(target), Path(load_run(target).output), "CONFIG")
    short = facts.stages[0]
    [trained] = [v for v in verdicts(facts) if v.claim.startswith("short is trained")]
    return short_row(ledger(facts)), trained.detail, short.finished


def short_row(page: str) -> str:
    cells = re.findall(r"<td[^>]*>(?:<[^>]+>)*([^<]*)", page)
    return next(cell for cell in cells if " of " in cell)


def test_updates_of_the_log_are_not_taken_for_saved_ones(tmp_path: Path) -> None:
    """Killed in its last save: the log is at the end, the newest checkpoint is not."""
    path = write_run(tmp_path)
    assert start(path) == ""
    saved_last(tmp_path, 9)
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.saved) == ("begun", 12, 9)
    each = find_watched(path).now().seconds_left()
    assert each == 0 and short.seconds_left and short.seconds_left > 0
    assert any("updates 10 to 12 are not saved" in text for text in short.problems)
    watched = find_watched(path).now()
    assert not watched.finished and watched.unsaved == "updates 10 to 12 are not saved"
    shown = CliRunner().invoke(app, ["watch", str(path), "--stage", "short", "--once"])
    assert "are done" not in shown.output and "10 to 12 are not saved" in shown.output
    row, said, finished = facts_of(path)
    assert row == "9 of 12 (12 in the log)"
    assert said == "9 of 12 updates (12 in the log), 0 skipped" and not finished
    assert start(path) == ""
    assert run_status(path).stages[0].state == "finished"
    assert facts_of(path) == ("12 of 12", "12 of 12 updates, 0 skipped", True)
    assert find_watched(path).now().finished


def saved_and_asked(folder: Path, saved: int, asked: int) -> Path:
    """A run whose `short` has done 12 updates, the first `saved` in its newest checkpoint,
    and is asked for `asked`.
    """
    path = write_run(folder)
    assert start(path) == ""
    saved_last(folder, saved)
    path.write_text(path.read_text().replace("tokens: 6144", f"tokens: {512 * asked}"))
    return path


def test_a_stage_that_is_saved_beyond_what_is_asked_for_is_under_way(
    tmp_path: Path,
) -> None:
    """`train` refuses to end it there: an override has raised its tokens."""
    path = saved_and_asked(tmp_path, 9, 6)
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.updates) == ("begun", 12, 12)


def test_a_stage_that_is_asked_for_fewer_updates_is_at_its_end(tmp_path: Path) -> None:
    """The lines beyond are of updates that no checkpoint has, and none will."""
    end = 9
    path = saved_and_asked(tmp_path, end, end)
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.updates) == ("finished", end, end)
    assert (short.tokens, short.tokens_planned) == (512 * end, 512 * end)
    assert short.seconds_left == 0
    assert facts_of(path) == (
        f"{end} of {end}",
        f"{end} of {end} updates, 0 skipped",
        True,
    )
    watched = find_watched(path).now()
    assert (watched.updates, watched.done, watched.finished) == (end, end, True)


def test_fewer_updates_that_are_still_to_be_done(tmp_path: Path) -> None:
    path = saved_and_asked(tmp_path, 9, 10)
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.updates) == ("begun", 10, 10)
    assert facts_of(path)[0] == "9 of 10 (10 in the log)"


def test_tokens_that_an_override_raised_count_while_it_is_at_work(
    tmp_path: Path,
) -> None:
    path = saved_and_asked(tmp_path, 9, 9)
    lock = tmp_path / "out/stages/.short.lock"
    lock.touch()
    [short, _] = run_status(path).stages
    assert (short.state, short.update, short.updates) == ("begun", 12, 12)
    log = tmp_path / "out/stages/short/metrics.jsonl"
    log.write_text(re.sub(r'"time": "\d+', '"time": "2020', log.read_text()))
    assert run_status(path).stages[0].state == "finished", "it is there no more"
    lock.unlink()


def test_the_time_left_has_saves_and_evaluations(tmp_path: Path) -> None:
    path, folder = write_run(tmp_path), tmp_path / "out/stages/short"
    folder.mkdir(parents=True)
    beside = {"save_seconds": 10.0, "evaluate_seconds": 20.0}
    lines = [{"update": n, "seconds": 10.0, **beside} for n in range(1, 11)]
    text = "".join(json.dumps({"stage": "short", **line}) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    [short, _] = run_status(path).stages
    assert short.seconds_left == 2 * (10 + 10 + 20)
    assert find_watched(path).now().seconds_left() == 2 * (10 + 10 + 20)
