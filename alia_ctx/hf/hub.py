"""Models by their name on the Hugging Face hub, `org/name`: their files in its cache."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_ANSWER_SECONDS = 10.0
# What an import does not read; the last are other copies of the same weights.
_NEVER = ("original/*", "*.gguf", "*.h5", "*.msgpack", "*.onnx*", "*.pth", "*.tflite")
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.index.json")


def model_directory(name: Path, *, weights: bool = True) -> Path:
    """The directory of a model: `name` itself where there is one, or where it cannot be a
    name of the hub; else the model's files from the hub, which are kept in its cache.

    `weights`: whether those are wanted, and not the small files alone.

    CheckpointError where there is neither, and where the hub does not answer within some
    seconds and the cache lacks the model.
    """
    if name.exists() or not _NAME.fullmatch(str(name)):
        return name
    from huggingface_hub import HfApi, snapshot_download

    left_out = [*_NEVER, *(() if weights else _WEIGHTS)]
    try:
        # Asked first, as `snapshot_download` gives its own first question no time limit.
        known = HfApi().model_info(str(name), timeout=_ANSWER_SECONDS)
        files = [file.rfilename for file in known.siblings or ()]
        if any(file.endswith(".safetensors") for file in files):
            left_out.append("*.bin")
        options: dict[str, Any] = {"revision": known.sha}
        return _whole(snapshot_download, name, left_out, **options)
    except Exception as error:  # of whatever library asks the net
        try:
            return _whole(snapshot_download, name, left_out, local_files_only=True)
        except Exception:  # as above
            raise CheckpointError(_why(name, error)) from error


def whole_directory(directory: Path) -> Path:
    """A model's directory with its weights: where it lies in the hub's cache without
    them, they are fetched, of the same revision.

    CheckpointError as `model_directory`.
    """
    from alia_ctx.hf.assets import model_name

    in_cache = directory.resolve().parent.name == "snapshots"
    if not in_cache or any(any(directory.glob(sign)) for sign in _WEIGHTS[:2]):
        return directory
    from huggingface_hub import snapshot_download

    name, revision = Path(model_name(directory)), directory.resolve().name
    try:
        return _whole(snapshot_download, name, list(_NEVER), revision=revision)
    except Exception as error:  # of whatever library asks the net
        raise CheckpointError(_why(name, error)) from error


def _whole(download: Any, name: Path, left_out: list[str], **options: Any) -> Path:
    return Path(
        download(
            str(name), ignore_patterns=left_out, etag_timeout=_ANSWER_SECONDS, **options
        )
    )


def _why(name: Path, error: Exception) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        reason = "HF_HUB_OFFLINE keeps the hub from being asked"
        remedy = "unset it, or give a directory"
    elif isinstance(error, GatedRepoError):
        reason = "on the hub its publisher asks for consent"
        remedy = f"give it at https://huggingface.co/{name}, then `hf auth login`"
    elif isinstance(error, RepositoryNotFoundError):
        reason = "the hub shows no model of that name"
        remedy = "correct it, or `hf auth login` where it is private"
    else:
        told = str(error).strip().partition("\n")[0]
        reason = f"the hub cannot be asked ({type(error).__name__}: {told})"
        remedy = "see to the connection, or give a directory"
    return f"{name}: there is no such directory, and {reason}; {remedy}"
