"""What the stages trained is what transformers loads:

logits of the engine itself against the exported directory.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.packing import PackedRow
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.spec.layout import Layout
from tests.distributed import run_distributed
from tests.small_run import VOCABULARY, write_run

# fp32 on both sides, another order of sums through two layers; logits here are of order 1.
TOLERANCE = 1e-4
CONTEXT = 256


def train_and_export(rank: int, path: str) -> tuple[str, np.ndarray]:
    """Both stages, the export, and the engine's logits [256, vocabulary] for one document."""
    from alia_ctx.mcore.engine import MegatronEngine
    from alia_ctx.mcore.runtime import Distributed

    run = load_run(path)
    for stage in run.stages:
        workflow.pack(run, stage)
        workflow.train(run, stage)
    directory = workflow.export(run, "long")
    last = checkpoint.latest(Path(run.output) / "stages/long/checkpoints")
    manifest = checkpoint.read_manifest(last)
    with Distributed(run.engine):
        engine = MegatronEngine(
            run.model, manifest.rope, CONTEXT, Layout(), run.engine, None
        )
        engine.load(last / checkpoint.STATE, with_optimizer=False)
        logits = engine.logits(PackedRow.from_documents([document()], CONTEXT))
    return str(directory), logits.numpy()


def document() -> np.ndarray:
    return np.random.default_rng(3).integers(4, VOCABULARY, CONTEXT)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, np.ndarray]:
    folder = tmp_path_factory.mktemp("export")
    path = write_run(folder)
    # A real tokenizer in the place of the stub; its 262 tokens are more than the stub's model has.
    run = yaml_with(path, vocab_size=512)
    (folder / "words.jsonl").write_text(
        '{"text": "' + "la casa de la mar blava i el cel clar " * 40 + '"}\n'
    )
    (folder / "tokenizer" / "tokenizer.json").unlink()
    train_tokenizer([folder / "words.jsonl"], folder / "tokenizer", 270)
    return run_distributed(train_and_export, 1, str(run), timeout=240)[0]


def yaml_with(path: Path, **model: Any) -> Path:
    import yaml

    raw = yaml.safe_load(path.read_text())
    raw["model"] |= model
    path.write_text(yaml.safe_dump(raw, sort_keys=False))
    return path


def test_logits_match_at_every_position(exported: Any) -> None:
    from transformers import AutoModelForCausalLM

    directory, ours = exported
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(document())[None]).logits[0].numpy()
    assert np.abs(ours).max() > 0.5, "a trained model has logits to compare"
    assert np.abs(ours - theirs).max() < TOLERANCE


def test_config_carries_the_last_stage(exported: Any) -> None:
    from transformers import AutoConfig, AutoTokenizer

    config = AutoConfig.from_pretrained(exported[0])
    assert config.max_position_embeddings == CONTEXT
    rope = dataclasses.asdict(
        load_run(Path(exported[0]).parents[2] / "run.yaml").stage("long").rope
    )
    assert config.rope_parameters["rope_type"] == rope["type"] == "llama3"
    for name in (
        "factor",
        "original_max_position_embeddings",
        "low_freq_factor",
        "high_freq_factor",
    ):
        assert config.rope_parameters[name] == rope[name]
    tokenizer = AutoTokenizer.from_pretrained(exported[0])
    assert tokenizer.decode(tokenizer("la mar").input_ids) == "la mar"
