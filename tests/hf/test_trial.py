"""What a base's files say beyond the model: accepted where an export can be used with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alia_ctx.errors import CheckpointError, Problem
from alia_ctx.hf import config as config_module
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.verify import verify
from tests.hf_models import edit_json, save_model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base") / "model"
    save_model(
        directory,
        "llama",
        shards="5GB",
        dtype=torch.float32,
        num_hidden_layers=1,
        hidden_size=32,
        intermediate_size=32,
    )
    return directory


def changed(base: Path, directory: Path, file: str, **values: Any) -> Path:
    shutil.copytree(base, directory)
    path = directory / file
    document = load_json(path) if path.is_file() else {}
    path.write_text(json.dumps({**document, **values}))
    return directory


@pytest.mark.parametrize(
    "values",
    [
        {"max_position_embeddings": 128.0},
        {"num_attention_heads": 4.0},
        {"rms_norm_eps": 1},
        {"eos_token_id": 2.0, "bos_token_id": [1], "pad_token_id": "3"},
        {"use_cache": None, "mlp_bias": None},
        {"dtype": "float99", "torch_dtype": 1},
        {"_attn_implementation": "flash_attention_2"},
    ],
    ids=str,
)
def test_an_export_of_an_odd_config_is_verified(
    base: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    odd = changed(base, tmp_path / "odd", "config.json", **values)
    import_hf(odd, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    report = verify(tmp_path / "out", tmp_path / "ckpt")
    assert report.ok, str(report)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out", local_files_only=True)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"eos_token_id": True}, r"eos_token_id=True: must be a token id"),
        ({"eos_token_id": [2, False]}, r"eos_token_id=\[2, False\]: must be a"),
        ({"eos_token_id": [[2]]}, r"eos_token_id=\[\[2\]\]: must be a"),
        ({"text_config": {"vocab_size": 10}}, r"text_config=.*transformers cannot"),
        ({"_attn_implementation": "bogus"}, r"_attn_implementation='bogus'"),
        ({"return_dict": False, "zzz": 1}, r"return_dict=False: transformers"),
        # which transformers refuses of two layers alone
        ({"per_layer_config": {"0": {"sliding_window": 4}}}, r"per_layer_config=\{"),
    ],
    ids=str,
)
def test_an_import_names_what_would_not_load(
    base: Path, tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    odd = changed(base, tmp_path / "odd", "config.json", **values)
    with pytest.raises(CheckpointError, match=told) as error:
        import_hf(odd, tmp_path / "ckpt")
    assert str(odd / "config.json") in str(error.value)
    assert "zzz" not in str(error.value) and not (tmp_path / "ckpt").exists()


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"num_beams": 0, "foo": 1}, "num_beams"),
        ({"num_beams": "2"}, "num_beams"),
        ({"temperature": "hot", "do_sample": True}, "temperature"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"bad_words_ids": [5]}, "bad_words_ids"),
        ({"cache_implementation": "bogus"}, "cache_implementation"),
        ({"watermarking_config": {"x": 1}}, "watermarking_config"),
    ],
    ids=str,
)
def test_an_import_names_what_would_not_generate(
    base: Path, tmp_path: Path, values: dict[str, Any], key: str
) -> None:
    odd = changed(base, tmp_path / "odd", "generation_config.json", **values)
    with pytest.raises(
        CheckpointError, match=rf"  {key}=.*transformers cannot"
    ) as error:
        import_hf(odd, tmp_path / "ckpt")
    assert str(odd / "generation_config.json") in str(error.value)
    assert "foo" not in str(error.value) and not (tmp_path / "ckpt").exists()


def test_ids_beyond_the_model_stay_behind(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = changed(
        base,
        tmp_path / "odd",
        "generation_config.json",
        bad_words_ids=[[500], [5, 6], [7, 96]],
        suppress_tokens=[5, 500, -1],
        begin_suppress_tokens=[500],
        forced_eos_token_id=500,
        sequence_bias=[[[2], -10.0], [[500], 1.0]],
        stop_strings=["word5"],
        num_beams=2,
        num_return_sequences=2,
    )
    import_hf(odd, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    written = load_json(tmp_path / "out" / "generation_config.json")
    assert written["bad_words_ids"] == [[5, 6]]
    assert written["suppress_tokens"] == [5]
    assert written["sequence_bias"] == [[[2], -10.0]]
    assert not {"begin_suppress_tokens", "forced_eos_token_id"} & written.keys()
    assert (written["num_return_sequences"], written["stop_strings"]) == (2, ["word5"])
    told = capsys.readouterr().err + capsys.readouterr().out
    assert "bad_words_ids of the base" in told or (
        "bad_words_ids of the base" in (tmp_path / "out" / "README.md").read_text()
    )
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", local_files_only=True
    )
    model.generation_config.stop_strings = None
    tokens = torch.tensor([[7, 8]])
    out = model.generate(tokens, max_new_tokens=3, attention_mask=tokens > 0)
    assert out.shape[0] == 2


def test_the_trial_is_of_as_many_layers_as_the_model_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a key that is not known to be one of single layers."""
    save_model(tmp_path / "base", num_hidden_layers=2)
    edit_json(tmp_path / "base" / "config.json", per_layer_config={"0": {"x": 4}})
    monkeypatch.delitem(config_module._INERT, "per_layer_config")
    told = r"  per_layer_config=.*transformers cannot"
    with pytest.raises(CheckpointError, match=told) as error:
        import_hf(tmp_path / "base", tmp_path / "ckpt")
    assert str(tmp_path / "base" / "config.json") in str(error.value)


