"""Exports and evaluations that are not what was made: named, and remade or refused, and
nothing of anybody else's removed.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from alia_ctx import workflow
from alia_ctx.files import file_checksum
from tests.distributed import run_distributed
from tests.small_run import write_run
from tests.workflow.scenarios import Run, message


def _unlink(name: str) -> Callable[[Path], None]:
    return lambda output: (output / name).unlink()


def _cut(name: str) -> Callable[[Path], None]:
    def cut(output: Path) -> None:
        os.truncate(output / name, (output / name).stat().st_size // 2)

    return cut


def _flip(name: str) -> Callable[[Path], None]:
    """One bit, in the midst: the size stays."""

    def flip(output: Path) -> None:
        data = bytearray((output / name).read_bytes())
        data[len(data) // 2] ^= 1
        (output / name).write_bytes(data)

    return flip


def _edit(change: Callable[[Any], None], name: str) -> Callable[[Path], None]:
    def edit(output: Path) -> None:
        document = json.loads((output / name).read_text())
        change(document)
        (output / name).write_text(json.dumps(document))

    return edit


def _another_tokenizer(output: Path) -> None:
    config = output.parents[1] / "tokenizer/tokenizer_config.json"
    settings = {**json.loads(config.read_text()), "model_max_length": 64}
    config.write_text(json.dumps(settings))


def _someone_elses(output: Path) -> None:
    (output / "hf/short.made_from.json").unlink()
    shutil.rmtree(output / "hf/short")
    (output / "hf/short").mkdir()
    (output / "hf/short/thesis.tex").write_text("years of work")


NOTE, RESULT = "hf/short.made_from.json", "evaluation/short/positions-64.json"
# What happened to the export -> what is said, and whether it is made anew.
EXPORTS: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "weights gone": (_unlink("hf/short/model.safetensors"), "nothing now", True),
    "no config": (_unlink("hf/short/config.json"), "config.json: ", True),
    "another tokenizer": (
        _another_tokenizer,
        "tokenizer.tokenizer_config.json: ",
        True,
    ),
    "without its note": (_unlink(NOTE), "there is no ", True),
    "a note cut short": (_cut(NOTE), "is no JSON", True),
    "a note edited": (
        _edit(lambda d: d["made_from"]["checkpoint"].update(update=9), NOTE),
        "its checksum differs",
        True,
    ),
    "weights cut": (_cut("hf/short/model.safetensors"), "was changed since", False),
    "a bit of the weights": (
        _flip("hf/short/model.safetensors"),
        "was changed since",
        False,
    ),
    "a bit of the tokenizer": (
        _flip("hf/short/tokenizer.json"),
        "was changed since",
        False,
    ),
    "someone else's": (_someone_elses, "it has no alia_ctx_export.json", False),
}
# What happened to an evaluation -> what the report says.
RESULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "gone": (_unlink(RESULT), "there is no "),
    "cut short": (_cut(RESULT), "is no JSON"),
    "a loss edited": (
        _edit(lambda d: d["content"]["curve"]["sums"].__setitem__(0, 0.0), RESULT),
        "its checksum differs",
    ),
    "of version 0.1": (
        lambda output: (output / RESULT).write_text('{"edges": [0, 64]}'),
        "does not say what it was made from",
    ),
}


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    from alia_ctx.workflow import exporting

    path = Path(folder, "run.yaml")
    first = Run(path, Path(folder, "first"))
    said: list[str] = []
    exporting.say = said.append
    seen: dict[str, Any] = {"first": first.run("stages.long=null")}
    weights = file_checksum(first.output / "hf/short/model.safetensors")
    config = first.config("stages.long=null")
    before = first.files()
    workflow.export(config, "short")
    seen["again"] = first.files() == before

    for what, (happens, _, _) in EXPORTS.items():
        run = Run(path, Path(folder, what), like=first)
        happens(run.output)
        before = run.files()
        said.clear()
        config = run.config("stages.long=null")
        refused = message(lambda c=config: workflow.export(c, "short"))
        model = run.output / "hf/short/model.safetensors"
        seen[what] = (
            refused,
            "\n".join(said),
            run.files() == before,
            model.is_file() and file_checksum(model) == weights,
        )

    config = first.config("stages.long=null")
    before = first.files()
    failing = OSError(errno.EIO, "Input/output error")
    with mock.patch.object(Path, "read_bytes", side_effect=failing):
        seen["EIO"] = message(lambda: exporting.export(config, "short"))
    seen["EIO, after"] = first.files() == before

    for what, (happens, _) in RESULTS.items():
        run = Run(path, Path(folder, f"result {what}"), like=first)
        happens(run.output)
        config = run.config("stages.long=null")
        refused = message(lambda c=config: workflow.report(c))
        seen[f"result {what}"] = (
            refused,
            run.run("stages.long=null"),
            list(run.started),
        )
    fewer = first.config("stages.long=null", "evaluation.documents=2")
    seen["fewer"] = message(lambda: workflow.report(fewer))
    for store in Path(folder).glob("held_out.*"):
        store.rename(store.with_name("moved" + store.suffix))
    seen["text gone"] = message(lambda: workflow.report(config))
    return seen


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("runs")
    write_run(folder)
    return dict(run_distributed(scenarios, 1, str(folder), timeout=900)[0])


def test_an_export_that_is_what_it_should_be_is_left(seen: dict[str, Any]) -> None:
    assert seen["first"] == "" and seen["again"]


@pytest.mark.parametrize("what", [w for w, (_, _, anew) in EXPORTS.items() if anew])
def test_an_export_that_differs_is_made_anew(what: str, seen: dict[str, Any]) -> None:
    refused, said, _, whole = seen[what]
    assert refused == "" and whole
    assert "hf/short is made anew:" in said and EXPORTS[what][1] in said


@pytest.mark.parametrize("what", [w for w, (_, _, anew) in EXPORTS.items() if not anew])
def test_what_no_conversion_wrote_stays(what: str, seen: dict[str, Any]) -> None:
    refused, _, same, _ = seen[what]
    assert refused.startswith("CheckpointError: ") and EXPORTS[what][1] in refused
    assert "only what a conversion wrote is overwritten" in refused and same


def test_one_failed_reading_removes_nothing(seen: dict[str, Any]) -> None:
    assert seen["EIO"] and "Input/output error" in seen["EIO"]
    assert seen["EIO, after"]


@pytest.mark.parametrize("what", RESULTS)
def test_an_evaluation_that_differs_is_refused_and_made_anew(
    what: str, seen: dict[str, Any]
) -> None:
    refused, run, started = seen[f"result {what}"]
    assert refused.startswith("IdentityError: the evaluation of short")
    assert RESULTS[what][1] in refused and "alia-ctx evaluate CONFIG" in refused
    assert run == "" and started == ["evaluate"]


def test_an_evaluation_of_other_text_is_named_and_absent_text_is_no_obstacle(
    seen: dict[str, Any],
) -> None:
    assert "settings.documents: 4 there, 2 now" in seen["fewer"]
    assert seen["text gone"] == ""
