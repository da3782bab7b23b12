"""A small run, its page and an ablation of its second stage, as a user starts them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens.store import write_store
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.evaluation.positions import PositionBands
from alia_ctx.identity import IdentityError, unsealed
from alia_ctx.workflow.recorded_config import config_of
from alia_ctx.workflow.run_facts import run_facts
from alia_ctx.workflow.trained_choices import choices_to_train
from tests.small_run import VOCABULARY, write_run

CHOICES = {
    "linear": {"type": "linear", "theta": 10000, "factor": 4},
    "raised": {"type": "default", "theta": 90000},
}
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of a run whose first stage is trained."""
    folder = tmp_path_factory.mktemp("run")
    path = write_run(folder)
    (folder / "choices.yaml").write_text(yaml.safe_dump(CHOICES))
    run = load_run(path)
    workflow.pack(run, "short")
    workflow.train(run, "short")
    return path


def ablate(path: Path, *overrides: str, choices: str = "") -> workflow.Ranking:
    run = load_run(path, overrides)
    file = choices or str(path.parent / "choices.yaml")
    return workflow.ablate(path, overrides, run, "long", file, 2)


def changes(folder: Path) -> dict[str, int]:
    return {
        str(file): file.stat().st_mtime_ns
        for file in folder.rglob("*")
        if file.is_file() and file.name != "ranking.json"
    }


def test_cells_are_trained_once_and_ranked(trained: Path) -> None:
    ranking = ablate(trained)
    cells = trained.parent / "out/ablation/long"
    first = ranking.bands[0]
    assert {one.name for one in first} == set(CHOICES) and first[0].behind == 0
    assert first[0].loss <= first[1].loss and first[0].seeds == 2
    # the numbers are those of the cells' own results
    for one in first:
        losses = []
        for file in sorted(
            (cells / one.name).glob("seed-*/evaluation/*/positions-*.json")
        ):
            _, content = unsealed(json.loads(file.read_text()), "x", "y")
            losses.append(PositionBands.from_json(content).band(0, 256).loss)
        assert len(losses) == 2 and losses[0] != losses[1]
        assert one.loss == pytest.approx(sum(losses) / 2)
    assert f"{first[0].name} has the lowest loss" in ranking.verdict
    document = json.loads(ranking.path.read_text())
    made_from, content = unsealed(document, "the ranking", "again")
    assert len(made_from) == 4 and content["verdict"] == ranking.verdict

    before = changes(cells)
    again = ablate(trained)
    assert changes(cells) == before and again.to_json() == ranking.to_json()

    with pytest.raises(IdentityError, match="learning_rate"):
        ablate(trained, "stages.long.learning_rate=0.01")
    assert changes(cells) == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "names no choice"),
        ("a: {type: yarn, theta: 10000}", "a.factor"),
        ("a: {type: linear, theta: 10000, faktor: 2}", "faktor"),
        ("a/b: {type: default, theta: 10000}", "is a choice's name"),
        ("a: {type: none, theta: 10000}", "no such RoPE type"),
    ],
)
def test_choices_that_break_a_rule(trained: Path, text: str, message: str) -> None:
    file = trained.parent / "bad.yaml"
    file.write_text(text)
    before = changes(trained.parent)
    with pytest.raises(ConfigError, match=message):
        ablate(trained, choices=str(file))
    assert changes(trained.parent) == before