EARLIER: dict[str, dict[str, Any]] = {
    "text_config": {"vocab_size": 10},
    "per_layer_config": {"0": {"sliding_window": 4}},
    "is_causal": False,
}


@pytest.mark.parametrize("key", EARLIER)
def test_an_export_leaves_out_what_an_earlier_release_took(
    tmp_path: Path,
    key: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_model(tmp_path / "base", num_hidden_layers=2)
    edit_json(tmp_path / "base" / "config.json", **{key: EARLIER[key]})
    with monkeypatch.context() as earlier:
        earlier.setattr("alia_ctx.hf.trial.require_usable", lambda *_: None)
        earlier.setattr("alia_ctx.hf.config._INERT", {})
        import_hf(tmp_path / "base", tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    assert key not in load_json(tmp_path / "out" / "config.json")
    said = f"config.json of the base: left out {key}="
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in (tmp_path / "out" / "README.md").read_text()
    assert verify(tmp_path / "out", tmp_path / "ckpt").ok


def test_a_refusal_names_a_file_that_is_there(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_hf(base, tmp_path / "ckpt")
    problem = Problem("generation_config.json", "beside", "stops", "correct it")
    monkeypatch.setattr(
        "alia_ctx.hf.trial.unusable",
        lambda _, config, generation: ([], [problem] if generation else []),
    )
    with pytest.raises(CheckpointError) as error:
        export_hf(tmp_path / "ckpt", tmp_path / "out")
    named = str(tmp_path / "ckpt" / "assets" / "generation_config.json")
    assert str(error.value).startswith(f"{named}: ")


def test_an_export_leaves_out_what_an_earlier_import_took(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = changed(base, tmp_path / "odd", "config.json", text_config={"vocab_size": 10})
    (odd / "generation_config.json").write_text(json.dumps({"num_beams": 0}))
    with monkeypatch.context() as earlier:
        earlier.setattr("alia_ctx.hf.trial.require_usable", lambda *_: None)
        import_hf(odd, tmp_path / "ckpt")
    export_hf(tmp_path / "ckpt", tmp_path / "out")
    assert "text_config" not in load_json(tmp_path / "out" / "config.json")
    assert "num_beams" not in load_json(tmp_path / "out" / "generation_config.json")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "text_config" in card and "num_beams" in card
    assert verify(tmp_path / "out", tmp_path / "ckpt").ok
