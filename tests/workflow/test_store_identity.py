"""A store that was made otherwise than the configuration says now is named, not used."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from alia_ctx import workflow
from alia_ctx.checkpoint import read_manifest
from alia_ctx.config import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.identity import IdentityError
from alia_ctx.workflow.stores import require_same_options, tokenizer_of_text
from tests.small_run import alia, write_run

WORDS = ["the", "rain", "in", "Girona", "falls", "mainly", "on", "the", "plain", "and"]


@pytest.fixture
def tokenized(tmp_path: Path) -> Path:
    path = write_run(tmp_path)
    document = yaml.safe_load(path.read_text())
    text = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": " ".join(WORDS[i % 7 :] * 9)}) for i in range(90)]
    text.write_text("\n".join(lines) + "\n")
    document["data"]["sources"] = {"text": {"inputs": [str(text)]}}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.tokenize(load_run(path))
    return path


def run_of(path: Path, *overrides: str) -> RunConfig:
    return load_run(path, overrides)


def test_the_same_text_tokenizer_and_options_are_used(tokenized: Path) -> None:
    workflow.pack(run_of(tokenized), "short")


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.append_eos=false", "special_ids"),
        ("data.special_tokens=keep", "special_tokens"),
        ("data.sources.text.text_key=body", "text_key"),
    ],
)
def test_other_options_are_named(tokenized: Path, override: str, named: str) -> None:
    with pytest.raises(DataError, match=rf"made from something else(?s:.*){named}"):
        workflow.pack(run_of(tokenized, override), "short")


def test_other_text_is_named(tokenized: Path, tmp_path: Path) -> None:
    with (tmp_path / "text.jsonl").open("a") as stream:
        stream.write(json.dumps({"text": "one more"}) + "\n")
    with pytest.raises(DataError, match=r"inputs: 1 added, removed or changed"):
        workflow.pack(run_of(tokenized), "short")


def test_another_tokenizer_of_the_same_size_is_named(
    tokenized: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokenizer" / "tokenizer.json"
    document = json.loads(file.read_text())
    vocabulary = document["model"]["vocab"]
    first, second = [w for w in vocabulary if not w.startswith("<")][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"tokenizer: \w+ there, \w+ asked"):
        workflow.pack(run_of(tokenized), "short")


def swap(folder: Path) -> None:
    """Two words of the tokenizer change their ids; the second time they change back."""
    file = folder / "tokenizer" / "tokenizer.json"
    kept = file.with_name("kept")
    if kept.is_file():
        kept.replace(file)
        return
    document = json.loads(file.read_text())
    file.replace(kept)
    vocabulary = document["model"]["vocab"]
    vocabulary["w7"], vocabulary["w9"] = vocabulary["w9"], vocabulary["w7"]
    file.write_text(json.dumps(document))


def test_a_tokenizer_replaced_at_any_step_is_seen(
    tokenized: Path, tmp_path: Path
) -> None:
    """After packing by `train`, after training by `export`; a checkpoint states it."""
    run = run_of(tokenized)
    stated = json.loads((tmp_path / "out/tokens/text.json").read_text())["tokenizer"]
    assert {*stated} == {"tokenizer.json", "tokenizer_config.json"}
    workflow.pack(run, "short")
    swap(tmp_path)
    with pytest.raises(IdentityError, match=r"store of text(?s:.*)tokenizer\.json: "):
        workflow.train(run, "short")
    swap(tmp_path)
    trained = alia("train", str(tokenized), "--stage", "short", timeout=600)
    assert trained.returncode == 0, trained.stderr
    path = workflow.finished_checkpoint(run, "short")
    assert read_manifest(path).extra["tokenizer"] == stated
    swap(tmp_path)
    with pytest.raises(IdentityError, match=r"tokenizer\.json: \w+ there"):
        workflow.export(run, "short")
    assert not list((tmp_path / "out").glob("hf*/*"))
    told = alia("check", str(tokenized), "stages.short.learning_rate=0.5")
    assert told.returncode == 2
    swap(tmp_path)
    # What was trained is compared by `check` too, and more tokens need a longer plan.
    told = alia("check", str(tokenized), "stages.short.learning_rate=0.5")
    assert told.returncode == 2 and "learning_rate: 0.003 there" in told.stderr
    longer = run_of(tokenized, "stages.short.tokens=12288")
    with pytest.raises(DataError, match=r"pack CONFIG --stage short`, which adds them"):
        workflow.train(longer, "short")
    piped = alia("pack", str(tokenized), "--stage", "short", "--inspect")
    assert piped.returncode == 0 and "…" not in piped.stdout


def test_a_stage_asks_nothing_of_text_that_it_does_not_draw_from(
    tokenized: Path, tmp_path: Path
) -> None:
    """A later stage's text may be tokenised while the first one trains."""
    stated = tokenizer_of_text(run_of(tokenized), "short")
    document = yaml.safe_load(tokenized.read_text())
    later = {"inputs": [str(tmp_path / "text.jsonl")]}
    document["data"]["sources"]["later"] = later
    for stage, sources in (("short", ["text"]), ("long", ["text", "later"])):
        document["stages"][stage]["pack"]["sources"] = sources
    tokenized.write_text(yaml.safe_dump(document, sort_keys=False))
    run = run_of(tokenized)
    assert stated and tokenizer_of_text(run, "short") == stated
    with pytest.raises(DataError, match=r"later\.idx: no such file"):
        tokenizer_of_text(run, "long")


