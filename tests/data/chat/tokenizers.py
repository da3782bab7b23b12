"""Tokenizers for conversations: byte-level, and as Llama's with byte fallback."""

from __future__ import annotations

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

from tests.tokenizers import SPECIAL, save

_TEXTS = [
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "París"}}\n</tool_call>',
    "You are provided with function signatures within <tools></tools> XML tags:",
    '{"type": "function", "function": {"name": "f", "description": "the rain"}}',
] * 3


def byte_level() -> Tokenizer:
    """As GPT-2's and Llama 3's, with offsets that leave blanks out (`trim_offsets`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_TEXTS, trainer)
    return tokenizer


def _with_bytes(pieces: list[str]) -> dict[str, int]:
    names = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return {name: number for number, name in enumerate(dict.fromkeys(names))}


def llama() -> Tokenizer:
    """BPE with byte fallback over `▁` for blanks, and the tokenizer of ALIA-40b is one;
    `</s>` may be built by merges.
    """
    letters = sorted({c for text in _TEXTS for c in text if c not in " \n"} | {"▁"})
    pairs = [("▁", "f"), ("o", "o"), ("<", "/"), ("s", ">"), ("</", "s>"), ("r", "a")]
    pieces = [*letters, "</", "s>", *("".join(pair) for pair in pairs)]
    vocabulary = _with_bytes(pieces)
    tokenizer = Tokenizer(
        models.BPE(vocabulary, pairs, unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


def metaspace() -> Tokenizer:
    """Unigram with byte fallback and a blank put before the first word alone."""
    letters = sorted({c for text in _TEXTS for c in text if c not in " \n"} | {"▁"})
    names = list(_with_bytes([*letters, "▁the", "fun"]))
    scores = [(name, -float(number) / 10 - 1) for number, name in enumerate(names)]
    tokenizer = Tokenizer(models.Unigram(scores, 0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    )
    return tokenizer


CHAT_FAMILIES = {"byte level": byte_level, "llama": llama, "metaspace": metaspace}


def save_chat_tokenizer(family: str, directory: Path, **config: Any) -> Path:
    """`config` goes over tokenizer_config.json, as `chat_template`."""
    return save(CHAT_FAMILIES[family](), directory, **config)
