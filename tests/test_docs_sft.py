"""docs/sft.md holds what it promises: its file and its commands, as they stand, fine-tune a
small Hugging Face model on conversations and export it.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tests.paths import ROOT, python_path
from tests.tokenizers import byte_level, save

PAGE = ROOT / "docs" / "sft.md"
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
    },
}


def section() -> str:
    text = PAGE.read_text(encoding="utf-8")
    return text.split("## From a Hugging Face model\n")[1].split("\n## ")[0]


def write_base(directory: Path) -> None:
    save(byte_level(), directory)
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 352,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **sizes, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)


def write_conversations(file: Path, count: int) -> None:
    file.parent.mkdir()
    rows = []
    for number in range(count):
        place = f"place {number * 7919 % 1009}"
        arguments = json.dumps({"place": place})
        call = {"name": "get_weather", "arguments": arguments}
        answer = {"tool_calls": [{"type": "function", "function": call}]}
        asked = {"role": "user", "content": f"Is it raining in {place}?"}
        said = [asked, {"role": "assistant", **answer}]
        rows.append(json.dumps({"messages": said, "tools": [TOOL]}))
    file.write_text("\n".join(rows))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_file_and_the_commands_lead_to_an_export(tmp_path: Path) -> None:
    [config] = re.findall(r"```yaml\n(.*?)```", section(), re.DOTALL)
    commands = re.findall(r"^ {4}(alia-ctx .+)$", section(), re.MULTILINE)
    assert [c.split()[1] for c in commands][-2:] == ["train", "export-hf"]
    (tmp_path / "mine.yaml").write_text(config)
    write_base(tmp_path / "models" / "mine")
    write_conversations(tmp_path / "calls" / "all.jsonl", 80)
    shim = tmp_path / "bin" / "alia-ctx"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} -m alia_ctx.cli "$@"\n')
    shim.chmod(0o755)
    done = subprocess.run(
        ["bash", "-e", "-c", "\n".join(commands)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PATH": f"{shim.parent}:{os.environ['PATH']}",
            "PYTHONPATH": python_path(),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine.yaml: no problems" in done.stdout
    out = tmp_path / "export" / "mine-fc"
    tokenizer = AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "Is it raining?"}]
    shown = tokenizer.apply_chat_template(asked, tools=[TOOL], tokenize=False)
    assert "get_weather" in shown
    card = (out / "README.md").read_text()
    # 80 conversations less those held out, whose number the file gives.
    kept = 80 - yaml.safe_load(config)["stages"]["fc"]["pack"]["held_out_instances"]
    row = rf"\| fc \| calls \| cc-by-4\.0 \| [\d,]+ \| {kept} conversations \|"
    assert re.search(row, card), card
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "mine"
