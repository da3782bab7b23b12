"""scripts/demo.py with a user's own text, up to the configuration that it runs."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import pytest

from alia_ctx.config.load import load_run
from tests.paths import ROOT


def demo_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts/demo.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_own_text_takes_the_place_of_the_demos(tmp_path: Path) -> None:
    words = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [
        json.dumps(
            {
                "text": " ".join(
                    "".join(words.choices(letters, k=17)) for _ in range(1500)
                )
            }
        )
        for _ in range(10)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    output = tmp_path / "{out} 2024"  # a name that YAML and interpolation could misread
    config = demo_script().prepare(
        argparse.Namespace(text=[str(tmp_path / "mine.jsonl")], output=output)
    )
    run = load_run(config)
    assert run.name == output.name
    made = ["retrieval_128", "retrieval_1024", "retrieval_5120"]
    assert list(run.data.sources) == [*made, "own"]
    assert run.data.sources["own"].inputs == [f"{output}/text/own.jsonl"]
    assert run.evaluation.held_out is not None
    assert run.evaluation.held_out.inputs == [
        f"{output}/text/heldout_retrieval.jsonl",
        f"{output}/text/heldout.jsonl",
    ]
    assert run.tokenizer == f"{output}/tokenizer"
    assert list(run.stages) == ["base", "x8", "x40"]
    for stage in run.stages.values():
        weights = stage.pack.weights
        assert weights["own"] == 0.15 and sum(weights.values()) == pytest.approx(1)
        assert set(stage.pack.sources or run.data.sources) == set(weights)
