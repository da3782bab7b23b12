"""Proof that a Hugging Face directory and a checkpoint are the same model: every bit, then logits.

Weights are compared as bytes, a block at a time. Logits come from `transformers`' own
layers on one side and from our reference decoder on the checkpoint's weights on the
other, in fp32, one layer in memory at a time.
"""

# ruff: noqa: N803, N806 - shape suffixes are part of tensor names

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.checkpoint.tensor_files import TensorFiles, TensorPlace, as_bytes
from alia_ctx.errors import CheckpointError
from alia_ctx.hf import config, rules
from alia_ctx.hf.convert import (
    Progress,
    StateReader,
    StateStore,
    drop_tied_head,
    stored_dtypes,
)
from alia_ctx.hf.families import FAMILIES
from alia_ctx.hf.reference_decoder import ReferenceDecoder, spread_positions
from alia_ctx.hf.rules import EMBEDDING, FINAL_NORM, HEAD, RowMap, WeightMap
from alia_ctx.hf.weight_files import locate_weights

_BLOCK_BYTES = 2 << 20  # stays in the processor's cache
DEFAULT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LogitReport:
    """Largest differences of fp32 logits over the vocabulary, in units of max(1, largest logit).

    `short` is over positions in the first half of the list, `long` over the others, up
    to the last position of the context. `first` names where the two sides part, or is
    None.
    """

    positions: tuple[int, ...]
    short: float
    long: float
    first: str | None


@dataclass(frozen=True)
class VerifyReport:
    """What `verify` found; `str()` is the text to print."""

    tensors: int
    bytes: int
    config_differences: tuple[str, ...] = ()
    weight_differences: tuple[str, ...] = ()
    logits: LogitReport | None = None
    tolerance: float = DEFAULT_TOLERANCE
    notes: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        return not (
            self.config_differences
            or self.weight_differences
            or (self.logits and self.logits.first)
        )

    def __str__(self) -> str:
        lines = [
            f"weights: {self.tensors} tensors, {self.bytes:,} bytes, "
            f"{len(self.weight_differences)} differ"
        ]
        lines += [f"  {difference}" for difference in self.weight_differences[:10]]
        lines += [f"config: {difference}" for difference in self.config_differences]
        if self.logits:
            at = self.logits.positions
            lines.append(
                f"logits: largest difference {self.logits.short:.1e} at positions {at[0]} to "
                f"{at[len(at) // 2 - 1]}, {self.logits.long:.1e} at {at[len(at) // 2]} to {at[-1]} "
                f"(tolerance {self.tolerance:g})"
            )
            lines += [f"  {self.logits.first}"] if self.logits.first else []
        return "\n".join(
            [*lines, *self.notes, "same model" if self.ok else "NOT the same model"]
        )


