"""What was packed or begun with other settings never reaches a queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from alia_ctx import workflow
from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens.store import write_store
from alia_ctx.errors import AliaError
from alia_ctx.workflow import plan_work
from tests.cluster.launched import SLURM, cluster
from tests.small_run import VOCABULARY, write_run
from tests.train.runs import start


def launched(path: Path, *overrides: str, stages: Any = ()) -> dict[str, list[str]]:
    """The commands of the data job, and the other jobs, by name."""
    made = workflow.launch(
        path, overrides, cluster=cluster(path.parent, SLURM), stages=stages
    )
    return {job.name: [" ".join(c[::2]) for c in job.commands] for job, _ in made.files}


def check(path: Path, *overrides: str, stages: Any = ()) -> list[str]:
    run = load_run(path, overrides)
    workflow.check_all(run, path, stages)
    return workflow.plan_notes(run, stages)


def pack(path: Path, *overrides: str) -> None:
    run = load_run(path, overrides)
    for name in run.stages:
        workflow.pack(run, name)


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    path = write_run(tmp_path)
    pack(path)
    return path


LONGER = "stages.long.tokens=6144"  # twice as many


def test_a_plan_that_is_the_stages_needs_no_job(packed: Path) -> None:
    assert check(packed) == []
    assert list(launched(packed)) == ["01-short", "02-long", "03-evaluate"]


def test_a_plan_that_gets_more_rows_gets_the_job_of_the_data(packed: Path) -> None:
    [note] = check(packed, LONGER)
    assert note.startswith("stage long: its plan ends before the stage does")
    jobs = launched(packed, LONGER)
    assert next(iter(jobs)) == "00-data"
    path = next((packed.parent / "out/launch").glob("run-*.yaml"))
    assert jobs["00-data"] == ["tokenize", "pack --stage"]
    run = load_run(path)  # what the job does
    workflow.tokenize(run)
    workflow.pack(run, "long")
    assert check(packed, LONGER) == []
    assert "00-data" not in launched(packed, LONGER)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stages.long.tokens=2304", "rows: 12 in the plan, 9 now"),
        ("stages.long.update_tokens=1024", "rows_per_update: 3 in the plan, 4 now"),
        ("seed=7", "seed: 1234 in the plan, 7 now"),
        ("stages.long.pack.policy=concat", "spec.policy: best_fit in the plan"),
        ("stages.long.pack.drop_contaminated=true", "spec.drop_contaminated: False"),
        ("stages.long.pack.data=restart", "continues the data of short"),
        # The plan that it continues is about to become another one.
        ("stages.short.tokens=12288", "continues the data of short"),
    ],
)
def test_what_pack_refuses_is_refused_at_once_in_its_words(
    override: str, words: str, packed: Path
) -> None:
    for ask in (check, launched):
        with pytest.raises(AliaError, match=words) as error:
            ask(packed, override, stages=["short", "long"])
        assert "alia-ctx pack CONFIG --stage long --overwrite" in str(error.value)
    assert not (packed.parent / "out/launch").exists()
    run = load_run(packed, [override])
    with pytest.raises(AliaError, match=words):
        workflow.pack(run, "short")
        workflow.pack(run, "long")


def test_the_way_out_of_a_plan_that_was_continued_is_one(packed: Path) -> None:
    longer = "stages.short.tokens=12288"
    with pytest.raises(
        AliaError, match="before that `alia-ctx pack CONFIG --stage short`"
    ):
        check(packed, longer)
    run = load_run(packed, [longer])
    workflow.pack(run, "short")
    with pytest.raises(AliaError, match="continues the data of short") as error:
        check(packed, longer)
    assert "before that" not in str(error.value)
    workflow.pack(run, "long", overwrite=True)
    assert check(packed, longer) == []


def test_text_that_has_changed_since_is_refused(packed: Path) -> None:
    ids = np.arange(4, 190)
    for file in packed.parent.glob("text.*"):
        file.unlink()
    write_store(packed.parent / "text", [ids] * 80, VOCABULARY)
    with pytest.raises(AliaError, match=r"store text: content \w+ in the plan"):
        check(packed)


def test_what_is_not_tokenised_is_not_compared_and_all_else_is(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_work, "has_store", lambda run, source: False)
    assert check(packed) == []
    assert next(iter(launched(packed))) == "00-data"
    with pytest.raises(AliaError, match="seed: 1234 in the plan, 7 now"):
        check(packed, "seed=7")


def test_a_begun_stage_keeps_its_plan_and_its_settings(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert start(path) == ""
    workflow.pack(load_run(path), "long")
    assert check(path) == []
    # It was finished, so that `short` has no job; the other gets what it needs.
    assert list(launched(path)) == ["02-long", "03-evaluate"]
    with pytest.raises(AliaError, match=r"finished .* with other settings"):
        launched(path, "stages.short.learning_rate=0.1")
    longer = "stages.short.tokens=12288"
    with pytest.raises(AliaError, match="continues the data of short"):
        check(path, longer)
    assert check(path, longer, stages=["short"])


def test_only_text_of_the_asked_stages_is_tokenised(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    document = yaml.safe_load(path.read_text())
    text = document["data"]["sources"]["text"]
    document["data"]["sources"] = {"text": text, "books": text, "far": text}
    for name, sources in (("short", ["text"]), ("long", ["books", "far"])):
        document["stages"][name]["pack"]["sources"] = sources
    path.write_text(yaml.safe_dump(document, sort_keys=False))

    def tokenised(*stages: str) -> list[str]:
        made = workflow.launch(path, stages=stages, cluster=cluster(tmp_path, SLURM))
        words = made.files[0][0].commands[0]
        return [*words[3::2]]

    assert tokenised("short") == ["text", "held_out"]
    # It goes on behind the data of the one before, whose plan is made first.
    assert tokenised("long") == []
    document["stages"]["long"]["pack"]["data"] = "restart"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert tokenised("long") == ["books", "far", "held_out"]
    assert tokenised() == []


def test_the_command_says_which_plans_get_more_rows(packed: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(packed), LONGER])
    assert done.exit_code == 0 and "its plan ends before the stage does" in done.output
