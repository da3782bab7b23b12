"""Proof that a Hugging Face directory and a checkpoint are the same model: every bit, then logits.

The directory's weights are those that transformers loads, where memory holds them.
They are compared as bytes, a block at a time. Logits come from `transformers`' own
model on one side and from our reference decoder on the checkpoint's weights on the
other, in fp32, one layer in memory at a time.
"""

# ruff: noqa: N803, N806 - shape suffixes are part of tensor names

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alia_ctx import checkpoint, identity
from alia_ctx.checkpoint import dcp_store
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.checkpoint.tensor_files import TensorFiles
from alia_ctx.data.tokens.tokenizer_files import (
    has_vocabulary,
    known_tokenizer,
    tokenizer_statement,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.hf import config, rope_config, rules
from alia_ctx.hf.export_tokenizer import stated_tokenizer
from alia_ctx.hf.pair import Pair
from alia_ctx.hf.reference_decoder import ReferenceDecoder, spread_positions
from alia_ctx.hf.rules import EMBEDDING, FINAL_NORM, HEAD, WeightMap
from alia_ctx.hf.special_ids import differences, read_tokenizer
from alia_ctx.hf.streams import Progress, drop_tied_head, stored_dtypes
from alia_ctx.hf.trained_length import trained_length
from alia_ctx.hf.travelling import (
    backend_differences,
    limit_differences,
    stop_differences,
)
from alia_ctx.hf.upstream import (
    FileWeights,
    LoadedWeights,
    WholeModel,
    fits_in_memory,
    loaded_bytes,
)
from alia_ctx.hf.weight_files import locate_weights
from alia_ctx.spec.model import ModelSpec

DEFAULT_TOLERANCE = 1e-4
_NOT_LOADED = (
    "note: the model is too large for this machine's memory, so its files were read by "
    "alia-ctx and not by transformers; verify it again where it fits"
)


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
            at, half = self.logits.positions, len(self.logits.positions) // 2
            lines.append(
                f"logits: largest difference {self.logits.short:.1e} at positions {at[0]} to "
                f"{at[max(half, 1) - 1]}, {self.logits.long:.1e} at {at[half]} to {at[-1]} "
                f"(tolerance {self.tolerance:g})"
            )
            lines += [f"  {self.logits.first}"] if self.logits.first else []
        return "\n".join(
            [*lines, *self.notes, "same model" if self.ok else "NOT the same model"]
        )


def verify(
    hf_dir: Path,
    ckpt_dir: Path,
    *,
    logits: bool = True,
    tolerance: float = DEFAULT_TOLERANCE,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare the model in `hf_dir` with the checkpoint at `ckpt_dir`; see VerifyReport
    for what is found.

    Raises CheckpointError where `tolerance` is negative or no finite number, where one of
    the two is damaged, or where their sizes differ so
    that nothing can be compared; other differences of their configurations are part of
    the report.
    """
    hf_dir, ckpt_dir = Path(hf_dir), Path(ckpt_dir)
    if not 0 <= tolerance < float("inf"):  # nothing is larger than nan or infinity
        raise CheckpointError(
            f"tolerance={tolerance}: with it no logits would differ, or all; give a "
            f"number from 0 on, as {DEFAULT_TOLERANCE:g}"
        )
    manifest = checkpoint.open_checkpoint(ckpt_dir)
    model, rope, context = config.read_config(hf_dir)
    trained = trained_length(hf_dir, rope, context).tokens
    weights, places = WeightMap(model), locate_weights(hf_dir)
    held, notes = _as_imported(manifest, model)
    apart = [
        f"{name} is {getattr(model, name)!r} in config.json, {value!r} in the checkpoint"
        for name, value in vars(held).items()
        if not _same_value(getattr(model, name), value)
    ]
    if weights.huggingface_shapes() != WeightMap(held).huggingface_shapes():
        raise CheckpointError(
            f"{hf_dir} and {ckpt_dir} are not one model: {'; '.join(apart)}"
        )
    drop_tied_head(model.tie_word_embeddings, places)
    rules.check_huggingface(weights, places, str(hf_dir))
    with (
        dcp_store.open_state(ckpt_dir / checkpoint.STATE) as state,
        TensorFiles() as files,
    ):
        said, unlike = _compare_tokenizers(hf_dir, ckpt_dir, manifest)
        nbytes = sum(place.nbytes for place in places.values())
        loads = fits_in_memory(loaded_bytes(places))
        pair = Pair(
            weights,
            LoadedWeights(hf_dir, places) if loads else FileWeights(places, files),
            state,
            stored_dtypes(weights, state, str(ckpt_dir)),
        )
        differences = tuple(pair.differences(progress))
        return VerifyReport(
            tensors=len(places),
            bytes=nbytes,
            config_differences=(
                *apart,
                *_config_differences(rope, context, trained, manifest),
                *_unlike_the_base(hf_dir, ckpt_dir, manifest, context),
                *unlike,
            ),
            weight_differences=differences,
            logits=_compare_logits(hf_dir, pair, manifest, tolerance)
            if logits
            else None,
            tolerance=tolerance,
            notes=(
                *notes,
                said,
                *filter(
                    None, [rope_config.dynamic_note(manifest.rope, manifest.context)]
                ),
                *pair.notes(),
                *(() if loads else (_NOT_LOADED,)),
            ),
        )


def _unlike_the_base(
    hf_dir: Path, ckpt_dir: Path, manifest: Manifest, context: int
) -> list[str]:
    """Stop ids that contradict each other, and limits below the context. Those of the
    directory that a model was imported from are that model's own.
    """
    context, vocab_size = min(context, manifest.context), manifest.model.vocab_size
    lines = [
        *stop_differences(hf_dir, vocab_size),
        *limit_differences(hf_dir, context),
    ]
    if not manifest.is_import:
        return lines
    carried = ckpt_dir / checkpoint.ASSETS
    model_type = manifest.model.architecture
    own = {
        *stop_differences(carried, vocab_size, model_type),
        *limit_differences(carried, context),
    }
    return [line for line in lines if line not in own]


def _same_value(one: Any, other: Any) -> bool:
    """Equality, of floats to fp32: some writers state an epsilon of 9.999999747e-06."""
    if isinstance(one, float) and isinstance(other, float):
        return bool(torch.tensor(one).float() == torch.tensor(other).float())
    return bool(one == other)


def _as_imported(manifest: Manifest, model: ModelSpec) -> tuple[ModelSpec, list[str]]:
    """The checkpoint's model without the rows that its import added to `model`."""
    added = manifest.extra.get("resized_embeddings") or {}
    held, rows = manifest.model, manifest.model.vocab_size
    if model.vocab_size != added.get("from") or rows != added.get("to"):
        return held, []
    note = (
        f"note: {rows - model.vocab_size} rows of the checkpoint's embedding were added "
        f"at import; the first {model.vocab_size} are compared"
    )
    return replace(held, vocab_size=model.vocab_size), [note]


def _compare_tokenizers(
    hf_dir: Path, ckpt_dir: Path, manifest: Manifest
) -> tuple[str, list[str]]:
    """What was compared of the tokenizers, and in what they differ.

    Where the files of training are as they were, transformers is asked what it makes of
    either; otherwise what the checkpoint states of them is compared.
    """
    training = stated_tokenizer(manifest) or ckpt_dir / checkpoint.ASSETS
    stated = known_tokenizer(manifest.extra)
    if not has_vocabulary(hf_dir):
        # An export has the tokenizer that its checkpoint knows: one that is gone was removed.
        gone = stated is not None or has_vocabulary(training)
        lost = [f"tokenizer: {hf_dir} has none, the checkpoint has one"] if gone else []
        return f"tokenizer: not compared, {hf_dir} has none", lost
    if stated is not None and tokenizer_statement(training) != stated:
        apart = identity.differences(stated, tokenizer_statement(hf_dir), "tokenizer")
        text = (
            "tokenizer: its files, with what the checkpoint states of them; those in "
            f"{training} are gone, or were changed since"
        )
        return text, apart
    if not has_vocabulary(training):
        return f"tokenizer: not compared, {training} has none", []
    there = read_tokenizer(hf_dir)
    here = read_tokenizer(training, model_type=manifest.model.architecture)
    problems = differences(there, here)
    problems += backend_differences(hf_dir, training)
    if stated is not None:
        problems += identity.differences(stated, tokenizer_statement(hf_dir))
    text = f"tokenizer: {len(there.vocabulary):,} tokens, special ids, a sample of text"
    if stated is None and not manifest.is_import:
        text += f" of {training} as it is now: the checkpoint does not state its files"
    return text, [f"tokenizer: {problem}" for problem in problems]


def _config_differences(
    rope: Any, context: int, trained: int, manifest: Manifest
) -> Iterator[str]:
    if rope != manifest.rope:
        yield f"RoPE is {rope} in config.json, {manifest.rope} in the checkpoint"
    expected = rope_config.stated_length(manifest.rope, manifest.context)
    # A publisher may state another length than that of training, which an import knows.
    if manifest.context not in (context, trained) and context != expected:
        yield (
            f"max_position_embeddings is {context} in config.json, the checkpoint "
            f"makes it {expected}"
        )


def _compare_logits(
    hf_dir: Path, pair: Pair, manifest: Manifest, tolerance: float
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
    x_TH, y_TH = (
        torch.cat([side(EMBEDDING, int(token), 1) for token in tokens]).float()
        for side in (pair.from_checkpoint, pair.from_huggingface)
    )
    upstream = WholeModel(
        hf_dir, lambda prefix: _weights_below(pair, prefix, pair.from_huggingface)
    )
    outputs, y_TH = upstream.hidden(y_TH, positions)
    first = None
    for layer, output_TH in enumerate(outputs):
        prefix = f"model.layers.{layer}."
        x_TH = reference.layer(x_TH, _weights_below(pair, prefix, pair.from_checkpoint))
        first = first or _parting(
            x_TH, output_TH, positions, tolerance, f"the output of layer {layer}"
        )
    x_TH = reference.norm(
        x_TH, pair.from_checkpoint(FINAL_NORM, *pair.whole(FINAL_NORM)).float()
    )
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
        by_position[: max(half, 1)].max().item(),  # a context of 1 has one position
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


def _logit_differences(pair: Pair, x_TH: Tensor, y_TH: Tensor) -> Tensor:
    """Largest difference over the vocabulary at each position, in units of max(1,
    largest logit). fp64 [T].
    """
    name = EMBEDDING if pair.model.tie_word_embeddings else HEAD
    largest, scale = torch.zeros(x_TH.shape[0]), 1.0
    for start, count in pair.blocks(name):
        x_TV = x_TH @ pair.from_checkpoint(name, start, count).float().T
        y_TV = y_TH @ pair.from_huggingface(name, start, count).float().T
        largest = torch.maximum(
            largest, (x_TV - y_TV).abs().amax(dim=1).nan_to_num(nan=float("inf"))
        )
        scale = max(scale, float(y_TV.abs().max()))
    return largest.double() / scale


def _weights_below(pair: Pair, prefix: str, side: Any) -> dict[str, Tensor]:
    names = [name for name in pair.shapes if name.startswith(prefix)]
    return {
        name.removeprefix(prefix): side(name, *pair.whole(name)).float()
        for name in names
    }
