"""A `tokenizer.model` is what its content says; `--tokenizer` for an import moves no id."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.verify import verify
from tests.data.chat.tokenizers import byte_level
from tests.hf.exports import read, write_words
from tests.hf_models import edit_json, save_model
from tests.tokenizers import save

MODEL = "tokenizer.model"


def tiktoken(count: int) -> bytes:
    words = (base64.b64encode(bytes([65 + i])).decode() for i in range(count))
    return "".join(f"{word} {i}\n" for i, word in enumerate(words)).encode()


def sentencepiece(pieces: int) -> bytes:
    import sentencepiece as sp

    model = io.BytesIO()
    sp.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 9),
        model_writer=model,
        vocab_size=pieces,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


# -- formats -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [tiktoken(60), tiktoken(60) + b"\n", sentencepiece(40), b"", b"\0\1\2"]
)
def test_a_model_beside_tokenizer_json_travels_as_it_is(
    source: Path, content: bytes
) -> None:
    """transformers makes the tokenizer of tokenizer.json, as Llama 3's publishers mean it."""
    (source / MODEL).write_bytes(content)
    before = AutoTokenizer.from_pretrained(source)("word5 word7").input_ids
    root = source.parent
    import_hf(source, root / "ck")
    export_hf(root / "ck", root / "out")
    assert (root / "out" / MODEL).read_bytes() == content
    assert (
        AutoTokenizer.from_pretrained(root / "out")("word5 word7").input_ids == before
    )
    assert verify(root / "out", root / "ck").ok


@pytest.mark.parametrize("content", [tiktoken(60), sentencepiece(40)])
def test_a_model_alone_is_read_by_its_format(source: Path, content: bytes) -> None:
    (source / "tokenizer.json").unlink()
    (source / MODEL).write_bytes(content)
    import_hf(source, source.parent / "ck")
    assert (source.parent / "ck/assets" / MODEL).read_bytes() == content


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    "content, largest", [(tiktoken(120), 119), (sentencepiece(120), None)]
)
def test_ids_beyond_the_model_are_found_in_either_format(
    source: Path, content: bytes, largest: int | None, beside: bool
) -> None:
    edit_json(source / "config.json", vocab_size=20)
    if not beside:
        (source / "tokenizer.json").unlink()
    (source / MODEL).write_bytes(content)
    name = r"tokenizer\.json" if beside else r"tokenizer\.model"
    number = 95 if beside else largest
    with pytest.raises(CheckpointError, match=f"{name}: has token id {number or ''}"):
        import_hf(source, source.parent / "ck")


@pytest.mark.parametrize(
    "content", [b"\0\1\2", sentencepiece(40)[:-3], b"IQ== 0\nIg== x\n"]
)
def test_a_damaged_model_alone_is_named(source: Path, content: bytes) -> None:
    (source / "tokenizer.json").unlink()
    (source / MODEL).write_bytes(content)
    said = r"tokenizer\.model: is neither .*copy it again"
    with pytest.raises(CheckpointError, match=said):
        import_hf(source, source.parent / "ck")


# -- another tokenizer for an import -----------------------------------------------------


def swapped(words: Path) -> None:
    document = read(words / "tokenizer.json")
    document["model"]["vocab"] |= {"word5": 9, "word9": 5}
    (words / "tokenizer.json").write_text(json.dumps(document))


def fewer(words: Path) -> None:
    document = read(words / "tokenizer.json")
    del document["model"]["vocab"]["word70"]
    (words / "tokenizer.json").write_text(json.dumps(document))


def other_end(words: Path) -> None:
    edit_json(words / "tokenizer_config.json", eos_token="word6")


def other_pieces(words: Path) -> None:
    """The same ids, but a text is not cut at blanks any more."""
    edit_json(words / "tokenizer.json", pre_tokenizer=None)


