"""docs/your-own-model.md holds what it promises: its commands, run as they are written, take
a small Hugging Face model to an evaluated export of eight times the context.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.paths import ROOT, python_path
from tests.text_data import write_jsonl
from tests.tokenizers import byte_level, save, with_template

PAGE = ROOT / "docs" / "your-own-model.md"
MOST = 12
WORDS = ["the", "rain", "falls", "on", "plain", "and", "river", "carries", "it", "past"]


def commands() -> list[str]:
    """What the page writes as commands: lines that are set in by four spaces."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if re.match(r" {4}\S", line)]


def write_model(directory: Path) -> None:
    save(with_template(byte_level()), directory)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 352,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **sizes, max_position_embeddings=128, bos_token_id=1, eos_token_id=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def write_text(path: Path, seed: int, count: int) -> None:
    draw = np.random.default_rng(seed)
    path.parent.mkdir()
    lengths = draw.choice([30, 100, 400, 1500], count)
    write_jsonl(path, [" ".join(draw.choice(WORDS, n)) + f" {n}" for n in lengths])


def test_there_are_few_commands() -> None:
    listed = commands()
    assert listed[0].startswith("pip install ") and ".whl" in listed[0]
    assert len(listed) <= MOST


@pytest.mark.long
@pytest.mark.timeout(
    1200
)  # two minutes of processor time, on a machine that others use
def test_the_page_leads_to_an_evaluated_export(tmp_path: Path) -> None:
    write_model(tmp_path / "models" / "mine")
    write_text(tmp_path / "text" / "train.jsonl", 1, 120)
    write_text(tmp_path / "held-out" / "held.jsonl", 2, 6)
    # The wheel is built and installed by tests/test_packaging.py.
    shims = tmp_path / "bin"
    shims.mkdir()
    for name, line in {
        "alia-ctx": f'exec {sys.executable} -m alia_ctx.cli "$@"',
        "python": f'exec {sys.executable} "$@"',
        "pip": f'echo "$@" > {tmp_path}/installed',
    }.items():
        (shims / name).write_text(f"#!/bin/sh\n{line}\n")
        (shims / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{shims}:{os.environ['PATH']}",
        "PYTHONPATH": python_path(),
        "OMP_NUM_THREADS": "1",
    }
    with subprocess.Popen(
        ["bash", "-e", "-c", "\n".join(commands())],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that nothing outlives a test that took too long
    ) as shell:
        try:
            said, errors = shell.communicate(timeout=1100)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, said + errors
    assert (tmp_path / "installed").is_file()
    config = json.loads((tmp_path / "runs/quick/hf/1k/config.json").read_text())
    assert config["max_position_embeddings"] == 1024
    assert "mine.yaml: no problems" in said
    assert "1k is clearly better than base" in said  # evaluated
    assert said.rstrip().endswith(" 1024")  # read back by transformers
    assert (tmp_path / "runs/quick/report/index.html").stat().st_size > 10_000
    measured = sorted(p.name for p in tmp_path.glob("runs/quick/evaluation/1k/*.json"))
    assert measured == ["blocks-1024.json", "positions-1024.json"]
