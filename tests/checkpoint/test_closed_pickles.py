"""A foreign checkpoint runs nothing: payloads in every pickle that a reader meets."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex

from alia_ctx.checkpoint.closed_pickles import (
    closed_unpickling,
    load_metadata,
    load_object,
)
from alia_ctx.checkpoint.dcp_files import COMMON_STATE, record_file, write_metadata
from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.errors import CheckpointError


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __call__(self) -> None:
        """Only what can be called may be pickled as what is called."""

    def __reduce__(self) -> Any:
        return self.function, self.arguments


class Build:
    """Pickles as a call, whose result then gets a state."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return MetadataIndex, ("x",), {"fqn": Call(self.function, *self.arguments)}


def payloads(mark: Path) -> dict[str, Any]:
    """Things that leave a file at `mark` when they are unpickled."""
    touch = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Call(os.system, touch),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "partial": Call(functools.partial(os.system, touch)),
        "subprocess": Call(subprocess.call, ["touch", str(mark)]),
        "map": Call(list, Call(map, os.system, [touch])),
        "getattr": Call(
            Call(getattr, Call(importlib.import_module, "os"), "system"), touch
        ),
        "pickle in pickle": Call(pickle.loads, pickle.dumps(Call(os.system, touch))),
        "torch.load": Call(
            functools.partial(torch.load, weights_only=False),
            Call(io.BytesIO, saved(Call(os.system, touch))),
        ),
        "in a state": Build(os.system, touch),
    }


def saved(value: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


NAMES = list(payloads(Path("x")))


def write_checkpoint(state: Path, common: Any = None) -> None:
    """A distributed checkpoint of one tensor, and of Megatron's common state."""
    state.mkdir()
    with record_file(state, 0) as file:
        file.append_object(COMMON_STATE, common or {})
        file.append_tensor("w", (0,), torch.arange(4.0))
    write_metadata(state, {"w": ((4,), torch.float32)}, [file.part])


def read(state: Path) -> Any:
    with open_state(state) as reader:
        return reader.tensors


def load_upstream(state: Path) -> Any:
    """As Megatron loads: its own reader and planner."""
    loaded = {"w": torch.zeros(4), COMMON_STATE: None}
    with closed_unpickling(state):
        dcp.load(loaded, storage_reader=dcp.FileSystemReader(state), no_dist=True)
    return loaded


@pytest.mark.parametrize("name", NAMES)
def test_the_payloads_are_alive(name: str, tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(payloads(tmp_path / "mark")[name]))
    assert (tmp_path / "mark").exists()


PLACES: dict[str, Callable[[Metadata, Any], Any]] = {
    "instead of all": lambda metadata, payload: payload,
    "before all": lambda metadata, payload: (payload, metadata),
    "as planner's data": lambda metadata, payload: replaced(
        metadata, planner_data={"x": payload}
    ),
    "as a key": lambda metadata, payload: replaced(
        metadata, planner_data={MetadataIndex("x", None, payload): 0}
    ),
}


def replaced(metadata: Metadata, **fields: Any) -> Metadata:
    vars(metadata).update(fields)
    return metadata


@pytest.mark.parametrize("load", [read, load_upstream])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_metadata_runs_nothing(
    name: str, place: str, load: Callable[[Path], Any], tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "state")
    file, mark = tmp_path / "state/.metadata", tmp_path / "mark"
    metadata = pickle.loads(file.read_bytes())
    document = PLACES[place](metadata, payloads(mark)[name])
    for protocol in (0, 2, 5):
        file.write_bytes(pickle.dumps(document, protocol))
        with pytest.raises(CheckpointError, match="not readable as a checkpoint's"):
            load(tmp_path / "state")
        assert not mark.exists()


@pytest.mark.parametrize("name", NAMES)
def test_records_of_objects_run_nothing(name: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    write_checkpoint(tmp_path / "state", {"optimizer": payloads(mark)[name]})
    with pytest.raises(CheckpointError, match="no plain object"):
        load_upstream(tmp_path / "state")
    with pytest.raises(CheckpointError, match="no plain object"):
        load_object(saved(payloads(mark)[name]), "x")
    assert not mark.exists()


def test_a_global_by_its_path_is_refused(tmp_path: Path) -> None:
    """Protocol 4 allows dotted names: through an allowed class to anything it refers to."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state/.metadata").write_bytes(
        b"\x80\x04"
        + short("torch.distributed.checkpoint.metadata")
        + short("Metadata.__init__.__globals__")
        + b"\x93."
    )
    with pytest.raises(CheckpointError, match="__globals__, which no checkpoint needs"):
        load_metadata(tmp_path / "state")


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def test_a_pickle_cannot_change_the_classes(tmp_path: Path) -> None:
    """BUILD on a class sets its attributes: the next checkpoint would be read with them."""
    (tmp_path / "state").mkdir()
    state = b"N}" + short("__init__") + b"\x8c\x05torch\x8c\x04Size\x93s\x86b."
    (tmp_path / "state/.metadata").write_bytes(
        b"\x80\x04"
        + short("torch.distributed.checkpoint.metadata")
        + short("Metadata")
        + b"\x93"
        + state
    )
    before = Metadata.__init__
    with pytest.raises(CheckpointError):
        load_metadata(tmp_path / "state")
    assert Metadata.__init__ is before


@pytest.mark.parametrize("path", ["../secret", "/etc/passwd", "a/b", "..", ""])
def test_records_stay_inside_the_checkpoint(path: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "state")
    file = tmp_path / "state/.metadata"
    metadata = pickle.loads(file.read_bytes())
    for record in metadata.storage_data.values():
        record.relative_path = path
    file.write_bytes(pickle.dumps(metadata))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        read(tmp_path / "state")


def test_a_common_state_of_older_megatron_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "state")
    (tmp_path / "state/common.pt").write_bytes(saved({}))
    with pytest.raises(CheckpointError, match=r"common\.pt.*older Megatron"):
        load_upstream(tmp_path / "state")


def test_what_is_harmless_loads(tmp_path: Path) -> None:
    common = {
        "optimizer": {"lr": 1e-3, "betas": (0.9, 0.95), "step": torch.tensor(3)},
        "names": ["a", None, True],
    }
    write_checkpoint(tmp_path / "state", common)
    loaded = load_upstream(tmp_path / "state")
    assert loaded["w"].tolist() == [0, 1, 2, 3]
    assert loaded[COMMON_STATE][0] == common
    assert read(tmp_path / "state") == {"w": ((4,), torch.float32)}


def test_what_upstream_wrote_loads(tmp_path: Path) -> None:
    weights = {
        "a": torch.arange(6.0).view(2, 3),
        "b": {"c": torch.ones(5, dtype=torch.bfloat16)},
    }
    dcp.save(weights, checkpoint_id=tmp_path / "state", no_dist=True)
    with open_state(tmp_path / "state") as reader:
        assert reader.tensors == {
            "a": ((2, 3), torch.float32),
            "b.c": ((5,), torch.bfloat16),
        }
        out = torch.empty(2, 3)
        reader.read_box("a", (0, 0), out)
    assert torch.equal(out, weights["a"])


def test_upstreams_readers_are_as_before_afterwards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "state")
    reader, planner = dcp.FileSystemReader, dcp.DefaultLoadPlanner
    before = reader.read_metadata, planner.load_bytes
    with (
        pytest.raises(ValueError, match="inside"),
        closed_unpickling(tmp_path / "state"),
    ):
        assert (reader.read_metadata, planner.load_bytes) != before
        raise ValueError("inside")
    assert (reader.read_metadata, planner.load_bytes) == before
