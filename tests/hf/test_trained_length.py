"""How many tokens a model reads, for each way in which lengths are published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.scoring import CausalModel
from alia_ctx.hf.targets import _sum
from alia_ctx.hf.trained_length import read_length, trained_length
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.evaluated_models import of_directory
from tests.hf.exports import trained
from tests.hf_models import CONTEXT, edit_json, make_model, save_model, tokens

TRAINED, ORIGINAL, FACTOR = 192, CONTEXT, 8.0
REACH = 1024
# type -> RoPE, what config.json publishes, what is read where nothing else is stated
EXPORTED = {
    "default": (RopeSpec("default", 10000.0), TRAINED, TRAINED),
    "linear": (RopeSpec("linear", 10000.0, 1.5), TRAINED, TRAINED),
    "dynamic": (RopeSpec("dynamic", 10000.0, FACTOR, ORIGINAL), ORIGINAL, REACH),
    "yarn": (RopeSpec("yarn", 10000.0, FACTOR, ORIGINAL), REACH, REACH),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_reads_what_it_was_trained_on(name: str, tmp_path: Path) -> None:
    """Whatever config.json has to say for transformers: the original length of a dynamic
    RoPE, the reach of YaRN. One that does not state it reads what its config.json says,
    and so does one whose config.json is another by now.
    """
    rope, published, otherwise = EXPORTED[name]
    save_model(tmp_path / "base")
    import_hf(tmp_path / "base", tmp_path / "ck")
    out = tmp_path / "out"
    export_hf(trained(tmp_path / "ck", TRAINED, rope), out)
    config = json.loads((out / "config.json").read_text())
    assert config["max_position_embeddings"] == published
    assert of_directory(out).context == TRAINED
    assert trained_length(out, rope, published).tokens == TRAINED

    edit_json(out / "config.json", an_owner="edited it")
    assert of_directory(out).context == otherwise
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    assert of_directory(out).context == TRAINED
    statement = json.loads((out / "alia_ctx_export.json").read_text())
    del statement["checksum"], statement["made_from"]["context"]
    sealed = {**statement, "checksum": _sum(statement)}
    (out / "alia_ctx_export.json").write_text(json.dumps(sealed))
    assert of_directory(out).context == otherwise
    edit_json(out / "alia_ctx_export.json", made_from={"context": 7})
    assert of_directory(out).context == otherwise  # a statement that was changed


@pytest.mark.parametrize(
    ("rope", "length"),
    [
        ({"rope_type": "default"}, 64),
        ({"rope_type": "linear", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 4.0}, 256),
        ({"rope_type": "dynamic", "factor": 1.0}, 64),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 64,
            },
            256,
        ),
        (
            {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            64,
        ),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_what_others_publish(
    family: str, rope: dict[str, Any], length: int, tmp_path: Path
) -> None:
    """By the engine's families and by those that only transformers reads."""
    changes: dict[str, Any] = {"max_position_embeddings": 64}
    if family == "gpt_neox":
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

        sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 1}
        sizes |= {"num_attention_heads": 2, "intermediate_size": 64, **changes}
        full = {"rope_theta": 10000.0, "partial_rotary_factor": 0.5, **rope}
        config = GPTNeoXConfig(**sizes, rope_parameters=full)
        GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    else:
        make_model("llama", **changes).save_pretrained(tmp_path)
        full = {"rope_theta": 10000.0, **rope}
        edit_json(tmp_path / "config.json", rope_parameters=full)
    assert of_directory(tmp_path).context == length


def test_a_length_that_is_stated_beside_a_linear_rope(tmp_path: Path) -> None:
    rope = RopeSpec("linear", 10000.0, 4.0)
    for stated, length in ((256, 256), (64, 64), (100, 256)):
        (tmp_path / "config.json").write_text(json.dumps({"max_seq_len": stated}))
        assert read_length(tmp_path, rope, 64) == length


@pytest.mark.parametrize("rope", ["dynamic", "default"])
def test_losses_do_not_depend_on_what_was_read_before(
    rope: str, tmp_path: Path
) -> None:
    save_model(tmp_path / "m", rope=rope, dtype=torch.float32)
    long, middle = tokens(4 * CONTEXT).numpy(), tokens(2 * CONTEXT).numpy()
    model = CausalModel(tmp_path / "m", "fp32")
    assert model.turns_by_length == (rope == "dynamic")
    alone, _ = model.losses_and_hits(middle)
    model.losses_and_hits(long)
    again, _ = model.losses_and_hits(middle)
    assert np.array_equal(alone, again)
