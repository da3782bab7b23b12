"""The matrix of releases: one cell is green for the installed one, and each mistake is red."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT


@pytest.fixture(scope="module")
def module() -> Any:
    file = ROOT / "scripts/conversion_matrix.py"
    spec = importlib.util.spec_from_file_location("conversion_matrix", file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules["conversion_matrix"] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def test_a_cell_is_green_and_each_mistake_is_red(
    module: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FAMILIES", {"Llama": module.FAMILIES["Llama"]})
    monkeypatch.setattr(module, "ROPES", {"llama3": module.ROPES["llama3"]})
    (case,) = module.build(tmp_path)
    _, (got,) = module.read_all(sys.executable, module.sequence(), [case.export])
    assert module.problems(case, got) == []
    facts = got["facts"]
    mistakes: dict[str, dict[str, Any]] = {
        "max_position_embeddings is 16": {
            "facts": {**facts, "max_position_embeddings": 16}
        },
        "eos_token_id is 2": {"facts": {**facts, "eos_token_id": 2}},
        "other RoPE": {"facts": {**facts, "inv_freq": [1.0] * 8}},
        "attention factor": {"facts": {**facts, "attention_scaling": 1.1}},
        "logits differ": {"logits": got["logits"] * 1.001},
        "other ids": {"text": got["text"][1:]},
        "generation ends at 16": {"endless": got["endless"][:16]},
        "which ends it": {"ended": got["endless"]},
    }
    for said, change in mistakes.items():
        (problem,) = module.problems(case, {**got, **change})
        assert said in problem


def test_a_release_that_a_rope_needs_is_said(module: Any) -> None:
    assert module.least_version(module.ROPES["yarn, all options"], module.CONTEXT)
    assert not module.least_version(module.ROPES["yarn, factor 40"], module.CONTEXT)
