"""Which weights a directory holds is told by all bytes, and read by one rank."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from alia_ctx.workflow import model_checksums
from alia_ctx.workflow.model_checksums import model_checksums as of_directory
from alia_ctx.workflow.model_checksums import share_checksums

BYTES = 100 << 20


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_checksums, "_known", {})


def directory(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text("{}")
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(BYTES)
    return path


@pytest.mark.parametrize("place", [300_000, BYTES // 2 + 12_345, BYTES - 300_000])
def test_one_byte_of_a_large_file_is_seen(tmp_path: Path, place: int) -> None:
    one, other = directory(tmp_path / "one"), directory(tmp_path / "other")
    assert of_directory(one) == of_directory(other)
    with (other / "model.safetensors").open("r+b") as file:
        file.seek(place)
        file.write(b"\1")
    before, after = of_directory(one), of_directory(other)
    assert before["config.json"] == after["config.json"]
    assert before["model.safetensors"] != after["model.safetensors"]


def test_it_is_of_all_bytes_of_weights_and_configuration(tmp_path: Path) -> None:
    made = directory(tmp_path / "model")
    (made / "pytorch_model.bin").write_bytes(b"weights")
    (made / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    (made / "README.md").write_text("none of the model")
    assert of_directory(made) == {
        name: xxhash.xxh3_128_hexdigest((made / name).read_bytes())
        for name in (
            *("config.json", "model.safetensors", "pytorch_model.bin"),
            "model.safetensors.index.json",
        )
    }


class Second:
    """The second of two ranks; the first has read what it is given."""

    rank, world_size = 1, 2

    def __init__(self, of_first: Any) -> None:
        self.of_first = json.loads(json.dumps(of_first))  # as ranks tell each other

    def gather_objects(self, value: Any) -> list[Any]:
        return [self.of_first, value]


class First(Second):
    rank = 0

    def __init__(self) -> None:
        self.told: Any = None

    def gather_objects(self, value: Any) -> list[Any]:
        self.told = value
        return [value, []]


def test_other_ranks_read_what_the_first_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, first = directory(tmp_path / "model"), First()
    expected = of_directory(made)
    share_checksums(first)
    monkeypatch.setattr(model_checksums, "_known", {})
    read: list[str] = []
    whole = model_checksums.file_checksum

    def seen(path: Path) -> str:
        read.append(path.name)
        return whole(path)

    monkeypatch.setattr(model_checksums, "file_checksum", seen)
    share_checksums(Second(first.told))
    assert of_directory(made) == expected
    assert read == []
    with (made / "model.safetensors").open(
        "ab"
    ) as file:  # another file on this rank's host
        file.write(b"\1")
    assert of_directory(made) != expected
    assert read == ["model.safetensors"]
