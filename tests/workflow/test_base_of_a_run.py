"""The model that a run started from is measured, and is the first line of everything; the
best checkpoint of a stage is kept, and known after a resume.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from alia_ctx import checkpoint, workflow
from alia_ctx.evaluation.retrieval import LANGUAGES
from alia_ctx.evaluation.verdicts import verdicts
from alia_ctx.hf.convert import import_hf
from tests.distributed import run_distributed
from tests.hf_models import make_model
from tests.small_run import VOCABULARY, metrics, write_run
from tests.workflow.scenarios import Run

NATIVE = 64
LONGER = (
    "stages.short.context=128",
    "evaluation.measure=[positions,blocks,leak]",
    "evaluation.every_updates=4",
    "evaluation.during=[positions,blocks]",
)
BEST = (
    "evaluation.every_updates=2",
    "evaluation.during=[positions,blocks,longppl,retrieval,leak]",
    "evaluation.retrieval.tasks=[niah_single_1]",
    "evaluation.retrieval.digits=1",
    "evaluation.best={metric: loss, mode: max}",  # so that it is not the last one
    "checkpoint.every_updates=1",
    "checkpoint.keep_last=1",
    "checkpoint.background=false",
)


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    root, seen = Path(folder), {}
    base = f"stages.short.init_from={root / 'base'}"
    run = Run(root / "run.yaml", root / "with base")
    seen["run"] = run.run(base, *LONGER)
    seen["started"] = run.started
    seen["log of the first"] = metrics(run.output.parent)
    config = run.config(base, *LONGER)
    task = workflow.standard_task(config)
    evaluated = workflow.measure_models(task)
    lines = workflow.lines_of(evaluated)
    seen["lines"] = [(line.name, line.model, line.context) for line in lines]
    seen["said"] = verdicts(lines, evaluated.native)
    seen["files"] = sorted(
        str(path.relative_to(run.output / "evaluation"))
        for path in (run.output / "evaluation").rglob("*.json")
    )
    kept = _results(run.output)
    narrower = run.config(base, *LONGER, "evaluation.documents=1")
    asked = workflow.evaluation_task(
        narrower, evaluators=["positions", "leak"], configured=config
    )
    workflow.measure_models(asked)
    now = _results(run.output)
    seen["taken"] = [name for name, data in kept.items() if now.get(name) != data]
    seen["apart"] = sorted(name for name in now if name not in kept)
    seen["again"] = run.run(base, *LONGER), run.started
    asked = workflow.evaluation_task(config, ["long"], configured=config)
    seen["one stage"] = [
        (e.model.name, e.context, e.evaluators) for e in asked.evaluations
    ]
    seen["questions of one stage"] = _places(asked)
    beside = workflow.evaluation_task(
        config, ["long"], [96], ["leak"], configured=config
    )
    workflow.measure_models(beside)
    seen["questions beside"] = _places(beside)
    # As releases before kept it: among the run's own results.
    *_, place = (beside.path(e, "leak") for e in beside.evaluations)
    place.rename(run.output / "evaluation/long/leak-96.json")
    seen["moved"] = [
        line.model
        for line in workflow.standard_lines(
            run.config("stages.short.init_from=random", *LONGER)
        )
    ]

    seen["page"] = _said_on_the_page(root, base)
    (root / "base").rename(root / "elsewhere")
    evaluated = workflow.measure_models(workflow.standard_task(config))
    seen["gone"] = verdicts(
        workflow.lines_of(evaluated), evaluated.native, has_base=evaluated.has_base
    )
    now = _results(run.output)
    seen["taken when gone"] = [name for name in kept if now.get(name) != kept[name]]
    seen["report when gone"] = workflow.text_report(config)
    seen["page when gone"] = _said_on_the_page(root, base)
    (root / "elsewhere").rename(root / "base")
    (run.output / "stages/long/checkpoints").rename(root / "long")
    seen["page without long"] = _said_on_the_page(root, base)

    run = Run(root / "run.yaml", root / "best")
    short = "stages.short.tokens=2048"
    workflow.pack(run.config(short, *BEST), "short")
    seen["train"] = run.train("short", short, *BEST)
    seen["best"] = _best(run.config(short, *BEST))
    longer = "stages.short.tokens=4096"
    workflow.pack(run.config(longer, *BEST), "short")
    seen["train on"] = run.train("short", longer, *BEST)
    seen["best after resume"] = _best(run.config(longer, *BEST))
    names = checkpoint.list_checkpoints(run.output / "stages/short/checkpoints")
    seen["kept"] = [path.name for path in names]
    seen["log"] = metrics(root / "best")
    # A stage that is shorter than the one before it, as one of conversations may be.
    shorter = (longer, *BEST, "stages.long.context=32", "evaluation.during=[positions]")
    workflow.pack(run.config(*shorter), "long")
    seen["train shorter"] = run.train("long", *shorter)
    seen["log of shorter"] = metrics(root / "best", "long")
    return seen


def _spell(file: Path) -> None:
    """Gives a tokenizer of words those of needles, and digits: of one that has them not
    there is no sample.
    """
    tokenizer, english = Tokenizer.from_file(str(file)), LANGUAGES["en"]
    words = [*"0123456789-", *english.adjectives, *english.nouns]
    known = tokenizer.get_vocab()
    kept = {name: n for name, n in known.items() if n < VOCABULARY - len(words)}
    ids = {word: len(kept) + n for n, word in enumerate(words)}
    tokenizer.model = models.WordLevel(kept | ids, unk_token="<unk>")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"(?<![\w])\d|-"), "isolated"),
        ]
    )
    tokenizer.save(str(file))


def _said_on_the_page(root: Path, *overrides: str) -> list[str]:
    output = f"output={root / 'with base' / 'out'}"
    said = workflow.page_verdicts(root / "run.yaml", [output, *overrides, *LONGER])
    return [f"{verdict.answer}: {verdict.claim}" for verdict in said]


def _places(task: workflow.EvaluationTask) -> set[str]:
    """Folders of the results, those of the run's own questions as the models' names."""
    places = (task.path(e, name) for e in task.evaluations for name in e.evaluators)
    return {str(place.relative_to(task.directory).parent) for place in places}


def _results(output: Path) -> dict[str, bytes]:
    root = output / "evaluation"
    files = (file for file in root.rglob("*.json") if "leak" not in file.name)
    return {str(file.relative_to(root)): file.read_bytes() for file in files}


def _best(config: Any) -> tuple[int, float]:
    best = workflow.best_checkpoint(config, "short")
    assert best is not None and best.metric == "loss"
    return best.update, best.value


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("base")
    write_run(folder)
    _spell(folder / "tokenizer" / "tokenizer.json")
    sizes = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": NATIVE,
    }
    make_model("llama", **sizes).save_pretrained(folder / "hf")
    import_hf(folder / "hf", folder / "base")
    return dict(run_distributed(scenarios, 1, str(folder), timeout=600)[0])


def test_losses_are_told_apart_at_the_context_of_the_base(seen: dict[str, Any]) -> None:
    """From the first stage on: what the base was trained at is short, what is new is far."""
    lines = [line for line in seen["log of the first"] if "held_out" in line]
    assert lines
    for line in lines:
        assert set(line["held_out"]) == {"64", "128"}
        bands, told = line["held_out"]["128"], line["metrics"]
        assert bands == {"0-63": told["short_loss"], "64-127": told["far_loss"]}
        assert min(bands.values()) < told["loss"] < max(bands.values())
        assert line["blocks"]


def test_the_base_is_measured_and_first(seen: dict[str, Any]) -> None:
    assert seen["run"] == ""
    assert seen["started"][-1] == "evaluate"
    assert seen["lines"] == [
        ("base", "base", NATIVE),
        ("base, given 256 tokens", "base", 256),
        ("short", "short", 128),
        ("long", "long", 256),
    ]
    assert {"base/positions-64.json", "base/blocks-256.json"} <= set(seen["files"])


def test_an_evaluation_by_other_settings_leaves_the_runs_own_results(
    seen: dict[str, Any],
) -> None:
    assert seen["taken"] == []
    places = [name.rpartition("-")[0] for name in seen["apart"]]
    assert places == [
        f"other-questions/{place}"
        for place in (
            *("base/positions-256", "base/positions-64"),
            *("long/positions-256", "short/positions-128"),
        )
    ]
    assert "evaluate" not in seen["again"][1]  # `run` has nothing to measure again


def test_the_base_at_its_own_length_stands_beside_one_stage(
    seen: dict[str, Any],
) -> None:
    assert seen["one stage"] == [
        ("base", NATIVE, ("positions",)),
        ("base", 256, ("positions", "blocks", "leak")),
        ("long", 256, ("positions", "blocks", "leak")),
    ]
    assert seen["questions of one stage"] == {"base", "long"}


def test_what_is_asked_beside_the_comparison_is_no_verdict_on_the_run(
    seen: dict[str, Any],
) -> None:
    places = {"other-questions/base", "other-questions/long"}
    assert seen["questions beside"] == places
    leaks = [sentence for sentence in seen["page"] if "sees another" in sentence]
    assert len(leaks) == 4 and not any(" 96 " in sentence for sentence in leaks)


def test_what_it_cost_and_brought_is_said_against_the_base(
    seen: dict[str, Any],
) -> None:
    text = "\n".join(seen["said"])
    assert "long: within the base's 64 tokens it " in text
    assert "against base shown 64 tokens" in text
    assert "against base shown 256 tokens" in text
    assert "long: far context brings it " in text and "standard errors" in text
    assert text.index("short: ") < text.index("long: ")


def test_what_is_measured_is_not_measured_again(seen: dict[str, Any]) -> None:
    assert seen["again"] == ("", [])


def test_nothing_takes_the_place_of_a_base_that_is_gone(seen: dict[str, Any]) -> None:
    said = "\n".join(seen["gone"])
    assert said.startswith("the base is not at hand")
    assert "within the base's" not in said and "far context brings it" in said
    assert seen["taken when gone"] == []
    assert "the base is not there any more" in seen["report when gone"]
    # What was measured of it before is of what the first stage says it started from.
    assert seen["page when gone"] == seen["page"]
    assert any("long loses at most" in sentence for sentence in seen["page"])


def test_results_of_a_checkpoint_that_is_gone_are_not_shown(
    seen: dict[str, Any],
) -> None:
    left = [sentence for sentence in seen["page without long"] if "long" in sentence]
    assert [sentence.partition(":")[2].split()[1] for sentence in left] == ["is"]
    assert "trained to its end" in left[0] and left[0].startswith("not known")


def test_a_stage_shorter_than_the_one_before_is_measured_at_its_own(
    seen: dict[str, Any],
) -> None:
    assert seen["train shorter"] == ""
    evaluated = [line for line in seen["log of shorter"] if "held_out" in line]
    assert evaluated and all(set(line["held_out"]) == {"32"} for line in evaluated)


def test_a_chain_from_random_weights_has_its_first_stage_as_base(
    seen: dict[str, Any],
) -> None:
    assert seen["moved"][0] == "short"


def test_the_best_checkpoint_is_kept_and_known_after_a_resume(
    seen: dict[str, Any],
) -> None:
    assert (seen["train"], seen["train on"]) == ("", "")
    update, value = seen["best"]
    assert seen["best after resume"] == (update, value)
    evaluated = [line for line in seen["log"] if "metrics" in line]
    assert [line["update"] for line in evaluated] == [2, 4, 6, 8]
    losses = {line["update"]: line["metrics"]["loss"] for line in evaluated}
    assert losses[update] == value == max(losses.values())
    assert update == 2, "the losses of this stage fall"
    assert seen["kept"] == ["update-00000002", "update-00000008"]
    assert evaluated[0]["leak"]["moved"] == 0
    assert set(evaluated[0]["held_out"]) == {"64"}
    shares = evaluated[0]["retrieval"]
    assert set(shares) == {"64"} and set(shares["64"]) == {"niah_single_1"}
    assert evaluated[0]["metrics"]["retrieval"] == shares["64"]["niah_single_1"]


def test_the_line_of_the_log_is_json(seen: dict[str, Any]) -> None:
    json.dumps(seen["log"], allow_nan=False)
