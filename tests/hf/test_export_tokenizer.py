"""Which tokenizer and which special ids an export has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.hf.exports import export_longer, read, trained, write_words
from tests.hf_models import edit_json, make_model, save_model

# -- special tokens --------------------------------------------------------------------

IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def ids_of(file: Path) -> tuple[Any, ...]:
    document = read(file)
    return tuple(document[name] for name in IDS)


def test_ids_come_from_the_tokenizer_of_training(base: Path) -> None:
    """The base ends at 2, the run's tokenizer at 5."""
    from transformers import AutoTokenizer

    special = {"bos_token": "word4", "eos_token": "word5", "pad_token": "word6"}
    tokenizer = write_words(base.parent / "words", 96, **special)
    out = export_longer(base, tokenizer=str(tokenizer))
    assert ids_of(out / "config.json") == (4, 5, 6)
    assert ids_of(out / "generation_config.json") == (4, 5, 6)
    loaded = AutoTokenizer.from_pretrained(out)
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (4, 5, 6)


def test_a_random_start_has_ids_and_stops(tmp_path: Path) -> None:
    """Without any configuration of a base, and with an id of 0."""
    save_model(tmp_path / "hf", rope="linear")
    import_hf(tmp_path / "hf", tmp_path / "ck")
    for file in (tmp_path / "ck/assets").iterdir():
        file.unlink()
    words = write_words(tmp_path / "words", 96, eos_token="word0")
    export_hf(trained(tmp_path / "ck", tokenizer=str(words)), tmp_path / "out")
    assert ids_of(tmp_path / "out/config.json") == (None, 0, None)
    assert ids_of(tmp_path / "out/generation_config.json") == (None, 0, None)

    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.eos_token_id == model.generation_config.eos_token_id == 0
    with torch.no_grad():
        model.model.norm.weight.zero_()  # all logits 0: the first token, 0, is greedy
    text = model.generate(torch.tensor([[5, 6]]), max_new_tokens=9, do_sample=False)
    assert text.tolist() == [[5, 6, 0]]


def test_stop_lists_that_hold_the_tokenizers_stay_lists(base: Path) -> None:
    edit_json(base / "generation_config.json", eos_token_id=[7, 5, 8])
    edit_json(base / "config.json", eos_token_id=[7, 8])
    words = write_words(base.parent / "words", 96, eos_token="word5")
    out = export_longer(base, tokenizer=str(words))
    assert read(out / "generation_config.json")["eos_token_id"] == [7, 5, 8]
    assert read(out / "config.json")["eos_token_id"] == 5


@pytest.mark.parametrize("wrong", [96, -1, "2", [2, 96], [], 2.0])
def test_ids_that_are_none_of_the_models_do_not_travel(base: Path, wrong: Any) -> None:
    edit_json(base / "config.json", pad_token_id=wrong)
    edit_json(base / "generation_config.json", pad_token_id=wrong)
    out = export_longer(base)
    assert ids_of(out / "config.json") == (1, 2, None)
    assert ids_of(out / "generation_config.json") == (1, 2, None)


def test_without_any_end_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "hf", eos_token_id=None)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    said = "generation will not stop by itself"
    assert said in " ".join(capsys.readouterr().err.split())
    assert said in (tmp_path / "out/README.md").read_text()


# -- which tokenizer -------------------------------------------------------------------


def test_the_tokenizer_of_training_is_the_default(base: Path) -> None:
    words = write_words(base.parent / "words", 90, eos_token="word5")
    out = export_longer(base, tokenizer=str(words))
    exported, training = (read(d / "tokenizer.json") for d in (out, words))
    assert exported == training != read(base / "tokenizer.json")
    assert not (out / "chat_template.jinja").exists()  # it was the base's


def test_a_tokenizer_that_is_gone_must_be_pointed_at(base: Path) -> None:
    root = base.parent
    import_hf(base, root / "ck")
    trained(root / "ck", tokenizer=str(root / "gone"))
    with pytest.raises(CheckpointError, match=r"gone: .* say where it is"):
        export_hf(root / "ck", root / "out")
    words = write_words(root / "words", 96)
    export_hf(root / "ck", root / "out", tokenizer_dir=words)
    assert read(root / "out/tokenizer.json") == read(words / "tokenizer.json")


@pytest.mark.parametrize(
    "size, special, said",
    [
        (96, {"eos_token": "word6"}, "eos_token_id is 6 there and 5 in training"),
        (96, {"eos_token": "word5", "pad_token": "word7"}, "pad_token_id is 7 there"),
        (95, {"eos_token": "word5"}, "'word95': None there and 95 in training"),
    ],
)
def test_another_tokenizer_than_that_of_training_is_refused(
    base: Path, size: int, special: dict[str, str], said: str
) -> None:
    root = base.parent
    import_hf(base, root / "ck")
    words = write_words(root / "words", 96, eos_token="word5")
    trained(root / "ck", tokenizer=str(words))
    other = write_words(root / "other", size, **special)
    with pytest.raises(CheckpointError, match=said):
        export_hf(root / "ck", root / "out", tokenizer_dir=other)
    assert not list(root.glob("out*"))
    same = write_words(root / "same", 96, eos_token="word5")
    (same / "chat_template.jinja").write_text("{{ messages }}")
    export_hf(root / "ck", root / "out", tokenizer_dir=same)
    assert (root / "out/chat_template.jinja").exists()


def test_a_tokenizer_that_transformers_reads_otherwise_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers 5 reads every tokenizer beside a qwen2 model as Qwen's own."""
    save_model(tmp_path / "hf", "qwen2", rope="linear")
    words = write_words(tmp_path / "words", 96, eos_token="word5")
    out = export_longer(tmp_path / "hf", tokenizer=str(words))
    assert ids_of(out / "config.json")[1] == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "otherwise than the training did" in said and "Qwen2Tokenizer" in said
    report = verify(out, tmp_path / "ck")
    assert not report.weight_differences and not report.ok
    assert any("a sample text gives" in d for d in report.config_differences)


def test_verify_compares_a_sample_with_the_tokenizer_of_training(base: Path) -> None:
    words = write_words(base.parent / "words", 96, eos_token="word5")
    out = export_longer(base, tokenizer=str(words))
    report = verify(out, base.parent / "ck")
    assert report.ok and "tokenizer: 96 tokens, special ids, a sample" in str(report)
    document = read(out / "tokenizer.json")
    document["model"]["vocab"] |= {"word5": 9, "word9": 5}
    (out / "tokenizer.json").write_text(json.dumps(document))
    report = verify(out, base.parent / "ck")
    assert not report.ok and "'word5': 9 there and 5 in training" in str(report)


def test_an_export_without_tokenizer_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("llama").save_pretrained(tmp_path / "hf")
    import_hf(tmp_path / "hf", tmp_path / "ck")
    export_hf(tmp_path / "ck", tmp_path / "out")
    assert "NO TOKENIZER" in " ".join(capsys.readouterr().err.split())
    assert "NO TOKENIZER" in (tmp_path / "out/README.md").read_text()
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        export_hf(tmp_path / "ck", tmp_path / "o2", tokenizer_dir=tmp_path / "out")


def test_a_tokenizer_that_does_not_load_is_refused(base: Path) -> None:
    root = base.parent
    import_hf(base, root / "ck")
    words = write_words(root / "words", 96)
    (words / "tokenizer.json").write_text('{"model": {"vocab": {}}}')
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        export_hf(root / "ck", root / "out", tokenizer_dir=words)
    assert not list(root.glob("out*"))
