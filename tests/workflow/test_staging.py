"""Text on a host's own disk: the files of its stores and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from alia_ctx.checkpoint.opening import OneRank
from alia_ctx.config import load_run
from alia_ctx.config.run import RunConfig
from alia_ctx.data.chat import write_chat_store
from alia_ctx.data.documents import ChatSpec, SourceSpec
from alia_ctx.data.tokens import TokenStore, tokenize_source, write_store
from alia_ctx.data.tokens.said import said_of
from alia_ctx.workflow.staging import staged
from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.small_run import VOCABULARY, write_run

NAMES = ("text", "text.v2", "[v1]wiki")


def staging_run(folder: Path, stores: dict[str, Path]) -> RunConfig:
    path = write_run(folder / "run")
    document = yaml.safe_load(path.read_text())
    document["data"]["sources"] = {"text": {"store": str(folder / "run" / "text")}}
    document["data"]["stage_to"] = str(folder / "own")
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    run = load_run(path)
    sources = {name: SourceSpec(store=str(p)) for name, p in stores.items()}
    return replace(run, data=replace(run.data, sources=sources))


def copies(run: RunConfig) -> dict[str, set[str]]:
    """File names on the host's own disk, by source."""
    there = staged(run, "short", OneRank()).data.sources
    folders = {name: Path(str(spec.store)).parent for name, spec in there.items()}
    return {
        name: {f.name for f in folder.iterdir()} for name, folder in folders.items()
    }


def test_of_a_store_made_elsewhere_its_corpus_is_not_copied(tmp_path: Path) -> None:
    stores = {}
    for number, name in enumerate(NAMES):
        stores[name] = tmp_path / name
        write_store(tmp_path / name, [np.arange(9) + number], VOCABULARY)
        for other in ("jsonl", "json", "txt", "documents.parquet", "weights", "said"):
            (tmp_path / f"{name}.{other}").write_text("the corpus")
    expected = {n: {f"{n}.bin", f"{n}.idx", f"{n}.range.json"} for n in NAMES}
    run = staging_run(tmp_path, stores)
    assert copies(run) == expected
    assert copies(run) == expected  # and taken again


@pytest.mark.parametrize("kind", ["text", "chat"])
def test_of_a_store_that_was_tokenised_all_files_are_copied(
    tmp_path: Path, kind: str
) -> None:
    tokenizer = save_chat_tokenizer("byte level", tmp_path / "tokenizer")
    for name in NAMES:
        record = (
            '{"text": "%s"}'
            if kind == "text"
            else (
                '{"messages": [{"role": "user", "content": "%s"},'
                ' {"role": "assistant", "content": "rare"}]}'
            )
        )
        (tmp_path / "in.jsonl").write_text(record % name)
        inputs = [str(tmp_path / "in.jsonl")]
        if kind == "text":
            tokenize_source(SourceSpec(inputs), name, tokenizer, tmp_path / "made")
        else:
            spec = SourceSpec(inputs, chat=ChatSpec())
            write_chat_store(spec, name, tokenizer, tmp_path / "made")
    made = {file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()}
    run = staging_run(tmp_path, {name: tmp_path / "made" / name for name in NAMES})
    run = replace(run, model=replace(run.model, vocab_size=1 << 16))
    (tmp_path / "made" / "text.jsonl").write_text("the corpus")
    assert set().union(*copies(run).values()) == set(made)
    assert sum(map(len, copies(run).values())) == len(made)
    shutil.rmtree(tmp_path / "made")
    for file in (tmp_path / "own").rglob("*.*"):
        assert file.is_dir() or file.read_bytes() == made[file.name]


def test_loss_weights_go_along_where_nothing_says_who_made_the_store(
    tmp_path: Path,
) -> None:
    write_store(tmp_path / "text", [np.arange(9)], VOCABULARY, [np.arange(9) > 4])
    (tmp_path / "text.said").write_bytes(bytes(9))
    run = staging_run(tmp_path, {"text": tmp_path / "text"})
    [spec] = staged(run, "short", OneRank()).data.sources.values()
    store = TokenStore(str(spec.store))
    assert store.weights is not None and store.weights.tolist() == [0] * 5 + [1] * 4
    assert said_of(store) is not None
