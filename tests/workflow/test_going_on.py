"""A stage that goes on: at the row after those that it has trained, on the plan that it was
begun on or one that extends it; or it is refused, with nothing lost.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alia_ctx import checkpoint, workflow
from alia_ctx.data.tokens.store import write_store
from alia_ctx.workflow.chain import run_directory
from tests.distributed import run_distributed
from tests.small_run import metrics, state_checksums, write_run
from tests.workflow.scenarios import Run, message

OTHER_UPDATES = ("256", "1024", "2048")  # 4, 16 and 32 rows instead of 8
OTHER_STAGES = {  # none of them is another `update_tokens` alone
    "stages.short.pack.policy=best_fit": "pack",
    "seed=7": "seed",
    "stages.short.learning_rate=0.1": "learning_rate",
    "stages.short.context=32": "context",
}
EXTENDED = "stages.short.tokens=4096"  # eight updates instead of four


def pack(run: Run, *overrides: str, overwrite: bool = False) -> str:
    config = run.config(*overrides)
    return message(lambda: workflow.pack(config, "short", overwrite=overwrite))


def rows(run: Run) -> list[list[int]]:
    return [line["rows"] for line in metrics(run.folder)]


def last(run: Run) -> Path:
    path = checkpoint.latest(run_directory(run.config()).checkpoints("short"))
    assert path is not None
    return path


def updates(count: int) -> str:
    return f"stages.short.tokens={512 * count}"


def steps(run: Run, before: Any) -> dict[str, Any]:
    """A stage of four updates, stopped after one: shortened, grown twice, its plan lost,
    and grown further than what is wanted in the end.
    """
    seen: dict[str, Any] = {
        "shorter": [pack(run, updates(2), overwrite=True), run.files() == before]
    }
    seen["shorter"].append(run.train("short"))
    seen["grown"] = []
    for count in (6, 8):
        seen["grown"] += [pack(run, updates(count)), run.train("short", updates(count))]
    plan = run_directory(run.config()).plan("short")
    there = (plan / "plan.json").read_bytes()
    shutil.rmtree(plan)
    packed = pack(run, updates(8))
    same = (plan / "plan.json").read_bytes() == there
    seen["lost"] = [packed, same, run.train("short", updates(8))]
    pack(run, updates(12))
    seen["change of mind"] = [
        pack(run, updates(9)),
        pack(run, updates(9), overwrite=True),
        run.train("short", updates(9)),
        rows(run),
    ]
    return seen


def made_in_other_steps(run: Run) -> list[Any]:
    """As a release left it that did not look at the stage before it replaced a plan."""
    directory = run_directory(run.config())
    plan, checkpoints = directory.plan("short"), directory.checkpoints("short")
    there = (plan / "plan.json").read_bytes()
    aside = checkpoints.rename(checkpoints.with_name("aside"))
    pack(run, updates(2), overwrite=True)
    pack(run, updates(4))
    aside.rename(checkpoints)
    return [
        run.train("short"),
        pack(run),
        pack(run, overwrite=True),
        run.train("short"),
        (plan / "plan.json").read_bytes() == there,
    ]


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    path = Path(folder, "run.yaml")
    through = Run(path, Path(folder, "through"))
    pack(through)
    through.train("short")
    seen: dict[str, Any] = {"through": rows(through)}

    stopped = Run(path, Path(folder, "stopped"))
    pack(stopped)
    seen["stopped"] = stopped.train("short", exit_before=0.0)
    before = stopped.files()
    for tokens in OTHER_UPDATES:
        other = f"stages.short.update_tokens={tokens}"
        seen[tokens] = [
            stopped.train("short", other),
            stopped.run(other),
            stopped.files() == before,
        ]
        # The way round through another plan is refused too: the stage could not go on.
        anew = Run(path, Path(folder, f"anew-{tokens}"), like=stopped)
        seen[tokens] += [
            pack(anew, other, overwrite=True),
            anew.files() == before,
            anew.train("short"),
            rows(anew) == rows(through),
            state_checksums(last(anew)) == state_checksums(last(through)),
        ]
    for override in OTHER_STAGES:
        anew = Run(path, Path(folder, f"other-{override}"), like=stopped)
        said = pack(anew, override, overwrite=True)
        trained = anew.train("short", override)
        seen[override] = said, trained, anew.files() == before

    seen["steps"] = steps(Run(path, Path(folder, "steps"), like=stopped), before)
    again = Run(path, Path(folder, "again"), like=stopped)
    seen["made in other steps"] = made_in_other_steps(again)

    changed = Run(path, Path(folder, "changed"), like=stopped)
    decay = "optimizer.weight_decay=0.9"
    seen["decay"] = changed.train("short", decay)
    seen["decay, finished"] = changed.train("short", decay), changed.train("short")

    for name, like in (("finished", through), ("running", stopped)):
        extended = Run(path, Path(folder, f"extended-{name}"), like=like)
        seen[name] = [
            extended.train("short", EXTENDED),
            pack(extended, EXTENDED),
            extended.train("short", EXTENDED),
            rows(extended),
            metrics(extended.folder)[:4],
            checkpoint.read_manifest(last(extended)).ledger[-1],
            state_checksums(last(extended)),
        ]
    seen["log"] = metrics(through.folder)
    seen["change of mind log"] = metrics(Path(folder, "steps"))
    return seen


def test_the_updates_hold_each_row_once(seen: dict[str, Any]) -> None:
    assert seen["through"] == [[0, 8], [8, 16], [16, 24], [24, 32]]


@pytest.mark.parametrize("tokens", OTHER_UPDATES)
def test_other_updates_are_refused_with_nothing_lost(
    tokens: str, seen: dict[str, Any]
) -> None:
    assert "after update 1" in seen["stopped"]
    trained, run, same, *_ = seen[tokens]
    for said in (trained, run):
        assert "stages.short.update_tokens: 8 rows of 64 tokens there, " in said
        assert f"{int(tokens) // 64} rows of 64 tokens now" in said
    assert same


@pytest.mark.parametrize("tokens", OTHER_UPDATES)
def test_a_plan_of_other_updates_never_replaces_that_of_a_begun_stage(
    tokens: str, seen: dict[str, Any]
) -> None:
    packed, same, went_on, as_through, weights = seen[tokens][3:]
    assert packed.startswith("DataError") and "rows_per_update: " in packed
    assert "to train it anew" in packed and same
    assert went_on == "" and as_through and weights


@pytest.mark.parametrize("override", OTHER_STAGES)
def test_a_begun_stage_goes_on_with_nothing_else(
    override: str, seen: dict[str, Any]
) -> None:
    packed, trained, same = seen[override]
    assert same
    assert trained.startswith(("IdentityError", "DataError")), trained
    named = OTHER_STAGES[override]
    assert named in trained or named in packed


def test_a_plan_grows_and_is_made_again_in_the_steps_of_its_stage(
    seen: dict[str, Any],
) -> None:
    """Shorter than what was planned and begun: the plan stays. Longer: in any steps, and a
    plan that is lost is the same again, since the checkpoints state its steps.
    """
    found = seen["steps"]
    shorter, same, end = found["shorter"]
    assert (shorter, same, end) == ("", True, "")
    assert found["grown"] == ["", "", "", ""]
    assert found["lost"] == ["", True, ""]
    *said, rows = found["change of mind"]
    assert said == ["", "", ""]
    assert rows == [[8 * n, 8 * n + 8] for n in range(9)]


def test_a_plan_made_in_other_steps_is_made_again_in_those_of_the_stage(
    seen: dict[str, Any],
) -> None:
    trained, refused, packed, went_on, as_through = seen["made in other steps"]
    assert "pack CONFIG --stage short --overwrite" in trained
    assert "allow overwriting" in refused
    assert packed == "" and went_on == "" and as_through


def test_constants_of_the_optimizer_change_on_record(
    folder: Path, seen: dict[str, Any]
) -> None:
    assert seen["decay"] == ""
    newest = max((folder / "changed/out/stages/short/checkpoints").iterdir())
    manifest = checkpoint.read_manifest(newest)
    assert manifest.extra["changes"] == [
        {
            "after_update": 1,
            "settings": ["optimizer.weight_decay: 0.1 there, 0.9 now"],
        }
    ]
    with_it, without = seen["decay, finished"]
    assert with_it == ""
    assert "optimizer.weight_decay: 0.9 there, 0.1 now" in without


@pytest.mark.parametrize("state", ["finished", "running"])
def test_a_stage_whose_tokens_are_raised_goes_on(
    state: str, seen: dict[str, Any]
) -> None:
    unpacked, packed, trained, rows, log, ledger, _ = seen[state]
    assert "pack CONFIG --stage short" in unpacked, "the message leads on"
    assert packed == "" and trained == ""
    assert rows == [[8 * n, 8 * n + 8] for n in range(8)]
    assert [line["loss"] for line in log] == [line["loss"] for line in seen["log"]]
    assert (ledger.updates, ledger.rows) == (8, 64)


def test_it_does_not_matter_when_tokens_are_raised(seen: dict[str, Any]) -> None:
    """To the last bit: after the last update or after the first."""
    assert seen["finished"][-2:] == seen["running"][-2:]


def test_no_line_of_the_log_is_of_an_update_twice(folder: Path) -> None:
    for file in folder.glob("*/out/stages/short/metrics.jsonl"):
        updates = [json.loads(line)["update"] for line in file.open()]
        assert updates == list(range(1, len(updates) + 1)), file


def test_what_came_from_a_stage_is_named_where_it_is_to_be_trained_anew(
    tmp_path: Path,
) -> None:
    """The advice leads to a run that is whole again, not to the next refusal."""
    found = run_distributed(anew_beneath_a_later_stage, 1, str(tmp_path), timeout=300)
    refused, alone, noted, checked, followed, end = found[0]
    later = tmp_path / "a" / "out" / "stages" / "long"
    assert f"and {later}, which came from it, away" in refused
    assert alone == "" and f"{later} came from the one that is gone" in noted
    assert "stage long" in checked and "token id 500" in checked, "all at once"
    assert followed == "" and end == ""


def anew_beneath_a_later_stage(rank: int, folder: str) -> list[str]:
    run = Run(write_run(Path(folder)), Path(folder, "a"))
    for stage in ("short", "long"):
        workflow.pack(run.config(), stage)
        run.train(stage)
    anew = "stages.short.learning_rate=0.002"
    refused = run.train("short", anew)
    places = run_directory(run.config())
    places.stage("short").rename(places.stage("short").with_name("away"))
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        alone = run.train("short", anew)
    write_store(Path(folder) / "text", [np.array([3, 500, 3])], 1000)
    checked = message(lambda: workflow.check_all(run.config(anew), "run.yaml"))
    shutil.rmtree(Path(folder, "b"), ignore_errors=True)
    other = Run(write_run(Path(folder, "b")), Path(folder, "b"))
    for stage in ("short", "long"):
        workflow.pack(other.config(), stage)
        other.train(stage)
    places = run_directory(other.config())
    for stage in ("short", "long"):
        places.stage(stage).rename(places.stage(stage).with_name(f"away-{stage}"))
    followed = other.train("short", anew)
    end = other.train("long", anew)
    return [refused, alone, told.getvalue(), checked, followed, end]


def test_the_log_says_on_what_layout_each_start_ran(seen: dict[str, Any]) -> None:
    starts = [line for line in seen["change of mind log"] if "kernel" in line]
    assert len(starts) > 1 and starts[0]["update"] == 1
    assert all(s["layout"] == {"dp": 1, "tp": 1, "cp": 1, "pp": 1} for s in starts)