def held_out_of(folder: Path, length: int) -> str:
    """An override: held-out documents of so many tokens."""
    generator = np.random.default_rng(7)
    documents = [generator.integers(5, VOCABULARY, length) for _ in range(4)]
    write_store(folder / f"held_out_{length}", documents, VOCABULARY)
    return f"evaluation.held_out.store={folder}/held_out_{length}"


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def test_held_out_text_shorter_than_the_stage_ranks_by_what_it_has(
    trained: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ranking = ablate(trained, held_out_of(trained.parent, 100))
    # 64 tokens of each document: the longest context of the run that they fill
    assert [(band[0].start, band[0].stop) for band in ranking.bands] == [(0, 64)]
    assert all(one.documents == 4 for one in ranking.bands[0])
    assert "no held-out document has the 256 tokens of stage long" in ranking.remarks[0]
    assert "by the first 64 positions alone" in " ".join(capfd.readouterr().err.split())
    json.loads(ranking.path.read_text(), parse_constant=no_constant)
    cells = trained.parent / "out/ablation/long"
    assert len(list(cells.glob("*/seed-*/evaluation/*/positions-64.json"))) == 4
    assert len(ranking.tables()) == 2


def test_what_cannot_be_ranked_is_said_before_anything_is_trained(
    trained: Path,
) -> None:
    override = held_out_of(trained.parent, 63)
    before = changes(trained.parent / "out")
    fresh = f"output={trained.parent}/fresh"
    with pytest.raises(DataError, match="the longest has 63"):
        ablate(trained, override)
    with pytest.raises(DataError, match="the longest has 63"):
        ablate(trained, override, fresh, "stages.long.init_from=random")
    assert changes(trained.parent / "out") == before
    assert not (trained.parent / "fresh").exists()


def test_a_stage_that_stretches_nothing_has_no_published_choice(trained: Path) -> None:
    run = load_run(trained)
    with pytest.raises(ConfigError, match="ask for no other RoPE"):
        workflow.ablate(trained, (), run, "short", "builtin", 1)
    assert not (trained.parent / "out/ablation/short").exists()


def test_a_choice_that_cannot_go_on_from_the_base_is_left_out(trained: Path) -> None:
    run = load_run(
        trained, ["stages.short.rope={type: linear, theta: 10000, factor: 4}"]
    )
    ropes, remarks = choices_to_train(run, "long", "builtin")
    assert set(ropes) == {"linear", "ntk"} and ropes["linear"].factor == 16
    assert [remark.split(":")[0] for remark in remarks] == [
        "no llama3",
        "no theta",
        "no yarn",
    ]


def test_the_page_of_a_run_that_is_under_way(trained: Path) -> None:
    """From the configuration, and from the directory alone; what is missing is said."""
    page = workflow.write_page([trained]).read_text()
    assert "Not finished: long" in page and page.count("not measured") >= 6
    assert f"alia-ctx evaluate {trained} --evaluators passkey" in page
    out = trained.parent / "out"
    other = workflow.write_page([out], output=trained.parent / "elsewhere/x.html")
    text = other.read_text()
    assert "12 of 12 updates" in text and f"alia-ctx report {out}" in text
    assert "alia-ctx train CONFIG --stage long" in text  # a directory is no CONFIG
    assert config_of(out) == load_run(trained)
    assert list(config_of(out).stages) == [
        "short",
        "long",
    ]  # as trained, not as spelled


def test_a_result_that_was_changed_is_a_problem_of_the_page(trained: Path) -> None:
    run, out = load_run(trained), trained.parent / "out"
    task = workflow.evaluation_task(run, ["short"], [64], ["positions"])
    workflow.measure_models(task)
    found = run_facts(run, out, "run.yaml")
    assert [(r.model, r.context, list(r.differs)) for r in found.results] == [
        ("short", 64, [])
    ]
    file = next((out / "evaluation").glob("*/positions-64.json"))
    good = file.read_text()
    file.write_text(good.replace('"per_octave": 4', '"per_octave": 3'))
    broken = run_facts(run, out, "run.yaml")
    assert not broken.results
    assert "changed after it was written" in " ".join(broken.problems)
    file.write_text("{")
    assert "is no JSON" in " ".join(run_facts(run, out, "run.yaml").problems)
    file.write_text(good)


def test_results_by_different_settings_do_not_stand_together(trained: Path) -> None:
    run, out = load_run(trained), trained.parent / "out"
    few = load_run(trained, ["evaluation.documents=1"])
    for configuration, current in ((run, True), (few, False)):
        task = workflow.evaluation_task(configuration, ["short"], [], ["positions"])
        workflow.measure_models(task)
        facts = run_facts(run, out, "run.yaml")
        shown = [(r.model, r.context) for r in facts.of("positions")]
        assert shown == ([("short", 64)] if current else [])
    [apart] = facts.stale
    assert "settings.documents" in " ".join(apart.outdated)
    page = workflow.write_page([trained]).read_text()
    assert "it was measured with other settings than the configuration has" in page
    (out / "evaluation/short/positions-64.json").unlink()


def test_no_run_there(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    with pytest.raises(DataError, match="nothing of this run was made yet"):
        workflow.write_page([path])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        workflow.write_page([tmp_path / "empty"])
