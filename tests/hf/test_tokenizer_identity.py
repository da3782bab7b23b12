"""The tokenizer of training is the one that is exported, though its files changed since."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from alia_ctx import checkpoint
from alia_ctx.data.tokens import has_vocabulary, tokenizer_statement
from alia_ctx.errors import AliaError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from alia_ctx.identity import IdentityError
from tests.hf.exports import read, trained, write_words
from tests.hf_models import SIZES, edit_json

WORDS = SIZES["vocab_size"]
CUT = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


def stated(ck: Path, tokenizer: Path) -> Path:
    """The checkpoint at `ck` as one that was trained with `tokenizer` as it is now."""
    trained(ck, tokenizer=str(tokenizer))
    manifest = checkpoint.read_manifest(ck)
    extra = {"tokenizer": tokenizer_statement(tokenizer)}
    document = dataclasses.replace(manifest, extra=extra).to_json()
    (ck / "manifest.json").write_text(json.dumps(document))
    return ck


def swapped(directory: Path) -> None:
    """Two words change places: the same tokens, other ids."""
    document = read(directory / "tokenizer.json")
    document["model"]["vocab"] |= {"word5": 9, "word9": 5}
    (directory / "tokenizer.json").write_text(json.dumps(document))


def test_files_replaced_after_training_are_not_exported(base: Path) -> None:
    root = base.parent
    words = write_words(root / "words", WORDS, eos_token="word5")
    shutil.copytree(words, root / "kept")
    import_hf(base, root / "ck")
    stated(root / "ck", words)
    export_hf(root / "ck", root / "out")
    assert verify(root / "out", root / "ck").ok
    swapped(words)
    with pytest.raises(IdentityError, match=r"tokenizer\.json: \w+ there, \w+ now"):
        export_hf(root / "ck", root / "again")
    with pytest.raises(IdentityError, match=r"restore the files"):
        export_hf(root / "ck", root / "again", tokenizer_dir=words)
    assert not list(root.glob("again*"))
    export_hf(root / "ck", root / "again", tokenizer_dir=root / "kept")
    report = verify(root / "again", root / "ck")
    assert report.ok and "were changed since" in str(report)
    swapped(root / "again")
    report = verify(root / "again", root / "ck")
    assert not report.ok and "tokenizer.tokenizer.json" in str(report)


@pytest.mark.parametrize(
    "name, content",
    [
        ("added_tokens.json", '{"word5": 5}'),
        ("special_tokens_map.json", '{"eos_token": "word7"}'),
        ("tokenizer.4.0.0.json", "{}"),
        ("vocab.json", "{}"),
        ("merges.txt", "#version"),
        ("my.model", "x"),
    ],
)
def test_every_file_that_transformers_reads_counts(
    tmp_path: Path, name: str, content: str
) -> None:
    words = write_words(tmp_path / "words", WORDS)
    before = tokenizer_statement(words)
    (words / name).write_text(content)
    assert tokenizer_statement(words).keys() - before.keys() == {name}


def test_what_decides_no_id_does_not_count(tmp_path: Path) -> None:
    words = write_words(tmp_path / "words", WORDS)
    before = tokenizer_statement(words)
    (words / "chat_template.jinja").write_text("{{ messages }}")
    (words / "README.md").write_text("x")
    edit_json(words / "tokenizer_config.json", model_max_length=7, chat_template="x")
    edit_json(words / "tokenizer.json", truncation=CUT)
    document = read(words / "tokenizer.json")
    (words / "tokenizer.json").write_text(json.dumps(document, indent=3))
    assert tokenizer_statement(words) == before
    edit_json(words / "tokenizer_config.json", add_prefix_space=True)
    assert tokenizer_statement(words) != before


def test_a_checkpoint_that_states_nothing_is_exported_and_says_so(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = base.parent
    words = write_words(root / "words", WORDS)
    import_hf(base, root / "ck")
    export_hf(trained(root / "ck", tokenizer=str(words)), root / "out")
    told = " ".join(capsys.readouterr().err.split())
    assert "does not say which tokenizer it was trained with" in told
    assert "does not state its files" in str(verify(root / "out", root / "ck"))


def test_versions_of_a_tokenizer_travel_and_count(base: Path) -> None:
    """transformers takes the newest of `fast_tokenizer_files` that is not above its own."""
    root = base.parent
    words = write_words(root / "words", WORDS)
    shutil.copy(words / "tokenizer.json", words / "tokenizer.4.0.0.json")
    swapped(words)
    named = ["tokenizer.json", "tokenizer.4.0.0.json"]
    edit_json(words / "tokenizer_config.json", fast_tokenizer_files=named)
    shutil.copytree(words, base, dirs_exist_ok=True)
    import_hf(base, root / "ck")
    assert (root / "ck/assets/tokenizer.4.0.0.json").is_file()
    for name in ("tokenizer.json", "tokenizer.4.0.0.json"):
        edit_json(words / name, truncation=CUT)
    export_hf(stated(root / "ck", words), root / "out")
    for name in ("tokenizer.json", "tokenizer.4.0.0.json"):
        assert read(root / "out" / name)["truncation"] is None
    loaded = AutoTokenizer.from_pretrained(root / "out")
    assert loaded("word5")["input_ids"] == [5]
    (words / "tokenizer.4.0.0.json").write_text(
        json.dumps(read(words / "tokenizer.json"))
    )
    with pytest.raises(IdentityError, match=r"tokenizer\.4\.0\.0\.json"):
        export_hf(root / "ck", root / "again")


@pytest.mark.parametrize(
    "name",
    ["vocab.json", "vocab.txt", "spiece.model", "tokenizer.model.v3", "q.tiktoken"],
)
def test_a_vocabulary_under_any_name_is_one(tmp_path: Path, name: str) -> None:
    assert not has_vocabulary(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    assert not has_vocabulary(tmp_path)
    (tmp_path / name).write_text("x")
    assert has_vocabulary(tmp_path)


def test_a_version_outside_of_the_directory_is_not_taken(base: Path) -> None:
    (base.parent / "tokenizer.4.0.0.json").write_text("{}")
    named = ["../tokenizer.4.0.0.json", 3, "/etc/tokenizer.1.json"]
    edit_json(base / "tokenizer_config.json", fast_tokenizer_files=named)
    assert "../tokenizer.4.0.0.json" not in tokenizer_statement(base)
    try:
        import_hf(base, base.parent / "ck")
    except AliaError:
        return
    assert not (base.parent / "ck/assets/../tokenizer.4.0.0.json").exists()
