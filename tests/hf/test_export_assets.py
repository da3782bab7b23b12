"""What an export says beside its weights: no limit of the base, one answer on special
tokens, the tokenizer of training, and what it was made from.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from alia_ctx import checkpoint
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.limits import without_limits
from alia_ctx.hf.verify import verify
from alia_ctx.spec.rope import RopeSpec
from tests.hf_models import CONTEXT, edit_json, make_model, save_model

LONGER = 4 * CONTEXT


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def write_words(directory: Path, size: int, **special: Any) -> Path:
    """A tokenizer of words word0 to word(size - 1) with the given special tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    words = {f"word{i}": i for i in range(size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="word0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def trained(ck: Path, context: int = LONGER, **config: Any) -> Path:
    """Make the import at `ck` the checkpoint of a longer stage of a run with `config`."""
    manifest = checkpoint.read_manifest(ck)
    rope = RopeSpec("linear", 10000.0, context / CONTEXT)
    entry = checkpoint.StageLedger(
        "long", context, rope, 9e-7, updates=5, tokens=1234567
    )
    later = dataclasses.replace(
        manifest,
        stage="long",
        update=5,
        rope=rope,
        context=context,
        ledger=(entry,),
        config=config,
        extra={},
    )
    (ck / "manifest.json").unlink()
    files = {}
    for path in sorted(ck.rglob("*")):
        if path.is_file():
            files[str(path.relative_to(ck))] = checkpoint.file_entry(path)
    later = dataclasses.replace(later, files=files)
    (ck / "manifest.json").write_text(json.dumps(later.to_json()))
    return ck


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_model(tmp_path / "hf", rope="linear")
    return tmp_path / "hf"


def export_longer(base: Path, **config: Any) -> Path:
    """Import `base`, pretend to train it at LONGER tokens, export that."""
    root = base.parent
    import_hf(base, root / "ck")
    export_hf(trained(root / "ck", **config), root / "out")
    return root / "out"


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


@pytest.mark.parametrize("wrong", [96, -1, "2", [2, 96], [], 2.0, True])
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
        "| training data | books, web |",
        "| languages | ca, es |",
        "| made from | checkpoint of stage long, update 5, run my-run |",
        "| long | 512 | linear, theta 10000, factor 4 |",
        "1,234,567",
    ):
        assert said in text, said
    assert (out / "LICENSE").read_text() == "the licence"
    assert (out / "NOTICE.txt").exists()
    assert "/data" not in text  # no paths of the machine


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
