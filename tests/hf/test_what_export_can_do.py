"""What an import accepts, an export can write; what it cannot, the import refuses by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoConfig, GenerationConfig

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import import_hf
from alia_ctx.hf.limits import without_limits
from alia_ctx.hf.model_card import front_matter
from alia_ctx.hf.verify import verify
from alia_ctx.spec.rope import RopeSpec
from tests.hf.exports import export_longer, read
from tests.hf_models import edit_json

# -- refused at import -----------------------------------------------------------------


@pytest.mark.parametrize(
    "key, value",
    [
        ("attention_dropout", "0.1"),
        ("attention_dropout", [0]),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["full_attention"] * 5),
        ("use_cache", "yes"),
        ("pretraining_tp", "1"),
        ("max_window_layers", -1),
        ("num_labels", "3"),
        ("id2label", ["a"]),
        ("id2label", {"a": "b"}),
        ("label2id", {"a": "b"}),
        ("max_position_embeddings", 10**40),
        ("max_position_embeddings", 1e300),
        ("vocab_size", 2**62),
        ("rope_theta", 10**400),
        ("rms_norm_eps", 10**400),
    ],
)
def test_values_that_transformers_refuses(base: Path, key: str, value: Any) -> None:
    document = read(base / "config.json")
    document.pop("rope_parameters")
    (base / "config.json").write_text(json.dumps({**document, key: value}))
    for work in (
        lambda: import_hf(base, base.parent / "ck"),
        lambda: export_longer(base),
    ):
        with pytest.raises(CheckpointError, match=rf"config\.json(.|\n)*{key}"):
            work()
    assert not list(base.parent.glob("ck*"))


@pytest.mark.parametrize(
    "content", [b"[1]", b'"x"', b"{'a': 1}", b'{"a": "\xff"}', b""]
)
@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json"])
def test_files_that_are_no_object(base: Path, name: str, content: bytes) -> None:
    (base / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        import_hf(base, base.parent / "ck")
    assert not list(base.parent.glob("ck*"))


# -- written by the export -------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_dropout": None, "auto_map": None, "use_cache": None},
        {"attention_dropout": 0, "pretraining_tp": 0, "id2label": {"0": "a"}},
        {"note": "\ud800 alone", "other": {"\udfff": [10**50]}},
        {"layer_types": ["full_attention"] * 4, "max_window_layers": 4},
    ],
)
def test_values_that_an_export_can_write(base: Path, changes: dict[str, Any]) -> None:
    edit_json(base / "config.json", **changes)
    out = export_longer(base)
    assert AutoConfig.from_pretrained(out).num_hidden_layers == 4


def test_a_base_that_transformers_does_not_load_is_named_by_verify(base: Path) -> None:
    import_hf(base, base.parent / "ck")
    edit_json(base / "config.json", eos_token_id="2")
    with pytest.raises(CheckpointError, match=r"config\.json: transformers does not"):
        verify(base, base.parent / "ck")


def ids(file: Path) -> tuple[Any, ...]:
    document = read(file)
    return tuple(document[f"{name}_token_id"] for name in ("bos", "eos", "pad"))


def test_two_answers_on_special_ids_become_one_and_are_said(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(base / "config.json", bos_token_id=1, pad_token_id=3, eos_token_id=[2, 4])
    edit_json(
        base / "generation_config.json", bos_token_id=5, pad_token_id=6, eos_token_id=7
    )
    out = export_longer(base)
    assert ids(out / "config.json") == ids(out / "generation_config.json") == (5, 7, 6)
    said = " ".join(capsys.readouterr().err.split())
    for told in ("bos_token_id was 1", "pad_token_id was 3", "eos_token_id was [2, 4]"):
        assert told in said
    assert GenerationConfig.from_pretrained(out).pad_token_id == 6
    assert AutoConfig.from_pretrained(out).pad_token_id == 6


def test_ids_of_no_model_are_no_answer(base: Path) -> None:
    edit_json(base / "config.json", bos_token_id=1)
    edit_json(base / "generation_config.json", bos_token_id=500)
    out = export_longer(base)
    assert ids(out / "config.json")[0] == ids(out / "generation_config.json")[0] == 1


def test_limits_inside_lists_go_too() -> None:
    inner = {"max_length": 5, "kept": 1}
    document = {
        "task_specific_params": [inner, [{"x": inner}]],
        "list": [1, "max_length"],
    }
    assert without_limits(document) == {
        "task_specific_params": [{"kept": 1}, [{"x": {"kept": 1}}]],
        "list": [1, "max_length"],
    }


SERVERS_OWN: dict[str, Any] = {
    # Qwen2.5-1M's
    "dual_chunk_attention_config": {
        "chunk_size": 262144,
        "local_size": 8192,
        "original_max_position_embeddings": 262144,
    },
    # SGLang's Llama: pairs are neighbours where it is false
    "rope_is_neox_style": False,
    "is_neox_style": False,
}


@pytest.mark.parametrize("key", SERVERS_OWN)
def test_an_attention_that_servers_alone_compute_stays_behind(
    base: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(base / "config.json", **{key: SERVERS_OWN[key]})
    out = export_longer(base)
    assert key not in read(out / "config.json")
    said = f"config.json of the base: left out {key}="
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in (out / "README.md").read_text()


def test_what_such_keys_say_of_every_model_travels(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(base / "config.json", rope_is_neox_style=True, is_causal=True)
    config = read(export_longer(base) / "config.json")
    assert (config["rope_is_neox_style"], config["is_causal"]) == (True, True)
    assert "left out" not in capsys.readouterr().err


def test_an_object_of_unknown_meaning_is_kept_whole(base: Path) -> None:
    unknown = {
        "chunk_size": 64,
        "max_seq_len": 64,
        "original_max_position_embeddings": 64,
        "inner": [{"max_length": 5}],
    }
    edit_json(base / "config.json", an_owners_config=unknown)
    edit_json(base / "generation_config.json", an_owners_config=unknown)
    out = export_longer(base)
    assert read(out / "config.json")["an_owners_config"] == unknown
    assert read(out / "generation_config.json")["an_owners_config"] == unknown


# -- model card ------------------------------------------------------------------------

CARD = """---
license: other
license_name: 1.10
license_link: 2024-05-01
language: [no, en, off, 0123]
base_model: yes
---
# x
"""


def test_words_of_a_card_are_no_numbers(base: Path) -> None:
    (base / "README.md").write_text(CARD)
    out = export_longer(base)
    text = (out / "README.md").read_text()
    facts = yaml.safe_load(text.split("---")[1])
    assert facts["language"] == ["no", "en", "off", "0123"]
    assert facts["license_name"] == "1.10" and facts["license_link"] == "2024-05-01"
    assert "| no, en, off, 0123 |" in text


@pytest.mark.parametrize("value", ["no", "Norsk", "1.0", "on", "12:30", "0o7"])
def test_one_word_is_as_it_is_written(value: str) -> None:
    assert front_matter(f"---\nlanguage: {value}\n---\n") == {"language": value}


@pytest.mark.parametrize("value", ["", "null", "~", "{a: b}", "[]", "[{a: 1}]"])
def test_what_states_nothing_is_left_out(base: Path, value: str) -> None:
    (base / "README.md").write_text(f"---\nlicense: {value}\nlanguage: {value}\n---\n")
    out = export_longer(base)
    facts = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert "language" not in facts and "license" not in facts


# -- RoPE ------------------------------------------------------------------------------

YARN = {
    "type": "yarn",
    "theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize(
    "wrong, key",
    [
        ({"beta_fast": 0.5}, "beta_fast"),
        ({"beta_slow": 40.0}, "beta_fast"),
        ({"beta_fast": 2.0, "beta_slow": 3.0}, "beta_fast"),
        ({"mscale": -1.0, "mscale_all_dim": 1.0}, "mscale"),
        ({"mscale": 1.0, "mscale_all_dim": -0.5}, "mscale_all_dim"),
        ({"factor": 0.5}, "factor"),
    ],
)
def test_yarn_that_no_formula_means(wrong: dict[str, float], key: str) -> None:
    assert [p.key for p in RopeSpec(**{**YARN, **wrong}).problems("r", 1)] == [
        f"r.{key}"
    ]  # type: ignore[arg-type]


def test_yarn_of_zero_scales_is_without_them() -> None:
    for more in (
        {"mscale": 0.0, "mscale_all_dim": 0.0},
        {"beta_fast": 1.0, "beta_slow": 1.0},
    ):
        rope = RopeSpec(**{**YARN, **more})  # type: ignore[arg-type]
        assert not rope.problems("r", 1)