def more(words: Path, *names: str, **special: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.add_tokens(list(names))
    tokenizer.save_pretrained(words)
    edit_json(words / "tokenizer_config.json", **special)


def imported(root: Path, **options: int) -> Path:
    """An import of a model with 96 words; returns a copy of its tokenizer."""
    save_model(root / "hf")
    write_words(root / "hf", 90, bos_token="word1", eos_token="word2")
    import_hf(root / "hf", root / "ck", **options)
    words = root / "words"
    words.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(root / "hf" / name, words / name)
    return words


@pytest.mark.parametrize("rows", [None, 128])
@pytest.mark.parametrize(
    "change, said",
    [
        (swapped, "'word5': 9 there and 5"),
        (fewer, "'word70': None there and 70"),
        (other_end, "eos_token_id is 6 there and 2"),
        (other_pieces, "a sample text gives"),
        (lambda d: (more(d, "<new>"), swapped(d)), "'word5': 9 there and 5"),
    ],
)
def test_other_ids_than_the_imports_are_refused(
    tmp_path: Path, change: Callable[[Path], Any], said: str, rows: int | None
) -> None:
    words = imported(tmp_path, **({"resize_embeddings": rows} if rows else {}))
    change(words)
    with pytest.raises(CheckpointError, match=f"tokenizer that was imported.*{said}"):
        export_hf(tmp_path / "ck", tmp_path / "out", tokenizer_dir=words)
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    "rows, change",
    [
        (None, lambda d: None),
        (None, lambda d: AutoTokenizer.from_pretrained(d).save_pretrained(d)),
        (None, lambda d: (d / "chat_template.jinja").write_text("{{ messages }}")),
        (None, lambda d: edit_json(d / "tokenizer_config.json", model_max_length=9)),
        # The base has no token for padding.
        (None, lambda d: edit_json(d / "tokenizer_config.json", pad_token="word3")),
        (None, lambda d: more(d, "<a>", "<b>")),  # into rows that were there
        (128, lambda d: more(d, *(f"<{i}>" for i in range(20)))),
        (
            128,
            lambda d: more(d, "<end>", "<pad>", eos_token="<end>", pad_token="<pad>"),
        ),
        (128, lambda d: more(d, "años")),  # of the sample text
    ],
)
def test_the_same_ids_and_more_are_taken(
    tmp_path: Path, rows: int | None, change: Callable[[Path], Any]
) -> None:
    words = imported(tmp_path, **({"resize_embeddings": rows} if rows else {}))
    change(words)
    export_hf(tmp_path / "ck", tmp_path / "out", tokenizer_dir=words)
    one, other = (AutoTokenizer.from_pretrained(d) for d in (words, tmp_path / "out"))
    assert one.get_vocab() == other.get_vocab()
    assert one.eos_token_id == other.eos_token_id


def test_both_are_read_beside_the_same_config_json(tmp_path: Path) -> None:
    """transformers reads every tokenizer beside a qwen2 model as Qwen's own; its files alone
    are read by the class that they name.
    """
    save_model(tmp_path / "hf", "qwen2", vocab_size=480)
    alone = save(byte_level(), tmp_path / "alone")
    shutil.copytree(alone, tmp_path / "hf", dirs_exist_ok=True)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    kinds = {type(AutoTokenizer.from_pretrained(d)) for d in (tmp_path / "hf", alone)}
    assert len(kinds) == 2
    export_hf(tmp_path / "ck", tmp_path / "out", tokenizer_dir=alone)


def test_one_that_never_loaded_may_be_replaced(tmp_path: Path) -> None:
    words = imported(tmp_path)
    broken = tmp_path / "hf/tokenizer.json"
    document = read(broken)
    document["model"]["type"] = "NoModel"
    broken.write_text(json.dumps(document))
    import_hf(tmp_path / "hf", tmp_path / "ck", overwrite=True)
    export_hf(tmp_path / "ck", tmp_path / "out", tokenizer_dir=words)
