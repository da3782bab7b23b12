"""Small corpora and tokenizers that the data tests share."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

SENTENCE = (
    "the rain in Girona falls mainly on the plain, and the river Ter carries it "
    "past the old town "
)


def save_tokenizer(directory: Path) -> Path:
    """A byte-level BPE tokenizer of some 300 tokens as a Hugging Face directory;

    <unk> <s> </s> <pad> are 0 to 3.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([SENTENCE], trainer)
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    return directory


def write_jsonl(path: Path, texts: list[str]) -> Path:
    lines = [
        json.dumps({"text": text, "name": f"doc-{number}"})
        for number, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def varied_texts(count: int) -> list[str]:
    """Texts of very different lengths, none empty."""
    return [
        SENTENCE[: 5 + number * 7 % 80] * (1 + number % 13) + str(number)
        for number in range(count)
    ]
