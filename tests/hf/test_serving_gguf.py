"""What llama.cpp's conversion reads of an export, read as it does: `convert_hf_to_gguf`
with its `TextModel` and `LlamaModel`, and `SpecialVocab` of its package
`gguf`, which the tests in the environment of `make test-serve` use itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx import checkpoint
from alia_ctx.hf.convert import export_hf, import_hf
from tests.data.chat.tokenizers import byte_level, llama
from tests.hf.test_serving import export
from tests.hf_models import CONTEXT, ROPES, save_model

# fp32 frequencies, computed in another order.
TOLERANCE = 1e-6


def hparams(directory: Path) -> dict[str, Any]:
    """`ModelBase.load_hparams`: what transformers makes of config.json."""
    from transformers import AutoConfig

    return dict(AutoConfig.from_pretrained(directory).to_dict())


def llama3_factors(config: dict[str, Any]) -> torch.Tensor:
    """What `LlamaModel.generate_extra_tensors` divides each frequency by: note where it
    looks for the original length, and what it takes where that is not there.
    """
    rope = config["rope_parameters"]
    dim = config.get("head_dim") or (
        config["hidden_size"] // config["num_attention_heads"]
    )
    frequencies = 1.0 / (rope.get("rope_theta", 1e4) ** (torch.arange(0, dim, 2) / dim))
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    original = config.get("original_max_position_embeddings", 8192)
    factors = []
    for wavelength in (2 * math.pi / frequencies).tolist():
        smooth = (original / wavelength - low) / (high - low)
        if wavelength < original / high:
            factors.append(1.0)
        elif wavelength > original / low:
            factors.append(rope["factor"])
        else:
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return torch.tensor(factors)


@pytest.mark.parametrize("rope", ["default", "linear", "yarn", "llama3"])
def test_the_rope_of_a_gguf_file(tmp_path: Path, rope: str) -> None:
    """`TextModel.set_gguf_parameters` finds type, factor, original length and base."""
    save_model(tmp_path / "hf", rope=rope)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    config, wanted = hparams(tmp_path / "out"), ROPES[rope]
    # What a linear RoPE stretches is the published length, where nothing says otherwise.
    context = CONTEXT * (wanted["factor"] if rope == "linear" else 1)
    read = config.get("rope_parameters", config.get("rope_scaling")) or {}
    manifest = checkpoint.read_manifest(tmp_path / "ck")
    assert read["rope_type"] == rope and read["rope_theta"] == wanted["rope_theta"]
    assert config["max_position_embeddings"] == context == manifest.context
    if rope != "default":
        assert read["factor"] == wanted["factor"]
    if rope == "yarn":
        assert read["original_max_position_embeddings"] == 32
        for name in ("attention_factor", "beta_fast", "beta_slow"):
            assert read[name] == wanted[name]
    if rope == "llama3":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        plain = wanted["rope_theta"] ** -(torch.arange(0, 16, 2) / 16)
        ours = plain / llama3_factors(config)
        theirs = model.model.rotary_emb.inv_freq
        assert (ours / theirs - 1).abs().max() < TOLERANCE
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    for name in (*sizes, "num_attention_heads", "num_key_value_heads", "head_dim"):
        assert config[name] == getattr(manifest.model, name), name
    assert config["rms_norm_eps"] == manifest.model.rms_norm_eps
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_alias_lengths_reach_the_file(tmp_path: Path) -> None:
    """Without the key at the top level llama.cpp would take 8,192 for 4,096."""
    from alia_ctx.hf.config import write_config
    from alia_ctx.spec.rope import RopeSpec
    from tests.hf_models import ALIA

    rope = RopeSpec(
        "llama3", 10000.0, 40.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0
    )
    config = write_config(ALIA, rope, 163840, torch.bfloat16)
    right = llama3_factors(config)
    del config["original_max_position_embeddings"]
    assert (right / llama3_factors(config) - 1).abs().max() > 0.1


@pytest.mark.parametrize(
    "rope, words", [("dynamic", "`dynamic`"), ("yarn", "`truncate`")]
)
def test_what_a_gguf_file_cannot_say_is_said(
    tmp_path: Path, rope: str, words: str
) -> None:
    save_model(tmp_path / "hf", rope=rope)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"not for llama.cpp: a GGUF file has no {words}".split("`")[0] in card
    assert words in card and "convert_hf_to_gguf" not in card


@pytest.mark.parametrize("make", [byte_level, llama])
def test_the_vocabulary_of_a_gguf_file(tmp_path: Path, make: Any) -> None:
    """`get_vocab_base`: every id has a word, and stop tokens are control tokens, by which
    llama.cpp knows `<|im_end|>` for the end of a turn.
    """
    from transformers import AutoTokenizer

    out = export(tmp_path, None, "chatml-tools", make)
    tokenizer, config = AutoTokenizer.from_pretrained(out), hparams(out)
    vocabulary = tokenizer.get_vocab()
    assert max(vocabulary.values()) < config["vocab_size"]
    for token in ("<|im_start|>", "<|im_end|>", "</s>"):
        assert token in tokenizer.get_added_vocab()
        assert tokenizer.added_tokens_decoder[vocabulary[token]].special
    # `SpecialVocab` skips what is no number.
    assert type(config["eos_token_id"]) is int


@pytest.mark.serve
@pytest.mark.parametrize("make", [byte_level, llama])
def test_gguf_itself_reads_template_and_special_tokens(
    tmp_path: Path, make: Any
) -> None:
    gguf = pytest.importorskip("gguf", reason="run `make test-serve`")
    out = export(tmp_path, None, "chatml-tools", make)
    special = gguf.SpecialVocab(out, load_merges=True, n_vocab=480)
    assert special.chat_template == (out / "chat_template.jinja").read_text()
    assert special.special_token_ids == {"bos": 1, "eos": 2, "unk": 0, "pad": 3}
    assert special.merges
