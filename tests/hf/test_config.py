"""config.json in both directions:

what it says survives, what we cannot compute is refused by name.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.config import read_config, write_config
from alia_ctx.hf.rope_config import least_version
from alia_ctx.nn.rotary import inverse_frequencies
from alia_ctx.spec.rope import RopeSpec
from tests.dense import ALIA_160K
from tests.hf.configs import config_of, put
from tests.hf_models import ALIA, CONTEXT, FAMILIES, ROPES, SIZES, logits, make_model
from tests.paths import ROOT


def upstream_frequencies(config: Any) -> tuple[torch.Tensor, float]:
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rotary = LlamaRotaryEmbedding(config)
    rotary(torch.zeros(1), torch.tensor([[0, config.max_position_embeddings - 1]]))
    return rotary.inv_freq, rotary.attention_scaling


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_the_round_trip(
    tmp_path: Path, family: str, rope: str
) -> None:
    from transformers import AutoConfig

    original = config_of(family, rope)
    model, spec, context = read_config(put(tmp_path / "in", original))
    written = write_config(model, spec, context, torch.bfloat16, original)
    before = AutoConfig.from_pretrained(tmp_path / "in")
    after = AutoConfig.from_pretrained(put(tmp_path / "out", written))
    ours, theirs = after.to_dict(), before.to_dict()
    # transformers 5 keeps the dtype apart from the model; all else is the same, special
    # tokens included.
    assert {k for k in ours if ours[k] != theirs.get(k)} <= {
        "dtype",
        "_name_or_path",
        "head_dim",
        # Said twice for llama.cpp, and the same.
        "original_max_position_embeddings",
    }
    assert ours.get("original_max_position_embeddings") == theirs[
        "rope_parameters"
    ].get("original_max_position_embeddings" if rope == "llama3" else "")
    assert ours["head_dim"] == model.head_dim == theirs.get("head_dim", 16)
    assert read_config(tmp_path / "out") == (model, spec, context)
    frequencies, scaling = upstream_frequencies(after)
    expected, expected_scaling = inverse_frequencies(spec, model.head_dim, context)
    assert torch.equal(frequencies, expected) and scaling == expected_scaling


@pytest.mark.parametrize("rope", ROPES)
def test_the_form_of_transformers_4_is_the_same_model(
    tmp_path: Path, rope: str
) -> None:
    config = config_of("llama", rope)
    parameters = config.pop("rope_parameters")
    expected = read_config(
        put(tmp_path / "v5", {**config, "rope_parameters": parameters})
    )
    theta = parameters.pop("rope_theta")
    scaling = None if rope == "default" else parameters
    assert (
        read_config(
            put(
                tmp_path / "v4",
                {**config, "rope_theta": theta, "rope_scaling": scaling},
            )
        )
        == expected
    )
    if scaling:
        old = {**scaling, "type": scaling["rope_type"]}
        del old["rope_type"]
        assert (
            read_config(
                put(
                    tmp_path / "old",
                    {**config, "rope_theta": theta, "rope_scaling": old},
                )
            )
            == expected
        )


def test_a_later_stage_states_its_own_rope_and_context(tmp_path: Path) -> None:
    from transformers import AutoConfig

    base = {
        "model_type": "llama",
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "max_position_embeddings": 4096,
        "eos_token_id": 2,
        "_comment": "kept",
    }
    written = write_config(ALIA, ALIA_160K, 163840, torch.bfloat16, base)
    wanted = {
        "rope_type": "llama3",
        "factor": 40.0,
        "original_max_position_embeddings": 4096,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
    }
    assert written["rope_scaling"] == wanted
    assert written["rope_parameters"] == {**wanted, "rope_theta": 10000.0}
    assert (
        written["max_position_embeddings"],
        written["eos_token_id"],
        written["_comment"],
    ) == (163840, 2, "kept")
    assert read_config(put(tmp_path, written)) == (ALIA, ALIA_160K, 163840)
    frequencies, _ = upstream_frequencies(AutoConfig.from_pretrained(tmp_path))
    assert torch.equal(frequencies, inverse_frequencies(ALIA_160K, 128, 163840)[0])


def test_dynamic_keeps_its_original_length_where_transformers_looks_for_it(
    tmp_path: Path,
) -> None:
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    rope = RopeSpec("dynamic", 10000.0, 4.0, 4096)
    written = write_config(ALIA, rope, 16384, torch.bfloat16)
    assert written["max_position_embeddings"] == 4096
    rotary = LlamaRotaryEmbedding(AutoConfig.from_pretrained(put(tmp_path, written)))
    rotary(torch.zeros(1), torch.arange(16384)[None])
    expected = inverse_frequencies(rope, 128, 16384)[0]
    # transformers forms the grown base in fp32 (its length is a tensor), we in fp64:
    # 1e-6 covers the rounding.
    torch.testing.assert_close(rotary.inv_freq, expected, rtol=1e-6, atol=0)
    assert not torch.allclose(
        expected, inverse_frequencies(rope, 128, 4096)[0], rtol=1e-2
    )


@pytest.mark.parametrize(
    "context, factor, original, stated, least",
    [
        (256, 40.0, 64, 2560, None),  # 4.51 to 4.55 would read 256 / 64
        (256, 4.0, 64, 256, None),
        (100, 2.5, 64, 160, None),
        (100, 1.7, 64, 100, "4.56"),  # 108.8 is no length
    ],
)
def test_yarn_is_read_alike_where_factor_is_not_the_ratio_of_lengths(
    tmp_path: Path,
    context: int,
    factor: float,
    original: int,
    stated: int,
    least: str | None,
) -> None:
    rope = RopeSpec("yarn", 10000.0, factor, original)
    written = write_config(ALIA, rope, context, torch.bfloat16)
    assert written["max_position_embeddings"] == stated
    assert read_config(put(tmp_path, written))[1] == rope
    assert least_version(rope, context) == least
    # The rule of 4.51 to 4.55: the factor is the ratio, whatever `factor` says.
    assert (stated / original == factor) == (least is None)
    assert least_version(replace(rope, truncate=False), context) == (least or "4.55")


def test_absent_keys_mean_what_transformers_makes_of_them(tmp_path: Path) -> None:
    config = {
        key: SIZES[key]
        for key in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "max_position_embeddings",
        )
    }
    model, rope, context = read_config(put(tmp_path, {**config, "model_type": "llama"}))
    assert (model.num_key_value_heads, model.head_dim, model.rms_norm_eps) == (
        4,
        16,
        1e-6,
    )
    assert (rope, context) == (RopeSpec("default", 10000.0), CONTEXT)
    with pytest.raises(CheckpointError, match="sliding_window=4096"):
        read_config(
            put(tmp_path, {**config, "num_attention_heads": 8, "model_type": "mistral"})
        )
    # Qwen3 assumes 128, not hidden_size / heads.
    assert (
        read_config(
            put(tmp_path, {**config, "model_type": "qwen3", "num_attention_heads": 32})
        )[0].head_dim
        == 128
    )


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model_type": "gemma2"}, "model_type='gemma2'"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification",
        ),
        ({"hidden_act": "gelu"}, "hidden_act=gelu"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config="),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"sliding_window": 4096}, "sliding_window=4096"),
        ({"is_causal": False}, "is_causal=False: is not supported; take it out"),
        ({"is_causal": None}, "is_causal: is not supported; take it out"),
        ({"is_causal": 0}, "is_causal=0: is not supported; take it out"),
        ({"use_bidirectional_attention": "all"}, "use_bidirectional_attention=all"),
        ({"attention_chunk_size": 8192}, "attention_chunk_size=8192"),
        (
            {"per_layer_config": {"0": {"sliding_window": 4}}},
            "per_layer_config={'0': {'sliding_window': 4}}",
        ),
        ({"hidden_size": None}, "hidden_size=None"),
        ({"num_hidden_layers": "4"}, "num_hidden_layers='4'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3"),
        ({"head_dim": 15}, "head_dim=15"),
        (
            {"rope_parameters": {"rope_type": "longrope", "short_factor": [1]}},
            "longrope",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                }
            },
            "low_freq_factor",
        ),
        ({"rope_parameters": {"rope_type": "linear", "factor": "4"}}, "factor='4'"),
        (
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "mrope_section": [1],
                }
            },
            "mrope_section",
        ),
        (
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "partial_rotary_factor": 0.25,
                }
            },
            "partial_rotary_factor",
        ),
        ({"rope_parameters": {"rope_type": "default", "factor": 2.0}}, "factor=2.0"),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "rope_parameters gives",
        ),
        ({"rope_parameters": "yarn"}, "rope_parameters='yarn'"),
    ],
)
def test_what_we_cannot_compute_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    config = {**config_of("llama", "default"), **changes}
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        read_config(put(tmp_path, config))
    assert said in str(caught.value)


def test_keys_that_say_what_we_compute_are_no_reason_to_refuse(tmp_path: Path) -> None:
    inert = {
        "is_causal": True,
        "use_bidirectional_attention": False,
        "attention_chunk_size": None,
        "per_layer_config": None,
    }
    config = config_of("llama", "default")
    read = read_config(put(tmp_path / "plain", config))
    assert read_config(put(tmp_path / "more", {**config, **inert})) == read


_OTHER_PYTHON = Path(
    os.environ.get("ALIA_CTX_TRANSFORMERS4", ROOT / ".venv-tf4.57/bin/python")
)
_READ_IN_4 = """
import json, sys, torch
from pathlib import Path
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
assert transformers.__version__.startswith("4.57"), transformers.__version__
for folder in map(Path, sys.argv[1:]):
    assert AutoConfig.from_pretrained(folder).max_position_embeddings
    model = AutoModelForCausalLM.from_pretrained(
    folder, dtype=torch.float32, attn_implementation="eager"
).eval()
    with torch.no_grad():
        logits = model(torch.load(folder / "tokens.pt")[None]).logits[0]
    torch.save(logits, folder / "logits.pt")
