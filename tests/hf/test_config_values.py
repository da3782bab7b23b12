"""Values of `config.json` that are of the wrong type, or that contradict each other,
are named.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.config import read_config, write_config
from tests.hf.configs import config_of, put

# -- types -----------------------------------------------------------------------------

# Not the first of its kind anywhere: each key, with each value that is not of its type.
WRONG_NUMBERS = ["2", True, [2], {}, float("nan"), float("inf"), -1, 0, 2.5]
INTEGERS = [
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
]


def refused(directory: Path, config: dict[str, Any]) -> str:
    """What the refusal of `config` says."""
    with pytest.raises(CheckpointError) as caught:
        read_config(put(directory, config))
    assert "config.json: this model cannot be expressed" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("value", WRONG_NUMBERS, ids=repr)
@pytest.mark.parametrize("key", INTEGERS)
def test_an_integer_of_another_type_is_named(
    tmp_path: Path, key: str, value: Any
) -> None:
    config = {**config_of("llama", "default"), key: value}
    assert f"{key}={value!r}" in refused(tmp_path, config)


@pytest.mark.parametrize("value", ["1e-5", True, [1], float("nan"), None], ids=repr)
@pytest.mark.parametrize("key", ["rms_norm_eps", "initializer_range", "rope_theta"])
def test_a_number_of_another_type_is_named(
    tmp_path: Path, key: str, value: Any
) -> None:
    config = config_of("llama", "default")
    del config["rope_parameters"]
    assert f"{key}={value!r}" in refused(tmp_path, {**config, key: value})


@pytest.mark.parametrize("value", ["8", True, [8], float("inf"), {}], ids=repr)
@pytest.mark.parametrize(
    "rope, key",
    [
        ("linear", "factor"),
        ("linear", "rope_theta"),
        ("llama3", "low_freq_factor"),
        ("llama3", "original_max_position_embeddings"),
        ("yarn", "beta_fast"),
        ("yarn", "attention_factor"),
    ],
)
def test_a_rope_value_of_another_type_is_named(
    tmp_path: Path, rope: str, key: str, value: Any
) -> None:
    config = config_of("llama", rope)
    config["rope_parameters"] = {**config["rope_parameters"], key: value}
    assert f"rope_parameters.{key}={value!r}" in refused(tmp_path, config)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'"),
        ({"layer_types": 5}, "layer_types=5"),
        ({"layer_types": [{}]}, "layer_types=[{}]"),
        ({"rope_parameters": []}, "rope_parameters=[]"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type=['yarn']"),
        ({"rope_parameters": {"rope_type": None}}, "rope_type=None"),
        (
            {"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2}},
            "rope_parameters.type='yarn': contradicts",
        ),
        ({"rope_parameters": {"rope_theta": None}}, "rope_parameters.rope_theta=None"),
        ({"transformers_weights": "x.safetensors"}, "transformers_weights=x"),
    ],
)
def test_other_values_of_the_wrong_type_are_named(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    assert said in refused(tmp_path, {**config_of("llama", "default"), **changes})


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    config = {**config_of("llama", "default"), "head_dim": "16", "vocab_size": None}
    said = refused(tmp_path, {**config, "hidden_act": "gelu"})
    assert all(key in said for key in ("head_dim=", "vocab_size=", "hidden_act="))


def test_whole_floats_and_dropout_refuse_no_model(tmp_path: Path) -> None:
    config = config_of("llama", "llama3")
    expected = read_config(put(tmp_path / "ints", config))
    config |= {key: float(config[key]) for key in INTEGERS if config.get(key)}
    config |= {"attention_dropout": 0.1}
    parameters = config["rope_parameters"]
    parameters["original_max_position_embeddings"] = 32.0
    read = read_config(put(tmp_path / "floats", config))
    assert read == expected
    written = write_config(*read, torch.bfloat16, config)
    assert all(type(written[key]) is int for key in INTEGERS)


# -- contradictions --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("rope", ["default", "linear", "yarn"])
def test_two_bases_are_refused(tmp_path: Path, form: str, rope: str) -> None:
    config = config_of("llama", rope)
    parameters = config.pop("rope_parameters")
    config |= {form: parameters, "rope_theta": parameters["rope_theta"]}
    assert read_config(put(tmp_path / "one", config))
    said = refused(tmp_path / "two", {**config, "rope_theta": 1234.0})
    assert "rope_theta=1234" in said and f"{form}.rope_theta=" in said


def test_a_base_in_one_of_two_descriptions_is_refused(tmp_path: Path) -> None:
    """transformers 5 reads rope_scaling, whose base would be the default 10,000."""
    linear = {"rope_type": "linear", "factor": 4.0}
    config = config_of("llama", "default") | {
        "rope_scaling": linear,
        "rope_parameters": {**linear, "rope_theta": 500000.0},
    }
    assert "rope_scaling gives" in refused(tmp_path, config)


def test_a_length_inside_dynamic_that_transformers_ignores(tmp_path: Path) -> None:
    config = config_of("llama", "dynamic")
    config["rope_parameters"]["original_max_position_embeddings"] = 64
    assert "max_position_embeddings=128" in refused(tmp_path, config)


def test_two_original_lengths_are_refused(tmp_path: Path) -> None:
    config = {**config_of("llama", "llama3"), "original_max_position_embeddings": 64}
    with pytest.raises(
        CheckpointError, match=r"original_max_position_embeddings=64: contradicts .*=32"
    ):
        read_config(put(tmp_path, config))


def test_qwen_names_a_window_that_is_off(tmp_path: Path) -> None:
    config = config_of("qwen2", "default", sliding_window=4096)
    assert (
        read_config(put(tmp_path, {**config, "sliding_window": 4096}))[0].architecture
        == "qwen2"
    )
    with pytest.raises(CheckpointError, match="use_sliding_window=True"):
        read_config(
            put(
                tmp_path, {**config, "sliding_window": 4096, "use_sliding_window": True}
            )
        )
