"""The recipe of SmolLM2: its corpus and its retrieval text."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.evaluation.retrieval.haystack import Haystack
from scripts.smollm2.corpus import write_corpus
from scripts.smollm2.interruption import compare, kill_at
from scripts.smollm2.retrieval_text import EOS, RetrievalMix, retrieval_document
from scripts.smollm2.sizes import CONFIG, SMALL

_LETTERS = "".join(map(chr, range(32, 127))) + "\n"


def encode(text: str) -> list[int]:
    """A token a character, from 3 on: EOS is 2."""
    return [3 + _LETTERS.index(letter) for letter in text]


def decode(tokens: np.ndarray) -> str:
    return "".join(_LETTERS[token - 3] for token in tokens.tolist() if token != EOS)


@pytest.mark.parametrize("length", [600, 3_000, 20_000])
@pytest.mark.parametrize("similar, noise", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_answers_alone_are_trained_and_stand_in_the_text_before(
    length: int, similar: float, noise: float
) -> None:
    haystack = Haystack(["a line of text that says nothing\n" * 50], encode)
    mix = RetrievalMix(every=400, similar=similar, noise=noise)
    asked = 0
    for seed in range(4):
        random = np.random.default_rng(seed)
        tokens, weights = retrieval_document(length, haystack, encode, random, mix)
        assert tokens.shape == weights.shape == (length,)
        assert tokens[-1] == EOS and weights[-1] == 1
        edges = np.flatnonzero(np.diff(np.concatenate(([0], weights[:-1], [0]))))
        for start, stop in edges.reshape(-1, 2):
            answer, before = decode(tokens[start:stop]), decode(tokens[:start])
            if stop == length - 1:
                continue  # the last one may be cut
            assert answer.startswith(" ") and answer.endswith("\n")
            for part in answer.strip().split(", "):
                assert re.search(rf"\b{re.escape(part)}\b", before), (part, before)
            asked += 1
    assert asked >= 4


def test_documents_differ_by_their_numbers() -> None:
    haystack = Haystack(["some text\n"], encode)
    first, again, other = (
        retrieval_document(2_000, haystack, encode, np.random.default_rng(seed))[0]
        for seed in (1, 1, 2)
    )
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_corpus_holds_out_whole_packages(tmp_path: Path) -> None:
    manuals = tmp_path / "manuals"
    manuals.mkdir()
    for name in ("manuals", "held-out-short"):
        record = json.dumps({"id": name, "text": "text"}) + "\n"
        (manuals / f"{name}.jsonl").write_text(record)
    write_corpus(tmp_path / "text", characters=2_000_000, manuals=manuals)
    packages = {}
    for name in ("code", "held-out"):
        lines = (tmp_path / "text" / f"{name}.jsonl").read_text().splitlines()
        packages[name] = {json.loads(line)["id"].split("/")[0] for line in lines}
    assert packages["code"] and packages["held-out"]
    assert not packages["code"] & packages["held-out"]
    before = (tmp_path / "text" / "code.jsonl").read_bytes()
    write_corpus(tmp_path / "text", characters=1, manuals=manuals)
    assert (tmp_path / "text" / "code.jsonl").read_bytes() == before


def test_the_configuration_has_no_rule_broken_but_missing_files(tmp_path: Path) -> None:
    """Below a root that is not mounted nothing is looked for."""
    root = f"root={tmp_path / 'elsewhere'}"
    run = load_run(CONFIG, [root, *_model(), "cluster.ranks_per_node=2"])
    assert list(run.stages) == ["32k", "160k"]
    small = load_run(
        CONFIG, [root, *_model(), *SMALL.overrides, "stages.160k.layout.cp=1"]
    )
    assert small.stage("160k").context == 512


def test_calls_are_learnt_in_a_run_beside_the_one_that_extends(tmp_path: Path) -> None:
    """As scripts/smollm2/calls.sh starts it: an output may not lie inside another run's."""
    last = tmp_path / "smollm2" / "stages" / "160k" / "checkpoints" / "update-00000060"
    last.mkdir(parents=True)
    calls = CONFIG.with_name("smollm2-fc.yaml")
    start = [f"root={tmp_path / 'smollm2'}", f"stages.fc.init_from={last}", *_model()]
    with pytest.raises(ConfigError) as refused:
        load_run(calls, start)  # nothing has been made yet
    keys = {problem.key for problem in refused.value.problems}
    assert "tokenizer" in keys
    assert "output" not in keys, refused.value


def _model() -> list[str]:
    """The sizes, which the run takes from the checkpoint where that is at hand."""
    sizes = {
        "architecture": "llama",
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": "true",
    }
    return [f"model.{name}={value}" for name, value in sizes.items()]


def _log(stage: Path, losses: dict[int, float]) -> Path:
    stage.mkdir()
    lines = [
        json.dumps({"update": update, "loss": loss, "gradient_norm": 2 * loss})
        for update, loss in losses.items()
    ]
    # The last one is still being written.
    (stage / "metrics.jsonl").write_text("\n".join(lines) + '\n{"update": 9, "lo')
    return stage


def test_a_resume_is_compared_with_what_two_runs_differ_by(tmp_path: Path) -> None:
    whole = _log(tmp_path / "whole", {1: 4.0, 2: 2.0, 3: 2.0})
    killed = _log(tmp_path / "killed", {1: 4.0, 2: 2.2, 3: 1.0})
    found = compare(whole, killed, 2)
    assert found["before"]["loss"] == pytest.approx({"mean": 0.05, "greatest": 0.1})
    assert found["after"]["gradient_norm"] == {"mean": 0.5, "greatest": 0.5}
    with pytest.raises(DataError, match="no update past 3"):
        compare(whole, killed, 3)


def test_all_processes_of_a_command_are_killed_at_an_update(tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    child = "import time; time.sleep(600)"
    parent = (
        "import subprocess, sys, time; from pathlib import Path\n"
        f"other = subprocess.Popen([sys.executable, '-c', {child!r}], "
        "start_new_session=True)\n"
        f"stage = Path({str(stage)!r}); stage.mkdir()\n"
        "(stage / 'child').write_text(str(other.pid))\n"
        'line = \'{"update": 2, "loss": 1.0}\\n\'\n'
        "(stage / 'metrics.jsonl').write_text(line); time.sleep(600)\n"
    )
    kill_at([sys.executable, "-c", parent], stage, 2, dict(os.environ))
    pid = int((stage / "child").read_text())
    assert not psutil.pid_exists(pid) or (
        psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    )
    with pytest.raises(DataError, match="before update 3"):
        kill_at([sys.executable, "-c", "pass"], stage, 3, dict(os.environ))