"""


@pytest.mark.skipif(
    not _OTHER_PYTHON.exists(),
    reason=(
        "no transformers 4.57 environment: make venv-tf4, or set "
        "ALIA_CTX_TRANSFORMERS4 to its python"
    ),
)
def test_transformers_4_computes_the_same_logits_from_what_we_write(
    tmp_path: Path,
) -> None:
    from tests.hf_models import tokens

    expected = {}
    for family, rope in [
        ("llama", "llama3"),
        ("llama", "dynamic"),
        ("mistral", "default"),
        ("mistral", "linear"),
        ("qwen2", "yarn"),
        ("qwen3", "default"),
        ("llama", "yarn"),
        ("qwen3", "llama3"),
    ]:
        folder = tmp_path / f"{family}-{rope}"
        model = make_model(family, rope, torch.float32)
        model.save_pretrained(folder)
        read = read_config(folder)
        original = json.loads((folder / "config.json").read_text())
        put(folder, write_config(*read, torch.float32, original))
        torch.save(tokens(), folder / "tokens.pt")
        expected[folder] = logits(model)
    subprocess.run(
        [str(_OTHER_PYTHON), "-c", _READ_IN_4, *map(str, expected)],
        check=True,
        timeout=300,
    )
    for folder, ours in expected.items():
        # Two releases, the same arithmetic: what remains is the order of fp32 sums.
        torch.testing.assert_close(
            torch.load(folder / "logits.pt"), ours, rtol=0, atol=1e-4, msg=folder.name
        )


@pytest.mark.parametrize(
    "change", [{"attention_bias": True}, {"architecture": "qwen3"}]
)
def test_a_model_that_no_config_describes_is_not_written(
    change: dict[str, Any],
) -> None:
    model = replace(ALIA, **change)
    with pytest.raises(CheckpointError, match=r"is not what \w+ computes"):
        write_config(model, ALIA_160K, 163840, torch.bfloat16)
