"""What `pack` says of its sources by the way, and `pack --inspect` when it is asked."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from alia_ctx import workflow
from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import document_places
from alia_ctx.data.tokens.store import write_store
from tests.small_run import VOCABULARY, write_run
from tests.text_data import write_jsonl
from tests.tokenizers import byte_level, save

TWICE, HELD = np.arange(150, 4, -1), np.arange(7, 190)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run whose sources hold a held-out document, and one that is there before."""
    path = write_run(tmp_path)
    chance = np.random.default_rng(8)
    own = [chance.integers(4, VOCABULARY, n) for n in (300, 700, 40, 90)]
    _store(tmp_path / "text", [own[0], TWICE, own[1], HELD], ["a.jsonl"] * 4, "line")
    _store(tmp_path / "more", [own[2], TWICE], ["b/1.txt", "b/2.txt"], "file")
    _store(tmp_path / "held_out", [own[3], HELD], ["held.jsonl"] * 2, "id")
    return path


def _store(prefix: Path, texts: list[Any], files: list[str], kind: str) -> None:
    write_store(prefix, texts, VOCABULARY)
    ids = {
        "line": [f"{file}:{n}" for n, file in enumerate(files, 1)],
        "file": files,
        "id": [f"doc-{n}" for n in range(len(files))],
    }[kind]
    table = pa.table({"id": ids, "file": files})
    pq.write_table(table, prefix.with_name(prefix.name + ".documents.parquet"))


def _overrides(tmp_path: Path, *more: str) -> list[str]:
    other = f"data.sources.more={{inputs: [], store: {tmp_path / 'more'}}}"
    return [other, "stages.short.tokens=1024", *more]


def _pack(
    config: Path, tmp_path: Path, *arguments: str, more: tuple[str, ...] = ()
) -> Any:
    words = ["pack", str(config), *_overrides(tmp_path, *more), "--stage", "short"]
    made = CliRunner().invoke(app, [*words, *arguments], catch_exceptions=False)
    assert made.exit_code == 0
    return made


def test_copies_are_told_in_passing(config: Path, tmp_path: Path) -> None:
    said = " ".join(_pack(config, tmp_path).stderr.split())
    assert (
        "held-out text is trained on: documents, 1 of text, that the held-out text has "
        "word for word, the first a.jsonl:4 = held.jsonl document 2 (doc-1)" in said
    )
    assert "stages.short.pack.drop_contaminated: true" in said
    assert (
        "copies are trained on: documents, 1 of more, that an earlier document has word "
        "for word, the first b/2.txt = a.jsonl:2;" in said
    )
    more = ("stages.short.pack.drop_contaminated=true",)
    assert (
        "held-out text is trained on"
        not in _pack(config, tmp_path, "--overwrite", more=more).stderr
    )


def test_shares_that_miss_the_weights_are_told(config: Path, tmp_path: Path) -> None:
    """Each time, as the plan that is there is no nearer to them."""
    chance, long = np.random.default_rng(9), tmp_path / "long"
    own = [chance.integers(4, VOCABULARY, n) for n in (900, *[20] * 40)]
    _store(long, own[:1], ["l.jsonl"], "line")
    _store(tmp_path / "more", own[1:], ["m.jsonl"] * 40, "line")
    weights = "stages.short.pack.weights={text: 0.3, more: 0.7}"
    more = (f"data.sources.text={{inputs: [], store: {long}}}", weights)
    for _ in range(2):
        said = " ".join(_pack(config, tmp_path, more=more).stderr.split())
        shares = json.loads(_pack(config, tmp_path, "--json", more=more).stdout)
        got = {name: of["share"] for name, of in shares["sources"].items()}
        assert got["text"] > 0.4
        assert (
            "stage short: stages.short.pack.weights are not met in shares of the plan's "
            f"tokens: text {got['text']:.1%} (asked for: 30.0%), more {got['more']:.1%} "
            "(asked for: 70.0%)" in said
        )
        assert "longest has 900 tokens where the plan has 1,024" in said
        assert "`stages.short.pack.long_docs: drop`" in said
    shown = _pack(config, tmp_path, "--inspect", more=more).output
    assert "asked" in shown and "70.00%" in shown


