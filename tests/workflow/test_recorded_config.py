"""How a run was configured, by its directory alone: what it was last started with."""

from __future__ import annotations

import dataclasses
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.load import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.train.stage_state import StageState
from alia_ctx.workflow.recorded_config import config_of
from tests.small_run import LLAMA3, write_run

CODE = {
    **{"init_from": "short", "context": 256, "rope": LLAMA3, "tokens": 1536},
    **{"update_tokens": 800, "learning_rate": 0.003},
    "pack": {"policy": "best_fit", "long_docs": "split"},
}


class Made:
    """Checkpoints and logs of stages that were never trained."""

    def __init__(self, folder: Path) -> None:
        self.path, self.out = write_run(folder), folder / "out"

    def config(self, *overrides: str) -> RunConfig:
        return load_run(self.path, [*overrides])

    def saved(
        self, run: RunConfig, name: str, update: int, started: int, **how: Any
    ) -> None:
        """A checkpoint of a stage, started at minute `started`, an update each minute."""
        stage = run.stage(name)
        state = StageState.at_start(name, stage, "plan")
        ledger = dataclasses.replace(state.ledger, updates=update)
        before = [
            StageState.at_start(n, run.stage(n), "plan").ledger
            for n in how.get("of", ())
        ]
        state = dataclasses.replace(state, ledger=ledger, history=tuple(before))
        self._write(state.manifest(run.model, run.to_dict()), started + update)
        log = self.out / "stages" / name / "metrics.jsonl"
        lines = [
            {
                "stage": name,
                "update": n,
                "time": datetime.fromtimestamp(60 * (started + n), UTC).isoformat(),
                **({"layout": {}} if n == how.get("first", 1) else {}),
            }
            for n in range(how.get("first", 1), update + 1)
        ]
        with log.open("a") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in lines)

    def _write(self, manifest: Manifest, minute: int) -> None:
        root = self.out / "stages" / manifest.stage / "checkpoints"
        place = root / checkpoint.checkpoint_name(manifest.update)
        temporary = checkpoint.begin(place)
        (temporary / "state/x.distcp").write_bytes(b"x")
        checkpoint.commit(temporary, place, manifest)
        os.utime(place, (60 * minute, 60 * minute))


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path)


def updates(run: RunConfig) -> dict[str, int]:
    return {name: stage.updates for name, stage in run.stages.items()}


def test_the_last_start_is_the_newest_whatever_the_chain(made: Made) -> None:
    code = json.dumps(CODE)
    first = made.config(f"stages.code={code}")
    made.saved(first, "short", 12, started=0)
    made.saved(first, "code", 2, started=20, of=["short"])
    later = made.config(
        f"stages.code={code}", f"stages.zlate={code}", "stages.long.tokens=6144",
        "evaluation.documents=3",
    )  # fmt: skip
    made.saved(later, "long", 4, started=30, of=["short"])
    found = config_of(made.out)
    assert updates(found) == {"short": 12, "long": 8, "code": 2, "zlate": 2}
    assert found.evaluation.documents == 3


def test_a_long_stage_that_saves_last_has_an_older_configuration(made: Made) -> None:
    first = made.config()
    made.saved(first, "short", 12, started=0)
    made.saved(first, "long", 4, started=15, of=["short"])  # saved at minute 19
    anew = made.config("stages.short.tokens=9216", "notes=[again]")
    made.saved(anew, "short", 13, started=5, first=13)  # at minute 18
    assert config_of(made.out).notes == ["again"]


def test_stages_that_the_newest_lacks_are_not_lost(made: Made) -> None:
    with_code = made.config(f"stages.code={json.dumps(CODE)}")
    made.saved(with_code, "short", 12, started=0)
    made.saved(with_code, "code", 2, started=20, of=["short"])
    made.saved(made.config(), "long", 4, started=30, of=["short"])
    assert updates(config_of(made.out)) == {"short": 12, "code": 2, "long": 4}


def test_a_stage_beyond_the_newest_has_its_own_settings(made: Made) -> None:
    made.saved(made.config("stages.short.tokens=9216"), "short", 18, started=0)
    made.saved(made.config(), "long", 4, started=30, of=["short"])
    assert updates(config_of(made.out)) == {"short": 18, "long": 4}


def test_a_stage_that_was_shortened_since_has_the_newest(made: Made) -> None:
    made.saved(made.config(), "short", 6, started=0)
    half = made.config("stages.short.tokens=3072")
    made.saved(half, "long", 4, started=30, of=["short"])
    assert updates(config_of(made.out)) == {"short": 6, "long": 4}


def test_without_logs_files_say_the_time(made: Made) -> None:
    made.saved(made.config(), "short", 12, started=0)
    made.saved(made.config("notes=[last]"), "long", 4, started=30, of=["short"])
    for log in made.out.glob("stages/*/metrics.jsonl"):
        log.unlink()
    assert config_of(made.out).notes == ["last"]
