"""A run small enough to train in a second:

configuration, token store and the commands to start it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers

from alia_ctx.data.tokens.store import write_store
from tests.forked import run_command

VOCABULARY = 200
LLAMA3 = {  # of the stage `long`
    "type": "llama3",
    "theta": 10000,
    "factor": 4,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
}
_MODEL = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
}


def write_run(folder: Path, **stage: Any) -> Path:
    """A configuration with two stages, `short` (64) and `long` (256), over a store of
    documents; returns its path.
    """
    generator = np.random.default_rng(5)
    documents = [_document(generator, int(n)) for n in generator.integers(20, 700, 120)]
    write_store(folder / "text", documents, VOCABULARY)
    write_store(
        folder / "held_out", [_document(generator, 300) for _ in range(4)], VOCABULARY
    )
    _write_tokenizer(folder / "tokenizer")
    short = {
        "init_from": "random",
        "context": 64,
        "rope": {"type": "default", "theta": 10000},
        "tokens": 64 * 8 * 12,
        "update_tokens": 512,
        "learning_rate": 0.003,
        "pack": {"policy": "concat", "long_docs": "split"},
        **stage,
    }
    long = {
        **short,
        "init_from": "short",
        "context": 256,
        "rope": LLAMA3,
        "tokens": 256 * 3 * 4,
        "update_tokens": 800,
        "pack": {"policy": "best_fit", "long_docs": "split"},
    }
    config = {
        "name": "small",
        "output": str(folder / "out"),
        "tokenizer": str(folder / "tokenizer"),
        "model": _MODEL,
        "data": {"sources": {"text": {"inputs": [], "store": str(folder / "text")}}},
        "engine": {"precision": "fp32", "loss_chunk_tokens": 64},
        "checkpoint": {"every_updates": 3, "keep_last": 2},
        "evaluation": {
            "held_out": {"inputs": [], "store": str(folder / "held_out")},
            "documents": 4,
        },
        "stages": {"short": short, "long": long},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _write_tokenizer(directory: Path) -> None:
    """A word for each id, so that what is trained can be exported."""
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    words = [*special, *(f"w{number}" for number in range(4, VOCABULARY))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(special)
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def _document(generator: np.random.Generator, length: int) -> np.ndarray:
    start, stride = generator.integers(4, VOCABULARY), generator.integers(1, 4)
    return 4 + (start + stride * np.arange(length)) % (VOCABULARY - 4)


def command(*arguments: str, ranks: int = 1) -> list[str]:
    """`alia-ctx ARGUMENTS`, in this interpreter, on `ranks` processes."""
    launcher = (
        ["-m", "alia_ctx.cli.launch", "--standalone", f"--nproc-per-node={ranks}"]
        if ranks > 1
        else []
    )
    return [sys.executable, *launcher, "-m", "alia_ctx.cli", *arguments]


def alia(
    *arguments: str, ranks: int = 1, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    """`alia-ctx ARGUMENTS` to its end."""
    if ranks == 1:
        return run_command(arguments, environment(), timeout)
    return subprocess.run(
        command(*arguments, ranks=ranks),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        check=False,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def metrics(folder: Path, stage: str = "short") -> list[dict[str, Any]]:
    lines = (
        (folder / "out" / "stages" / stage / "metrics.jsonl").read_text().splitlines()
    )
    return [json.loads(line) for line in lines]


def state_checksums(checkpoint: Path) -> dict[str, str]:
    """Checksums of the files that hold tensors."""
    files = json.loads((checkpoint / "manifest.json").read_text())["files"]
    return {
        name: entry["xxh3_128"]
        for name, entry in files.items()
        if name.endswith(".distcp")
    }
