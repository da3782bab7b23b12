"""The RoPE that `init` proposes for a base that is scaled already, by transformers' own
frequencies.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_run
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.comparing_rope import base_rope
from tests.cli.beginning import SCALED, filled, init, said, write_base
from tests.hf_models import edit_json

pytestmark = pytest.mark.long


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory, as far as `init` reads it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_base(tmp_path / "mine")


@pytest.mark.parametrize("kind", [kind for kind in SCALED if kind != "dynamic"])
def test_a_scaled_base_keeps_its_scaling(kind: str, base: Path, tmp_path: Path) -> None:
    scaling = SCALED[kind]
    edit_json(base / "config.json", rope_scaling=scaling)
    made = init(base, "--context", "4k")
    assert made.exit_code == 0, said(made)
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    for stage in run.stages.values():
        assert stage.rope.type == scaling["rope_type"]
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast"):
            assert getattr(stage.rope, name) == scaling.get(name)
        original = scaling.get("original_max_position_embeddings")
        if original is not None:
            assert stage.rope.original_max_position_embeddings == original
            assert (stage.rope.factor or 0) * original >= stage.context
        if kind == "linear":  # 256 from before its factor: 512 by now
            assert stage.rope.factor == 2 * stage.context / 512
        # A temperature of the base's own is not its factor's.
        assert stage.rope.attention_factor == scaling.get("attention_factor")


def test_a_yarn_that_is_published_with_its_native_length_is_not_stretched_twice(
    base: Path, tmp_path: Path
) -> None:
    yarn = {**SCALED["yarn"], "original_max_position_embeddings": 256}
    edit_json(base / "config.json", rope_scaling=yarn)
    assert init(base, "--context", "1024").exit_code == 0
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    assert [stage.rope.factor for stage in run.stages.values()] == [4.0]


PUBLISHED: dict[str, tuple[dict[str, Any], int, str]] = {
    # Base, its length, and what the file says of the factor at eight times that.
    "factor beyond the length": (
        {**SCALED["llama3"], "factor": 32.0},
        256,
        "the factor becomes 256 = 32 x 2,048 / 256, 8 times as much",
    ),
    "factor at the length": (
        SCALED["llama3"],
        256,
        "the factor becomes 64 = 8 x 2,048 / 256, 8 times as much",
    ),
    "yarn beyond the length": (
        {**SCALED["yarn"], "factor": 16.0},
        256,
        "the factor becomes 128 = 16 x 2,048 / 256, 8 times as much",
    ),
    "linear": (
        SCALED["linear"],
        512,
        "the factor becomes 8 = 2 x 2,048 / 512, 4 times as much",
    ),
    "dynamic": (SCALED["dynamic"], 256, "llama3 with factor 8 turns fewer pairs"),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_no_angle_is_one_that_nobody_was_trained_on(
    kind: str, base: Path, tmp_path: Path
) -> None:
    """By transformers' frequencies: a pair that has completed no turn at what the base reads
    is turned no further. What was done to the factor is said.
    """
    scaling, reads, words = PUBLISHED[kind]
    edit_json(base / "config.json", rope_scaling=scaling)
    made = init(base, "--context", "16k")
    assert made.exit_code == 0, said(made)
    file = tmp_path / "mine.yaml"
    run = load_run(file, filled(tmp_path))
    own = RopeSpec(scaling["rope_type"], 1e4, **_fields(scaling))
    seen = frequencies(own, 256, reads) * reads
    for stage in run.stages.values():
        now = frequencies(stage.rope, stage.context, stage.context) * stage.context
        assert (now[seen < 2 * np.pi] <= seen[seen < 2 * np.pi] * (1 + 1e-5)).all()
    assert words in " ".join(file.read_text().replace("#", " ").split())
    offered = CliRunner().invoke(app, ["rope", str(file), *filled(tmp_path)])
    assert offered.exit_code == 0, said(offered)


def _fields(scaling: dict[str, Any]) -> dict[str, Any]:
    fields = {k: v for k, v in scaling.items() if k != "rope_type"}
    if scaling["rope_type"] == "dynamic":
        fields["original_max_position_embeddings"] = 256
    return fields


def test_of_two_readings_of_a_yarn_both_are_written(base: Path, tmp_path: Path) -> None:
    """As Qwen3 with its factor written in: room for answers beyond the original length."""
    yarn = {**SCALED["yarn"], "original_max_position_embeddings": 200}
    edit_json(base / "config.json", rope_scaling=yarn)
    made = init(base, "--context", "1600")
    assert "256 or 800 tokens" in made.output
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    assert [stage.rope.factor for stage in run.stages.values()] == [25.0]
    text = " ".join((tmp_path / "mine.yaml").read_text().replace("#", " ").split())
    assert "In that case write factor: 8." in text


LINEAR = {"rope_type": "linear", "factor": 4.0}


def frequencies(rope: RopeSpec, published: int, length: int) -> np.ndarray:
    """Of heads of 16 at rows of a length, by transformers."""
    fields = {k: v for k, v in vars(rope).items() if v is not None}
    parameters = {"rope_type": fields.pop("type"), "rope_theta": fields.pop("theta")}
    if rope.type == "dynamic":
        published = fields.pop("original_max_position_embeddings")
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=published,
        rope_parameters={**parameters, **fields},
    )
    if rope.type == "default":
        return np.asarray(rope.theta ** -(np.arange(0, 16, 2) / 16))
    made, _ = ROPE_INIT_FUNCTIONS[rope.type](config, "cpu", seq_len=length)
    return np.asarray(made.double().numpy())


@pytest.mark.parametrize(
    ("about", "reads"),
    [
        ({}, 1024),  # as transformers documents it
        ({"max_sequence_length": 1024}, 1024),
        ({"max_sequence_length": 256}, 256),
        ({"tokenizer": 1024}, 1024),
        ({"tokenizer": 256}, 256),
        ({"tokenizer": 1 << 40}, 1024),
        ({"export": True}, 256),
    ],
)
def test_a_linear_base_is_stretched_from_what_it_reads(
    about: dict[str, Any], reads: int, base: Path, tmp_path: Path
) -> None:
    """By as much as the context grows over it, on top of its own factor: the furthest angle
    is the one that it was trained to.
    """
    said_at = dict(about)
    if "tokenizer" in said_at:
        length = said_at.pop("tokenizer")
        edit_json(base / "tokenizer_config.json", model_max_length=length)
    if said_at.pop("export", None):
        (base / "alia_ctx_export.json").write_text("{}")
    edit_json(base / "config.json", rope_scaling=LINEAR, **said_at)
    made = init(base, "--context", "16k")
    assert made.exit_code == 0, said(made)
    file = tmp_path / "mine.yaml"
    run = load_run(file, filled(tmp_path))
    before = frequencies(RopeSpec("linear", 1e4, factor=4.0), 256, reads) * reads
    for stage in run.stages.values():
        now = frequencies(stage.rope, stage.context, stage.context) * stage.context
        assert now == pytest.approx(before, rel=1e-5)  # fp32 on both sides
    asks = not about or about.get("tokenizer") == 1 << 40
    text = " ".join(file.read_text().replace("#", " ").split())
    assert ("Not known: whether the 256 tokens" in text) == asks
    assert ("In that case write factor: 32." in text) == asks  # 4 x 2,048 / 256
    assert ("1,024 or 256 tokens" in made.output) == asks
    base_rope_, trained = compare_base(run)
    assert (base_rope_.factor, trained) == (4.0, reads)


@pytest.mark.parametrize("scaling", [None, *SCALED.values()])
def test_no_base_is_stretched_back_or_beyond(
    scaling: dict[str, Any] | None, base: Path, tmp_path: Path
) -> None:
    """No frequency of the base is raised, and none falls by more than the context grows."""
    if scaling is not None:
        edit_json(base / "config.json", rope_scaling=scaling)
    assert init(base, "--context", "4k").exit_code == 0
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    rope, trained = compare_base(run)
    before = frequencies(rope, trained, trained)
    for stage in run.stages.values():
        ratio = frequencies(stage.rope, stage.context, stage.context) / before
        assert ratio.max() <= 1 + 1e-5
        # A factor has to reach the context (`RopeSpec.problems`), which that of Llama
        # 3.1 does not: 16 x 8 = 128 tokens of its 256.
        reach = rope.original_max_position_embeddings
        seen = min(256, (reach or 256) * (rope.factor or 1))
        # A small base that is not scaled gets the last stage's factor at once.
        last = 4096 if scaling is None else stage.context
        assert ratio.min() >= seen / last * (1 - 1e-5)


def compare_base(run: Any) -> tuple[RopeSpec, int]:
    return base_rope(run, next(iter(run.stages)))


def test_what_servers_make_of_a_dynamic_rope_is_said(
    base: Path, tmp_path: Path
) -> None:
    """By `check`, once a stage; `init` proposes one that all programs read alike."""
    edit_json(base / "config.json", rope_scaling=SCALED["dynamic"])
    made = init(base, "--context", "4k", "--overwrite")
    assert made.exit_code == 0 and "dynamic RoPE" not in made.output
    file = tmp_path / "mine.yaml"
    stages = list(yaml.safe_load(file.read_text())["stages"])
    rope = "{type: dynamic, theta: 10000, factor: 4, original_max_position_embeddings: 256}"
    dynamic = [f"stages.{name}.rope={rope}" for name in stages]
    for overrides, count in ((dynamic, len(stages)), ([], 0)):
        words = ["check", str(file), *filled(tmp_path), *overrides]
        checked = CliRunner().invoke(app, words)
        assert checked.exit_code == 0, checked.output
        assert checked.output.count("it is trained with one base") == count
        assert checked.output.count("take llama3 or yarn") == count
