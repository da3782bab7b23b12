"""What an export says beside its weights: no limit of the base, one answer on special
tokens, the tokenizer of training, and what it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alia_ctx.hf.limits import without_limits
from tests.hf.exports import LONGER, export_longer, read, write_words
from tests.hf_models import edit_json


def generate(directory: Path, prompt: int, **options: Any) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return model.generate(torch.full((1, prompt), 5), do_sample=False, **options)


# -- limits ----------------------------------------------------------------------------

IN_GENERATION = {
    "max_length": 64,
    "max_new_tokens": 8,
    "min_new_tokens": 4,
    "max_time": 0.001,
    "max_cache_len": 64,
    "cache_config": {"max_cache_len": 64, "batch_size": 1},
    "exponential_decay_length_penalty": [5, 1.5],
    "forced_eos_token_id": 2,
}
IN_CONFIG = {
    "max_length": 64,
    "n_positions": 64,
    "model_max_length": 64,
    "max_seq_len": 64,
    "seq_length": 64,
    "tokenizer_model_max_length": 64,
    "original_max_position_embeddings": 64,
    "task_specific_params": {"text-generation": {"max_length": 50, "do_sample": True}},
}
IN_TOKENIZER = {"model_max_length": 64, "max_length": 64, "max_len": 64, "stride": 0}


def test_no_limit_of_the_base_is_left(base: Path) -> None:
    edit_json(base / "generation_config.json", **IN_GENERATION, top_k=7)
    edit_json(base / "config.json", **IN_CONFIG, _comment="kept")
    edit_json(base / "tokenizer_config.json", **IN_TOKENIZER, truncation=True)
    cut = {
        "direction": "Right",
        "max_length": 64,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    padding = {
        "strategy": {"Fixed": 64},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "word0",
    }
    edit_json(base / "tokenizer.json", truncation=cut, padding=padding)
    out = export_longer(base)
    generation, config, settings, tokenizer = (
        read(out / name)
        for name in (
            "generation_config.json",
            "config.json",
            "tokenizer_config.json",
            "tokenizer.json",
        )
    )
    assert generation["max_length"] == LONGER and generation["top_k"] == 7
    assert set(IN_GENERATION) & set(generation) == {"max_length", "cache_config"}
    assert generation["cache_config"] == {"batch_size": 1}
    assert set(IN_CONFIG) & set(config) == {"task_specific_params"}
    assert config["task_specific_params"] == {"text-generation": {"do_sample": True}}
    assert config["max_position_embeddings"] == LONGER and config["_comment"] == "kept"
    assert set(IN_TOKENIZER) & set(settings) == {"model_max_length"}
    assert settings["model_max_length"] == LONGER and "truncation" not in settings
    assert tokenizer["truncation"] is None and tokenizer["padding"] is None
    for prompt in (70, 20):
        text = generate(out, prompt, eos_token_id=None, pad_token_id=0)
        assert text.shape[1] == LONGER


def test_a_tokenizer_cuts_nothing_of_the_context(base: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    cut = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    edit_json(base / "tokenizer.json", truncation=cut)
    out = export_longer(base)
    text = "word5 " * LONGER
    assert len(AutoTokenizer.from_pretrained(out)(text)["input_ids"]) == LONGER
    assert len(
        AutoTokenizer.from_pretrained(out)(text, truncation=True)["input_ids"]
    ) == (LONGER)
    assert len(Tokenizer.from_file(str(out / "tokenizer.json")).encode(text)) == LONGER


@pytest.mark.parametrize(
    "stated, exported", [(16, LONGER), ("16", LONGER), (10**30, 10**30), (None, None)]
)
def test_model_max_length(base: Path, stated: Any, exported: Any) -> None:
    edit_json(base / "tokenizer_config.json", model_max_length=stated)
    out = export_longer(base)
    assert read(out / "tokenizer_config.json").get("model_max_length") == exported


def test_what_no_limit_is_stays() -> None:
    kept = {
        "max_position_embeddings": 64,
        "max_window_layers": 3,
        "num_hidden_layers": 2,
        "no_repeat_ngram_size": 3,
        "length_penalty": 1.0,
        "eos_token_id": 2,
        "suppress_tokens": [1],
        "num_assistant_tokens": 20,
    }
    assert without_limits(kept) == kept


# -- the card --------------------------------------------------------------------------


def test_the_card_says_what_it_was_made_from(base: Path) -> None:
    card = "---\nlicense: apache-2.0\nlanguage:\n- ca\n- es\ntags: [x]\n---\n# Base\n"
    (base / "README.md").write_text(card)
    (base / "LICENSE").write_text("the licence")
    (base / "NOTICE.txt").write_text("the notice")
    words = write_words(base.parent / "words", 96, eos_token="word5")
    sources = {"web": {"inputs": ["/data/web"]}, "books": {"inputs": ["/data/books"]}}
    out = export_longer(
        base, tokenizer=str(words), name="my-run", data={"sources": sources}
    )
    text = (out / "README.md").read_text()
    facts = yaml.safe_load(text.split("---")[1])
    assert facts == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
        "language": ["ca", "es"],
        "base_model": "hf",
    }
    for said in (
        "| training data | not stated |",  # no plan, which would name the stage's own
        "| long | not stated | not stated | 1,234,567 | |",
        "| languages | ca, es |",
        "| made from | checkpoint of stage long, update 5, run my-run |",
        "| long | 512 | linear, theta 10000, factor 4 |",
        "1,234,567",
    ):
        assert said in text, said
    assert (out / "LICENSE").read_text() == "the licence"
    assert (out / "NOTICE.txt").exists()
    assert "/data" not in text  # no paths of the machine
    assert "books" not in text  # a configuration may list what no stage read


@pytest.mark.parametrize(
    "card", ["", "---\n", "---\n: [\n---\n", "---\n- a\n---\n", "# no head\n"]
)
def test_a_base_without_facts_is_said_to_have_none(base: Path, card: str) -> None:
    (base / "README.md").write_text(card)
    text = (export_longer(base) / "README.md").read_text()
    assert text.count("not stated by the base model") == 2
    assert "license" not in yaml.safe_load(text.split("---")[1])


def test_a_licence_that_is_only_a_file_is_linked(base: Path) -> None:
    (base / "USE_POLICY.md").write_text("the policy")
    (base / "LICENCE").write_text("the licence")
    out = export_longer(base)
    facts = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (facts["license"], facts["license_link"]) == ("other", "LICENCE")
    assert (out / "USE_POLICY.md").exists()