def verify(
    hf_dir: Path,
    ckpt_dir: Path,
    store: StateStore,
    *,
    logits: bool = True,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare the model in `hf_dir` with the checkpoint at `ckpt_dir`; see VerifyReport
    for what is found.

    Raises CheckpointError where one of them is damaged, or where their sizes differ so
    that nothing can be compared; other differences of their configurations are part of
    the report.
    """
    hf_dir, ckpt_dir = Path(hf_dir), Path(ckpt_dir)
    manifest = checkpoint.open_checkpoint(ckpt_dir)
    model, rope, context = config.read_config(hf_dir)
    weights, found = WeightMap(model), locate_weights(hf_dir)
    apart = [
        f"{name} is {getattr(model, name)!r} in config.json, {value!r} in the checkpoint"
        for name, value in vars(manifest.model).items()
        if getattr(model, name) != value
    ]
    if weights.huggingface_shapes() != WeightMap(manifest.model).huggingface_shapes():
        raise CheckpointError(
            f"{hf_dir} and {ckpt_dir} are not one model: {'; '.join(apart)}"
        )
    drop_tied_head(model.tie_word_embeddings, found)
    rules.check_huggingface(weights, found, str(hf_dir))
    with store.open_state(ckpt_dir / checkpoint.STATE) as state, TensorFiles() as files:
        pair = _Pair(
            weights, found, files, state, stored_dtypes(weights, state, str(ckpt_dir))
        )
        differences = tuple(pair.weight_differences(progress))
        return VerifyReport(
            tensors=len(found),
            bytes=sum(place.nbytes for place in found.values()),
            config_differences=(*apart, *_config_differences(rope, context, manifest)),
            weight_differences=differences,
            logits=_compare_logits(hf_dir, pair, manifest, tolerance)
            if logits
            else None,
            tolerance=tolerance,
            notes=tuple(pair.notes()),
        )


def _config_differences(rope: Any, context: int, manifest: Manifest) -> Iterator[str]:
    if rope != manifest.rope:
        yield f"RoPE is {rope} in config.json, {manifest.rope} in the checkpoint"
    expected = config.stated_length(manifest.rope, manifest.context)
    if context != expected:
        yield (
            f"max_position_embeddings is {context} in config.json, the checkpoint "
            f"makes it {expected}"
        )


class _Pair:
    """Both sides of a comparison, by Hugging Face's tensor names."""

    def __init__(
        self,
        weights: WeightMap,
        found: dict[str, TensorPlace],
        files: TensorFiles,
        state: StateReader,
        kinds: dict[str, torch.dtype],
    ) -> None:
        self.model, self._found, self._files, self._state, self._kinds = (
            weights.model,
            found,
            files,
            state,
            kinds,
        )
        self._homes = {name: home for name, _, home in weights.huggingface_tensors()}

    def notes(self) -> Iterator[str]:
        converted = [
            n
            for n, home in self._homes.items()
            if self._kinds[home.runs[0].name] != self._found[n].dtype
        ]
        if converted:
            name = converted[0]
            yield (
                f"note: {len(converted)} tensors were compared in the checkpoint's dtype "
                f"({self._found[name].dtype} -> {self._kinds[self._homes[name].runs[0].name]})"
            )

    def theirs(self, name: str, start: int, count: int) -> Tensor:
        """Rows of the Hugging Face file, in its dtype."""
        place = self._found[name]
        out = torch.empty((count, *place.shape[1:]), dtype=place.dtype)
        self._files.read_rows(place, start, out)
        return out

    def ours(self, name: str, start: int, count: int) -> Tensor:
        """The same rows from the checkpoint, in its dtype."""
        home: RowMap = self._homes[name]
        out = torch.empty(
            (count, *self._found[name].shape[1:]), dtype=self._kinds[home.runs[0].name]
        )
        at = 0
        for run in home.between(start, start + count):
            self._state.read_rows(
                run.name, run.layer, run.start, out[at : at + run.count]
            )
            at += run.count
        return out

    def names(self) -> list[str]:
        return list(self._homes)

    def rows(self, name: str) -> int:
        return self._found[name].shape[0]

    def blocks(self, name: str) -> Iterator[tuple[int, int]]:
        """Start and length of blocks of rows that fit the buffer."""
        total, step = (
            self.rows(name),
            max(1, _BLOCK_BYTES // self._found[name].row_bytes),
        )
        for start in range(0, total, step):
            yield start, min(step, total - start)

    def weight_differences(self, progress: Progress | None) -> Iterator[str]:
        done, total = 0, sum(place.nbytes for place in self._found.values())
        for name in self._homes:
            for start, count in self.blocks(name):
                difference = _first_difference(
                    self.theirs(name, start, count),
                    self.ours(name, start, count),
                    start,
                )
                if difference:
                    yield f"{name}{difference}"
                    break
            done += self._found[name].nbytes
            if progress:
                progress(done, total)


def _first_difference(theirs: Tensor, ours: Tensor, start: int) -> str | None:
    theirs = theirs.to(ours.dtype)
    if (as_bytes(theirs) == as_bytes(ours)).all():
        return None
    width = ours.dtype.itemsize
    differs = (
        torch.from_numpy(as_bytes(theirs) != as_bytes(ours))
        .view(-1, width)
        .any(dim=1)
        .view(ours.shape)
    )
    index = differs.nonzero()[0].tolist()
    value, other = theirs[tuple(index)].item(), ours[tuple(index)].item()
    return (
        f"{[index[0] + start, *index[1:]]} is {value!r} in Hugging Face's file, "
        f"{other!r} in the checkpoint"
    )


def _compare_logits(
    hf_dir: Path, pair: _Pair, manifest: Manifest, tolerance: float
) -> LogitReport:
    # The last position is context - 1, so that transformers' dynamic RoPE scales for
    # the whole context.
    positions = spread_positions(manifest.context)
    tokens = torch.randint(
        0,
        pair.model.vocab_size,
        positions.shape,
        generator=torch.Generator().manual_seed(0),
    )
    reference = ReferenceDecoder(
        manifest.model, manifest.rope, manifest.context, positions
    )
    other = _TransformersLayers(hf_dir, pair.model.architecture, positions)
    x_TH, y_TH = (
        torch.cat([side(EMBEDDING, int(token), 1) for token in tokens]).float()
        for side in (pair.ours, pair.theirs)
    )
    first = None
    for layer in range(pair.model.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        x_TH = reference.layer(x_TH, _layer_weights(pair, prefix, pair.ours))
        y_TH = other.layer(layer, y_TH, _layer_weights(pair, prefix, pair.theirs))
        first = first or _parting(
            x_TH, y_TH, positions, tolerance, f"the output of layer {layer}"
        )
    x_TH = reference.norm(x_TH, pair.ours(FINAL_NORM, 0, pair.rows(FINAL_NORM)).float())
    y_TH = other.norm(y_TH, pair.theirs(FINAL_NORM, 0, pair.rows(FINAL_NORM)).float())
    by_position = _logit_differences(pair, x_TH, y_TH)
    over = (by_position > tolerance).nonzero()
    if len(over):
        logits_part = (
            f"logits part at position {int(positions[over[0]])}: "
            f"{by_position[over[0]].item():.1e}"
        )
        first = f"{logits_part}; {first}" if first else logits_part
    elif first:
        first = None  # a layer's large activations may differ by more than the logits they lead to
    half = len(positions) // 2
    return LogitReport(
        tuple(positions.tolist()),
        by_position[:half].max().item(),
        by_position[half:].max().item(),
        first,
    )


def _parting(
    x_TH: Tensor, y_TH: Tensor, positions: Tensor, tolerance: float, what: str
) -> str | None:
    difference = (x_TH - y_TH).abs().amax(dim=1) / y_TH.abs().max().clamp(min=1)
    over = (~(difference <= tolerance)).nonzero()
    if not len(over):
        return None
    return (
        f"first in {what} at position {int(positions[over[0]])}: "
        f"{difference[over[0]].item():.1e}"
    )


def _logit_differences(pair: _Pair, x_TH: Tensor, y_TH: Tensor) -> Tensor:
    """Largest difference over the vocabulary at each position, in units of max(1,
    largest logit). fp64 [T].
    """
    name = EMBEDDING if pair.model.tie_word_embeddings else HEAD
    largest, scale = torch.zeros(x_TH.shape[0]), 1.0
    for start, count in pair.blocks(name):
        x_TV = x_TH @ pair.ours(name, start, count).float().T
        y_TV = y_TH @ pair.theirs(name, start, count).float().T
        largest = torch.maximum(
            largest, (x_TV - y_TV).abs().amax(dim=1).nan_to_num(nan=float("inf"))
        )
        scale = max(scale, float(y_TV.abs().max()))
    return largest.double() / scale


def _layer_weights(pair: _Pair, prefix: str, side: Any) -> dict[str, Tensor]:
    names = [name for name in pair.names() if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): side(name, 0, pair.rows(name)).float()
        for name in names
    }


class _TransformersLayers:
    """The decoder layers of the installed `transformers`, given their weights one at a time."""

    def __init__(self, hf_dir: Path, model_type: str, positions_T: Tensor) -> None:
        try:
            from transformers import AutoConfig
        except ImportError as error:
            raise CheckpointError(
                "verify needs transformers for the logits; install it or compare weights only"
            ) from error
        module = importlib.import_module(
            f"transformers.models.{model_type}.modeling_{model_type}"
        )
        family = FAMILIES[model_type].class_name.removesuffix("ForCausalLM")
        self._config = AutoConfig.from_pretrained(
            hf_dir, local_files_only=True, trust_remote_code=False
        )
        self._config._attn_implementation = "eager"
        self._layer = getattr(module, f"{family}DecoderLayer")
        self._norm = getattr(module, f"{family}RMSNorm")
        self._positions = positions_T[None]
        rotary = getattr(module, f"{family}RotaryEmbedding")(config=self._config)
        self._cos_sin = rotary(torch.empty(1, dtype=torch.float32), self._positions)
        size = positions_T.shape[0]
        self._mask = torch.full((size, size), float("-inf")).triu(1)[None, None]

    @torch.no_grad()
    def norm(self, x_TH: Tensor, weight: Tensor) -> Tensor:
        """The norm before the head."""
        module = self._norm(x_TH.shape[-1], eps=self._config.rms_norm_eps)
        module.load_state_dict({"weight": weight}, assign=True)
        return module(x_TH)

    @torch.no_grad()
    def layer(self, index: int, x_TH: Tensor, weights: dict[str, Tensor]) -> Tensor:
        with torch.device("meta"):
            module = self._layer(self._config, index)
        module.load_state_dict(weights, assign=True)
        out = module.eval()(
            x_TH[None],
            attention_mask=self._mask,
            position_ids=self._positions,
            position_embeddings=self._cos_sin,
        )
        return (out[0] if isinstance(out, tuple) else out).view(x_TH.shape)