def test_too_few_held_out_documents_are_said(tokenized: Path) -> None:
    run = run_of(tokenized, "evaluation.documents=9")
    assert "only 4 held-out documents have the 256" in str(workflow.few_held_out(run))
    assert workflow.few_held_out(run_of(tokenized)) is None


def test_a_base_that_is_not_imported_yet_is_said_once(tokenized: Path) -> None:
    raw = yaml.safe_load(tokenized.read_text())
    del raw["model"]
    raw["stages"]["short"]["init_from"] = "/nowhere/base"
    tokenized.write_text(yaml.safe_dump(raw, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        load_run(tokenized)
    assert "must be a mapping" not in str(caught.value)
    assert [p.key for p in caught.value.problems] == [
        "model",
        "stages.short.init_from",
    ]


def test_tokens_of_unknown_origin_are_given_no_tokenizer(tmp_path: Path) -> None:
    """What the configuration names is recorded as that, and still compared."""
    path = write_run(tmp_path)
    assert tokenizer_of_text(load_run(path), "short") is None
    workflow.pack(load_run(path), "short")
    trained = alia("train", str(path), "--stage", "short", timeout=600)
    assert trained.returncode == 0, trained.stderr
    extra = read_manifest(workflow.finished_checkpoint(load_run(path), "short")).extra
    assert "tokenizer" not in extra
    assert {*extra["tokenizer_configured"]} == {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    swap(tmp_path)
    with pytest.raises(IdentityError, match=r"tokenizer\.json: \w+ there, \w+ now"):
        workflow.finished_checkpoint(load_run(path), "short")


def test_a_store_whose_making_was_interrupted_is_not_used(tokenized: Path) -> None:
    """Its old tokens were made with who knows what."""
    tokens = tokenized.parent / "out" / "tokens"
    (tokens / "text.work").mkdir()
    workflow.pack(
        run_of(tokenized), "short"
    )  # the store's statement is there: finished
    (tokens / "text.json").unlink()
    with pytest.raises(DataError, match="interrupted"):
        workflow.pack(run_of(tokenized), "short", overwrite=True)


@pytest.mark.parametrize(
    "override",
    [
        "data.append_eos=false",
        "data.prepend_bos=true",
        "data.special_tokens=keep",
        "data.sources.text.text_key=body",
        "data.sources.text.id_key=id",
    ],
)
def test_training_records_no_options_that_were_not_used(
    tokenized: Path, override: str
) -> None:
    """Though the inputs are not what they were any more."""
    (tokenized.parent / "text.jsonl").write_text('{"text": "other", "body": "b"}\n')
    run = run_of(tokenized, override)
    with pytest.raises(DataError, match=override.split("=")[0].split(".")[-1]):
        require_same_options(run, "short")
    require_same_options(run_of(tokenized), "short")


def test_a_chat_template_and_a_limit_change_no_store(tokenized: Path) -> None:
    file = tokenized.parent / "tokenizer" / "tokenizer_config.json"
    document = json.loads(file.read_text())
    changed = {**document, "chat_template": "{{ messages }}", "model_max_length": 64}
    file.write_text(json.dumps(changed, indent=3))
    workflow.require_same_text(run_of(tokenized))
    before = (tokenized.parent / "out/tokens/text.json").read_bytes()
    workflow.tokenize(run_of(tokenized))
    assert (tokenized.parent / "out/tokens/text.json").read_bytes() == before
    file.write_text(json.dumps({**document, "add_prefix_space": True}))
    with pytest.raises(DataError, match=r"tokenizer: \w+ there, \w+ asked"):
        workflow.require_same_text(run_of(tokenized))


def test_a_store_of_an_earlier_release_is_still_the_one(tokenized: Path) -> None:
    """It states a checksum of the tokenizer's files byte by byte."""
    file = tokenized.parent / "out" / "tokens" / "text.json"
    document = json.loads(file.read_text())
    tokenizer = HubTokenizer(tokenized.parent / "tokenizer", "llama")
    assert document["identity"]["tokenizer"] == tokenizer.fingerprint()
    document["identity"]["tokenizer"] = tokenizer.former_fingerprint()
    file.write_text(json.dumps(document))
    workflow.require_same_text(run_of(tokenized))
    workflow.tokenize(run_of(tokenized))


def test_the_remedy_of_a_store_that_is_given_is_where_it_was_made(
    tokenized: Path,
) -> None:
    """`tokenize` here leaves it as it is, so that is no remedy."""
    document = yaml.safe_load(tokenized.read_text())
    store = Path(document["output"]) / "tokens" / "text"
    document["data"]["sources"] = {"bought": {"store": str(store)}}
    document["output"] = str(tokenized.parent / "other")
    tokenized.write_text(yaml.safe_dump(document, sort_keys=False))
    workflow.require_same_text(run_of(tokenized))
    require_same_options(run_of(tokenized), "short")
    otherwise = run_of(tokenized, "data.append_eos=false")

    def refused(ask: Callable[[], object]) -> None:
        with pytest.raises((DataError, IdentityError)) as told:
            ask()
        assert "source bought has it by `store`" in str(told.value)
        assert "--source" not in str(told.value)

    refused(lambda: workflow.require_same_text(otherwise))
    refused(lambda: require_same_options(otherwise, "short"))
    sidecar = store.with_name("text.json")
    stated = json.loads(sidecar.read_text())
    sidecar.write_text(json.dumps({**stated, "idx_checksum": "0"}))
    refused(lambda: workflow.require_same_text(run_of(tokenized)))
    sidecar.write_text(json.dumps(stated))
    swap(tokenized.parent)
    refused(lambda: tokenizer_of_text(run_of(tokenized), "short"))
