"""The ids of training are those of `AutoTokenizer`, which is the oracle here."""

from __future__ import annotations

import importlib
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
from tokenizers import AddedToken, pre_tokenizers
from transformers import AutoConfig, AutoTokenizer

from alia_ctx.data.tokens.encoder import TextEncoder
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import DataError
from tests import tokenizers as families
from tests.text_data import varied_texts, write_jsonl

TEXTS = [
    *varied_texts(12),
    "see <|think|> and <|think|>\n",
    "a<mask>b <mask> c  <mask>  d",
    "one <word> two x<word>y <word>.",
    "HELLO Hello <Big> <big>",
    "  two  blanks\tand 12345 67.89 ñ 日 end ",
]


def auto_ids(directory: Path, texts: list[str], **options: object) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    return tokenizer(texts, add_special_tokens=False, **options)["input_ids"]


def our_ids(directory: Path, texts: list[str], **options: object) -> list[list[int]]:
    settings = {"append_eos": False, "prepend_bos": False, "special_tokens": "keep"}
    encoder = TextEncoder(directory, **{**settings, **options})
    encoder = pickle.loads(pickle.dumps(encoder))  # as a worker process gets it
    return [text.tokens.tolist() for text in encoder.encode(texts)]


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_gives_autotokenizers_ids(tmp_path: Path, family: str) -> None:
    directory = families.save(families.FAMILIES[family](), tmp_path / "t")
    assert our_ids(directory, TEXTS) == auto_ids(directory, TEXTS)


_DECODER = {
    "content": "<|think|>",
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "single_word": False,
    "special": True,
}


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("file", ["decoder", "added_tokens", "extra", "map", "pad"])
def test_added_tokens_count_whichever_file_names_them(
    tmp_path: Path, file: str, special: bool
) -> None:
    tokenizer = families.byte_level()
    number = tokenizer.get_vocab_size()
    directory = families.save(tokenizer, tmp_path / "t")
    config = json.loads((directory / "tokenizer_config.json").read_text())
    if file == "decoder":
        token = {**_DECODER, "special": special}
        config["added_tokens_decoder"] = {str(number): token}
    elif file == "added_tokens":
        (directory / "added_tokens.json").write_text(json.dumps({"<|think|>": number}))
    elif file == "extra":
        config["additional_special_tokens"] = ["<|think|>"]
    elif file == "map":
        text = json.dumps({"additional_special_tokens": ["<|think|>"]})
        (directory / "special_tokens_map.json").write_text(text)
    else:
        config["pad_token"] = "<|think|>"
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    assert our_ids(directory, TEXTS) == auto_ids(directory, TEXTS)
    if file in ("decoder", "extra", "pad"):  # what transformers makes of them
        assert our_ids(directory, ["<|think|>"]) == [[number]]


def test_properties_of_added_tokens_hold(tmp_path: Path) -> None:
    added = (
        AddedToken("<mask>", lstrip=True, rstrip=True),
        AddedToken("<word>", single_word=True),
        AddedToken("<Big>", normalized=True),
        AddedToken("ain", normalized=False),
    )
    for name, make in families.FAMILIES.items():
        directory = families.save(make(), tmp_path / name, added=added)
        assert our_ids(directory, TEXTS) == auto_ids(directory, TEXTS), name


def test_a_class_that_replaces_the_files_pre_tokenisation(tmp_path: Path) -> None:
    tokenizer = families.byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    directory = families.save(
        tokenizer, tmp_path / "t", tokenizer_class="Qwen2Tokenizer"
    )
    assert our_ids(directory, TEXTS) == auto_ids(directory, TEXTS)


def test_the_model_beside_which_the_tokenizer_will_lie_counts(tmp_path: Path) -> None:
    """Without a class in its configuration, a tokenizer is read as its model's."""
    tokenizer = families.byte_level()
    size = tokenizer.get_vocab_size()
    directory = families.save(
        tokenizer, tmp_path / "t", tokenizer_class=None, eos_token=None
    )
    for model_type in ("llama", "qwen2", "qwen3", "mistral"):
        exported = tmp_path / model_type
        exported.mkdir()
        for file in directory.iterdir():
            (exported / file.name).write_bytes(file.read_bytes())
        AutoConfig.for_model(model_type).save_pretrained(exported)
        texts = [*TEXTS, "an <|endoftext|> inside"]
        expected = auto_ids(exported, texts)
        assert our_ids(directory, texts, model_type=model_type) == expected
    encoder = TextEncoder(
        directory, append_eos=True, prepend_bos=False, model_type="qwen2"
    )
    # Qwen2Tokenizer adds the end-of-text token that this directory lacks.
    assert encoder.special_ids["after"] == [size] and encoder.vocabulary == size + 1


def test_truncation_and_padding_of_the_file_do_not_apply(tmp_path: Path) -> None:
    tokenizer = families.byte_level()
    plain = families.save(tokenizer, tmp_path / "plain")
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    cut = families.save(tokenizer, tmp_path / "cut", model_max_length=8)
    assert our_ids(cut, TEXTS) == auto_ids(plain, TEXTS)


