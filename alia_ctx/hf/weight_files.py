"""Where every weight of a Hugging Face directory lies: safetensors or `pytorch_model.bin`,
one file or many.

Only headers are read. Everything that can be wrong with the files is places here, before
a byte is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alia_ctx.checkpoint.tensor_files import TensorPlace, archive_tensors
from alia_ctx.errors import CheckpointError
from alia_ctx.files import parse_json
from alia_ctx.hf.json_files import load_json

SAFETENSORS = "model.safetensors"
SAFETENSORS_INDEX = "model.safetensors.index.json"
_BIN = "pytorch_model.bin"
_BIN_INDEX = "pytorch_model.bin.index.json"
_ADAPTER = "adapter_config.json"
_MAX_HEADER = 100_000_000  # the limit of the safetensors library
# Buffers that early Llama checkpoints saved with the weights; they follow from config.json.
_DERIVED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")
DTYPE_NAMES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
}
# Bits of a value in the formats of safetensors that share bytes.
_PACKED_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}


def locate_weights(hf_dir: Path) -> dict[str, TensorPlace]:
    """Name -> place of every weight in `hf_dir`.

    Where there are several, those that transformers would load. Raises CheckpointError
    naming the file (and tensor): no weights, an adapter beside them, a shard that is
    missing, truncated or malformed, an index that names what the shards lack or lacks
    what they hold.
    """
    hf_dir = Path(hf_dir)
    if (hf_dir / _ADAPTER).is_file():
        raise CheckpointError(
            f"{hf_dir / _ADAPTER}: transformers would add this adapter to the weights; "
            "merge it into them (peft's merge_and_unload), or take the file away"
        )
    # The order in which transformers looks: a whole file wins over an index beside it.
    for name, read in (
        (SAFETENSORS, read_safetensors_header),
        (SAFETENSORS_INDEX, _read_safetensors_shards),
        (_BIN, _read_bin),
        (_BIN_INDEX, _read_bin_shards),
    ):
        if (hf_dir / name).is_file():
            return {
                tensor: place
                for tensor, place in read(hf_dir / name).items()
                if not tensor.endswith(_DERIVED)
            }
    shards = sorted(p.name for p in hf_dir.glob("*.safetensors")) + sorted(
        p.name for p in hf_dir.glob("*.bin")
    )
    hint = (
        f"it holds {shards[0]} but no {SAFETENSORS_INDEX}"
        if shards
        else "it holds no weight files"
    )
    raise CheckpointError(
        f"{hf_dir}: expected {SAFETENSORS}, {SAFETENSORS_INDEX}, {_BIN} or {_BIN_INDEX}; {hint}"
    )


def _read_safetensors_shards(index: Path) -> dict[str, TensorPlace]:
    return _read_shards(index, read_safetensors_header)


def _read_bin_shards(index: Path) -> dict[str, TensorPlace]:
    return _read_shards(index, _read_bin)


def _read_shards(index: Path, read: Any) -> dict[str, TensorPlace]:
    weight_map = load_json(index).get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise CheckpointError(
            f"{index}: has no weight_map; copy it again from its source"
        )
    places: dict[str, TensorPlace] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(
                f"{index}: lists {name} in {shard!r}, which is not the name of a file "
                "beside it; put all shards into that directory, under names without "
                "folders, and list them so"
            )
    for shard in sorted(set(weight_map.values())):
        file = index.parent / shard
        if not file.is_file():
            raise CheckpointError(
                f"{file}: missing, but {index.name} lists it; copy it again from its source"
            )
        for name, place in read(file).items():
            if weight_map.get(name) != shard:
                listed = (
                    f"lists it in {weight_map[name]}"
                    if name in weight_map
                    else "does not list it"
                )
                raise CheckpointError(
                    f"{file}: holds {name}, but {index.name} {listed}; index and shards are not "
                    "of one save, copy them again"
                )
            places[name] = place
    absent = [name for name in weight_map if name not in places]
    if absent:
        raise CheckpointError(
            f"{index}: lists {absent[0]} in {weight_map[absent[0]]}, which does not hold it "
            f"({len(absent)} such); copy the shards again"
        )
    return places


def _read_bin(file: Path) -> dict[str, TensorPlace]:
    places = archive_tensors(file)
    if not isinstance(places, dict):
        raise CheckpointError(f"{file}: holds one tensor instead of a dict of tensors")
    return places


def read_safetensors_header(file: Path) -> dict[str, TensorPlace]:
    """Places of the tensors in one safetensors file, checked against its size.

    Format: 8 bytes little-endian header length, a JSON header, then the tensors without gaps.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER):
            raise CheckpointError(
                f"{file}: {size} bytes cannot hold a header of {length}; the file is truncated "
                "or no safetensors file, copy it again"
            )
        try:
            header = parse_json(stream.read(length))
            header.pop("__metadata__", None)
            places = {
                name: _place(file, 8 + length, entry) for name, entry in header.items()
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file}: its header is damaged ({error}); copy it again"
            ) from error
    _check_cover(file, 8 + length, places, size)
    return places


def _place(file: Path, base: int, entry: Mapping[str, Any]) -> TensorPlace:
    start, stop = entry["data_offsets"]
    shape, name = tuple(entry["shape"]), entry["dtype"]
    if name in _PACKED_BITS:  # no tensor of torch's: its bytes
        shape, name = (math.prod(shape) * _PACKED_BITS[name] // 8,), "U8"
    if name not in DTYPE_NAMES:
        raise ValueError(f"dtype {name} is unknown")
    place = TensorPlace(file, base + start, shape, DTYPE_NAMES[name])
    if stop - start != place.nbytes or min((start, *place.shape), default=0) < 0:
        raise ValueError(
            f"shape {list(entry['shape'])} of {entry['dtype']} does not fill bytes "
            f"{start} to {stop}"
        )
    return place


def _check_cover(
    file: Path, start: int, places: Mapping[str, TensorPlace], size: int
) -> None:
    """The tensors must follow each other without gap or overlap up to the end of the file."""
    for name, place in sorted(
        places.items(), key=lambda item: (item[1].offset, item[1].nbytes)
    ):
        if place.offset != start:
            raise CheckpointError(
                f"{file}: {name} starts at byte {place.offset} instead of {start}; its "
                "header is damaged, copy it again"
            )
        start += place.nbytes
    if start != size:
        what = "truncated" if size < start else "longer than its header says"
        raise CheckpointError(
            f"{file}: {size} bytes instead of {start}, the file is {what}; copy it again"
        )
