"""Small tokenizers of every model of the `tokenizers` library, as directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tests.text_data import SENTENCE

SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
_TEXTS = [SENTENCE, "hello see and here a < b > c / s im_end", "0123456789 ,.;:!?-"]


def byte_level(**options: Any) -> Tokenizer:
    """Byte-level BPE, as GPT-2 and Llama 3 have it."""
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    """Unigram with Metaspace: its lattice holds `</s>` as a piece like any other."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def word_piece() -> Tokenizer:
    """WordPiece over words between blanks, in lower case: `</s>` may be a whole word."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=SPECIAL, show_progress=False
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def word_level() -> Tokenizer:
    """Words between blanks are tokens: a spelled `</s>` is one in the vocabulary."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def merging() -> Tokenizer:
    """BPE without a pre-tokeniser whose merges build `</s>` and keep whole words."""
    letters = {letter: number for number, letter in enumerate("abcdehlorst <>/|_imnp")}
    vocabulary = {token: number for number, token in enumerate(SPECIAL)}
    for letter in letters:
        vocabulary[letter] = len(vocabulary)
    for token in ("</", "s>", "he", "ll"):
        vocabulary[token] = len(vocabulary)
    merges = [("<", "/"), ("s", ">"), ("</", "s>"), ("<", "s>"), ("h", "e"), ("l", "l")]
    return Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", ignore_merges=True)
    )


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """With a post-processor that puts BOS and EOS around every text."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return tokenizer


FAMILIES = {
    "byte level": byte_level,
    "unigram": unigram,
    "word piece": word_piece,
    "word level": word_level,
    "merging": merging,
    "byte level with template": lambda: with_template(byte_level()),
    "unigram with template": lambda: with_template(unigram()),
}


def save(
    tokenizer: Tokenizer,
    directory: Path,
    *,
    added: tuple[AddedToken, ...] = (),
    **config: Any,
) -> Path:
    """Write a directory; `config` goes over the usual tokenizer_config.json."""
    directory.mkdir(parents=True)
    tokenizer.add_tokens(list(added))
    tokenizer.save(str(directory / "tokenizer.json"))
    usual = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    text = json.dumps({k: v for k, v in {**usual, **config}.items() if v is not None})
    (directory / "tokenizer_config.json").write_text(text)
    return directory