def test_shares_that_meet_the_weights_are_not(config: Path, tmp_path: Path) -> None:
    for seed, name in enumerate(("text", "more")):
        own = np.random.default_rng(seed).integers(4, VOCABULARY, (80, 20))
        _store(tmp_path / name, list(own), [f"{name}.jsonl"] * 80, "line")
    more = ("stages.short.pack.weights={text: 0.3, more: 0.7}",)
    assert "are not met" not in _pack(config, tmp_path, more=more).stderr
    shown = _pack(config, tmp_path, "--inspect", "--overwrite").output
    assert "asked" not in shown, "nothing was asked for"


def test_inspection_names_places(config: Path, tmp_path: Path) -> None:
    shown = _pack(config, tmp_path, "--inspect").output
    for place in ("a.jsonl:4", "b/2.txt = a.jsonl:2"):
        assert place in shown
    said = json.loads(_pack(config, tmp_path, "--inspect", "--json").stdout)
    assert said["held_out"]["text"] == {"same": 1, "nearly": 0, "first": ["a.jsonl:4"]}
    assert said["repeats"]["more"]["first"] == ["b/2.txt = a.jsonl:2"]
    assert said["context"]
    lean = json.loads(_pack(config, tmp_path, "--json").stdout)
    assert "context" not in lean and lean["rows"] == said["rows"]


def test_lengths_of_documents(config: Path, tmp_path: Path) -> None:
    said = json.loads(_pack(config, tmp_path, "--inspect", "--json").stdout)
    of = said["lengths"]["text"]
    lengths = sorted([300, 700, TWICE.size, HELD.size])
    assert (of["documents"], of["tokens"]) == (4, sum(lengths))
    quantiles = of["quantiles"]
    assert (quantiles["0"], quantiles["1"]) == (lengths[0], lengths[-1])
    assert of["histogram"] == [
        [128, 256, 2, TWICE.size + HELD.size],
        [256, 512, 1, 300],
        [512, 1024, 1, 700],
    ]
    shown = _pack(config, tmp_path, "--inspect").output
    assert "128 to 255" in shown and "median" in shown and "longest" in shown


def test_places_without_a_list_of_documents(tmp_path: Path) -> None:
    store = write_store(tmp_path / "bare", [TWICE, HELD], VOCABULARY)
    assert document_places(store, [1]) == [f"document 1 of {tmp_path / 'bare'}"]


def test_without_the_library_it_says_what_to_install(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alia_ctx.workflow.inspecting.find_spec", lambda name: None)
    shown = _pack(config, tmp_path, "--inspect").output
    assert "languages are not told" in shown and "alia-ctx[languages]" in shown
    said = json.loads(_pack(config, tmp_path, "--inspect", "--json").stdout)
    assert "py3langid" in said["languages"]["not_told"]


SENTENCES = {
    "ca": "Els documents llargs són els que ensenyen a llegir de lluny, i n'hi ha pocs.",
    "en": "Long documents are what teaches a model to read far, and there are few of them.",
    "eu": "Dokumentu luzeek irakasten dute urrutitik irakurtzen, eta gutxi daude.",
}


@pytest.mark.skipif(
    find_spec("py3langid") is None, reason="py3langid (extra `languages`) is missing"
)
def test_languages_of_real_sentences(tmp_path: Path) -> None:
    """Two documents of each language through a real tokenizer and back."""
    tokenizer = tmp_path / "bytes"
    save(byte_level(), tokenizer)
    texts = [f"{text} " * 9 for text in SENTENCES.values() for _ in range(2)]
    texts = [f"{text}{number}" for number, text in enumerate(texts)]
    source = write_jsonl(tmp_path / "source.jsonl", texts)
    path = write_run(tmp_path)
    overrides = [
        f"tokenizer={tokenizer}",
        "model.vocab_size=512",
        f"data.sources={{text: {{inputs: [{source}]}}}}",
        "data.append_eos=true",
        "evaluation.held_out=null",
        "stages.short.tokens=1024",
    ]
    run = load_run(path, overrides, stages=["short"])
    workflow.tokenize(run)
    seen = workflow.inspect_data(run, "short", workflow.pack(run, "short"))
    assert seen.languages == {
        "text": {name: pytest.approx(1 / 3) for name in SENTENCES}
    }
    assert "py3langid" in sys.modules