def test_a_tokenizer_written_in_python(tmp_path: Path) -> None:
    directory = tmp_path / "ctrl"
    directory.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz<>/|_"
    pieces = ["<unk>", "<s>", "</s>", "h@@", "he@@"]
    pieces += [letter + end for letter in letters for end in ("", "@@")]
    (directory / "vocab.json").write_text(
        json.dumps({piece: number for number, piece in enumerate(pieces)})
    )
    (directory / "merges.txt").write_text("#version: 0.2\nh e\n")
    config = {
        "tokenizer_class": "CTRLTokenizer",
        "eos_token": "</s>",
        "added_tokens_decoder": {str(len(pieces)): {**_DECODER, "special": False}},
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    texts = ["hello <|think|> here", "see </s> here"]
    assert our_ids(directory, texts) == auto_ids(directory, texts)
    encoder = TextEncoder(directory, append_eos=True, prepend_bos=False)
    encoded = pickle.loads(pickle.dumps(encoder)).encode(texts)
    # An added token that is no special one stays; the spelled EOS is pieces.
    assert encoded[0].tokens.tolist()[:-1] == auto_ids(directory, texts)[0]
    assert encoded[1].spelled == {"</s>": 1}
    assert encoded[1].tokens.tolist().count(encoder.special["</s>"]) == 1


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_a_directory_with_a_sentencepiece_model_only(tmp_path: Path, kind: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(varied_texts(200)),
        model_writer=model,
        vocab_size=340 if kind == "bpe" else 300,
        hard_vocab_limit=False,
        model_type=kind,
        byte_fallback=True,
        minloglevel=2,
        control_symbols=["<|im_end|>"],
        user_defined_symbols=["<|think|>"],
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    texts = [*TEXTS, "spelled </s> and <|im_end|> here"]
    assert our_ids(tmp_path, texts) == auto_ids(tmp_path, texts)
    split = auto_ids(tmp_path, texts, split_special_tokens=True)
    assert our_ids(tmp_path, texts, special_tokens="split") == split


@pytest.mark.parametrize(
    ("content", "package"),
    [(b"\n\x0e\n\x05<unk>\x15", "sentencepiece"), (b"IQ== 0\nIg== 1\n", "tiktoken")],
)
def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, package: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError):
        importlib.import_module(package)
    with pytest.raises(DataError, match=f"needs the package {package}.*pip install"):
        TextEncoder(tmp_path, append_eos=False, prepend_bos=False)


def test_code_of_a_directory_is_not_run(tmp_path: Path) -> None:
    directory = families.save(
        families.byte_level(),
        tmp_path / "t",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": ["own.OwnTokenizer", None]},
    )
    witness = tmp_path / "ran"
    (directory / "own.py").write_text(f"open({str(witness)!r}, 'w').close()\n")
    with pytest.raises(DataError, match="custom code"):
        TextEncoder(directory, append_eos=False, prepend_bos=False)
    assert not witness.exists()


def test_broken_files_are_named_and_not_a_traceback(tmp_path: Path) -> None:
    for name, content in (
        ("tokenizer.json", "{"),
        ("tokenizer.json", '{"model": {"type": "BPE"}}'),
        ("tokenizer_config.json", '{"bos_token": 5}'),
        ("tokenizer_config.json", "[1]"),
        ("tokenizer_config.json", "\xff"),
    ):
        directory = families.save(
            families.byte_level(), tmp_path / str(len(content)) / name
        )
        (directory / name).write_text(content, "latin-1")
        with pytest.raises(DataError, match=str(directory)):
            TextEncoder(directory, append_eos=False, prepend_bos=False)


def test_the_fingerprint_follows_ids_and_files(tmp_path: Path) -> None:
    def fingerprint(directory: Path, model_type: str | None = None) -> str:
        return TextEncoder(
            directory, append_eos=False, prepend_bos=False, model_type=model_type
        ).fingerprint

    tokenizer = families.byte_level()
    plain = families.save(tokenizer, tmp_path / "plain")
    same = families.save(tokenizer, tmp_path / "same")
    write_jsonl(same / "README.jsonl", ["of no account"])
    assert fingerprint(plain) == fingerprint(same)
    other = families.save(tokenizer, tmp_path / "other", tokenizer_class=None)
    assert fingerprint(other, "qwen2") != fingerprint(other, "llama")


def test_two_directories_are_compared_by_what_they_do(tmp_path: Path) -> None:
    tokenizer = families.byte_level()
    plain = families.save(tokenizer, tmp_path / "plain")
    same = families.save(tokenizer, tmp_path / "same", model_max_length=9)
    first = HubTokenizer(plain)
    assert first.difference(HubTokenizer(same)) is None
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=True),
        ]
    )
    other = HubTokenizer(families.save(tokenizer, tmp_path / "other"))
    assert " is [" in str(first.difference(other))
    more = families.save(
        tokenizer, tmp_path / "more", added=(AddedToken("<a>", special=True),)
    )
    assert "special tokens" in str(first.difference(HubTokenizer(more)))
