"""A small Llama that half knows the answers of some retrieval samples, its tokenizer, and
text: what tests of evaluation measure by the engine and by transformers.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from alia_ctx.config.evaluation import RetrievalConfig
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.evaluation.retrieval import LANGUAGES, SampleRows, ruler_specs
from alia_ctx.workflow.evaluation_tasks import retrieval_settings
from tests.hf_models import SIZES

NATIVE, CONTEXT, VOCABULARY = 256, 512, 336
RETRIEVAL = RetrievalConfig(
    tasks=["niah_single_1", "niah_multikey_1", "vt"], samples=12
)


def write_text(folder: Path, documents: int = 6) -> Path:
    """Documents of some 1,500 tokens, a file each."""
    generator = random.Random(1)
    words = [w for sentence in LANGUAGES["ca"].noise for w in sentence.split()]
    folder.mkdir()
    for number in range(documents):
        lines = [" ".join(generator.choices(words, k=12)) for _ in range(60)]
        (folder / f"{number}.txt").write_text("\n".join(lines))
    return folder


def write_tokenizer(folder: Path, text: Path) -> Path:
    lines = [json.dumps({"text": f.read_text()}) for f in sorted(text.iterdir())]
    lines += [json.dumps({"text": "\n".join(LANGUAGES["en"].noise)})]
    (folder / "words.jsonl").write_text("\n".join(lines))
    train_tokenizer([folder / "words.jsonl"], folder / "tokenizer", 300)
    return folder / "tokenizer"


def samples(tokenizer: Any, texts: Callable[[int], list[str]]) -> SampleRows:
    """The samples of RETRIEVAL at both lengths, as the evaluation makes them."""
    settings = retrieval_settings(RETRIEVAL, True)

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False).input_ids

    empty = SampleRows(settings, [], encode, CONTEXT, texts=texts)
    specs, _ = ruler_specs(settings, empty, [NATIVE, CONTEXT])
    return SampleRows(settings, specs, encode, CONTEXT, texts=texts)


def make_model(rows: SampleRows, *, sharp: bool = False) -> Any:
    """A random Llama whose head knows, of some samples, which token follows which in the
    answer: it answers those, and every loss depends on all tokens before.

    `sharp`: so much that the far context makes some tokens likely, and their absence not.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(3)
    sizes = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": NATIVE}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False))
    following: dict[int, int] = {}
    for number in reversed(range(len(rows.specs))):
        sample = rows.sample(number)
        start, stop = sample.answer
        answer = sample.tokens[start - 1 : stop].tolist()
        pairs = {*following.items(), *pairwise(answer)}
        if len({token for token, _ in pairs}) == len(pairs):  # one way to go on
            following = dict(pairs)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(
                1 + 0.1 * noise
                if "norm" in name
                else (0.125 if sharp else 0.05) * noise
            )
        embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
        embedding.copy_(torch.randn_like(embedding))
        for token, after in following.items():
            head[after] += (1.2 if sharp else 0.5) * embedding[token]
        head *= 2 if sharp else 1
    return model.eval()


def write_model(folder: Path, model: Any, tokenizer: Path) -> Path:
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder / file.name)
    return folder
