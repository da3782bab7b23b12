"""Import and export: Hugging Face directories to and from committed checkpoints,
streamed row by row.

Both check everything that can be checked from headers before a byte is written, hold
one buffer of weights at a time, and leave either a whole directory or nothing but a
`.incomplete` one that the next run removes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.checkpoint.tensor_files import (
    FLOATS,
    GlobalTensor,
    TensorFiles,
    TensorPlace,
    as_bytes,
    is_finite,
)
from alia_ctx.errors import CheckpointError
from alia_ctx.files import exclusive
from alia_ctx.hf import assets, config, rules, safetensors_writer
from alia_ctx.hf.ranks import Team
from alia_ctx.hf.rules import EMBEDDING, HEAD, WeightMap
from alia_ctx.hf.weight_files import locate_weights

Progress = Callable[[int, int], None]
DEFAULT_SHARD_BYTES = 5_000_000_000


class StateReader(Protocol):
    """Rows of the global tensors of a checkpoint's `state/`; a context manager."""

    @property
    def tensors(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]: ...
    def read_rows(
        self, name: str, layer: int | None, start: int, out: Tensor
    ) -> None: ...
    def __enter__(self) -> StateReader: ...
    def __exit__(self, *exception: object) -> None: ...


class StateStore(Protocol):
    """The format of `state/`: the module `alia_ctx.checkpoint.dcp_store` is one."""

    def write_part(
        self,
        state: Path,
        tensors: Sequence[GlobalTensor],
        fill: Any,
        *,
        part: int,
        parts: int,
    ) -> Any: ...
    def finish(
        self, state: Path, tensors: Sequence[GlobalTensor], parts: Sequence[Any]
    ) -> None: ...
    def open_state(self, state: Path) -> StateReader: ...


def import_hf(
    hf_dir: Path,
    ckpt_dir: Path,
    store: StateStore,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Manifest:
    """Convert the Hugging Face model in `hf_dir` to a checkpoint at `ckpt_dir`; returns
    its manifest.

    Weights keep their dtype unless `dtype` is given. `progress(done, total)` hears
    bytes of this rank's share. Raises CheckpointError, with nothing left behind: a
    config that we cannot express, tensors that are missing, surplus or wrongly shaped,
    a broken file, NaN or infinite weights, a foreign tokenizer, an existing target.
    """
    hf_dir, ckpt_dir, team = Path(hf_dir), Path(ckpt_dir), team or Team()
    model, rope, context = config.read_config(hf_dir)
    assets.check_tokenizer(hf_dir, model)
    weights, found = WeightMap(model), locate_weights(hf_dir)
    drop_tied_head(model.tie_word_embeddings, found)
    rules.check_huggingface(weights, found, str(hf_dir))
    tensors = rules.megatron_tensors(weights, found, dtype, str(hf_dir))
    _check_target(ckpt_dir, hf_dir, overwrite)
    manifest = Manifest(
        stage="import",
        update=0,
        model=model,
        rope=rope,
        context=context,
        extra={
            "source": hf_dir.resolve().name,
            "dtype": _dtype_names(t.dtype for t in tensors),
        },
    )
    with (
        _building(ckpt_dir, team, lambda: checkpoint.begin(ckpt_dir)) as temporary,
        TensorFiles() as files,
    ):
        fill = _Filler(
            weights, found, files, progress, sum(map(_size, tensors)) // team.size
        )
        state = temporary / checkpoint.STATE
        parts = team.all(
            lambda: store.write_part(
                state, tensors, fill, part=team.rank, parts=team.size
            )
        )

        def complete() -> Manifest:
            store.finish(state, tensors, parts)
            assets.copy_assets(hf_dir, temporary / checkpoint.ASSETS, assets.CARRIED)
            known = {
                f"{checkpoint.STATE}/{name}": entry
                for part in parts
                for name, entry in part.files.items()
            }
            replaces = (
                overwrite or ckpt_dir.exists()
            )  # an empty directory may stand there
            return checkpoint.commit(
                temporary, ckpt_dir, manifest, overwrite=replaces, known=known
            )

        return team.first(complete)


def export_hf(
    ckpt_dir: Path,
    hf_dir: Path,
    store: StateStore,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokenizer_dir: Path | None = None,
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    team: Team | None = None,
) -> Manifest:
    """Convert the weights of the checkpoint at `ckpt_dir` to a Hugging Face directory at `hf_dir`.

    RoPE and context come from the checkpoint's manifest, never from the configuration
    it was once imported with. `check` compares every file's checksum beside the
    copying. `tokenizer_dir` replaces the tokenizer that the checkpoint carries. Raises
    CheckpointError, leaving nothing that loads: a damaged or foreign checkpoint, NaN or
    infinite weights, a foreign tokenizer, a target that is not empty.
    """
    ckpt_dir, hf_dir, team = Path(ckpt_dir), Path(hf_dir), team or Team()
    manifest = (
        team.first(lambda: checkpoint.open_checkpoint(ckpt_dir, weights=False))
        if check
        else checkpoint.read_manifest(ckpt_dir)
    )
    weights = WeightMap(manifest.model)
    carried = ckpt_dir / checkpoint.ASSETS
    tokenizer = Path(tokenizer_dir) if tokenizer_dir else carried
    if not tokenizer.is_dir() and tokenizer_dir:
        raise CheckpointError(
            f"{tokenizer}: there is no such directory; give one with tokenizer files"
        )
    assets.check_tokenizer(tokenizer, manifest.model)
    _check_target(hf_dir, ckpt_dir, overwrite)
    with store.open_state(ckpt_dir / checkpoint.STATE) as state:
        kinds = stored_dtypes(weights, state, str(ckpt_dir))
        plan = safetensors_writer.plan(
            weights, lambda row_map: dtype or kinds[row_map.runs[0].name], shard_bytes
        )
        with _building(hf_dir, team, lambda: _begin_export(hf_dir)) as temporary:
            source = _Source(
                state, kinds, progress, sum(shard.nbytes for shard in plan) // team.size
            )

            def write() -> None:
                with _checking(ckpt_dir, manifest, team) if check else nullcontext():
                    safetensors_writer.write_all(
                        plan[team.rank :: team.size], temporary, source
                    )

            team.all(write)
            team.first(
                lambda: _complete_export(
                    temporary, hf_dir, manifest, plan, carried, tokenizer
                )
            )
    return manifest


@contextmanager
def _checking(ckpt_dir: Path, manifest: Manifest, team: Team) -> Iterator[None]:
    """Compare this rank's share of the checksums beside the block;

    what they find explains what the block met.
    """
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(
            checkpoint.verify_files, ckpt_dir, manifest, part=team.rank, parts=team.size
        )
        try:
            yield
        finally:
            verdict.result()


def stored_dtypes(
    weights: WeightMap, state: StateReader, where: str
) -> dict[str, torch.dtype]:
    """Dtype of each Megatron tensor of the model; CheckpointError where one is absent or
    of another shape.

    Vocabulary tables may have more rows than the vocabulary: a tensor-parallel run may
    have padded them.
    """
    stored, kinds = state.tensors, {}
    problems: list[str] = []
    for name, (shape, layers) in weights.megatron_shapes().items():
        wanted = shape if layers is None else (layers, *shape)
        if name not in stored:
            problems.append(f"  {name}: missing, expected {list(wanted)}")
            continue
        has, kinds[name] = stored[name]
        padded = (
            len(has) == 2 == len(wanted) and has[1] == wanted[1] and has[0] >= wanted[0]
        )
        if has != wanted and not padded:
            problems.append(f"  {name}: {list(has)}, expected {list(wanted)}")
        elif kinds[name] not in FLOATS:
            problems.append(
                f"  {name}: is {kinds[name]}, supported are {', '.join(map(str, FLOATS))}"
            )
    if problems:
        raise CheckpointError(
            "\n".join(
                [
                    f"{where}: state/ does not hold the model of its manifest",
                    *problems[:10],
                ]
            )
        )
    return kinds


class _Filler:
    """Fills rows of Megatron tensors from Hugging Face's files."""

    def __init__(
        self,
        weights: WeightMap,
        found: dict[str, TensorPlace],
        files: TensorFiles,
        progress: Progress | None,
        total: int,
    ) -> None:
        self._weights, self._found, self._files = weights, found, files
        self._progress, self._total, self._done = progress, total, 0

    def __call__(
        self, tensor: GlobalTensor, layer: int | None, start: int, out: Tensor
    ) -> None:
        at = 0
        for run in self._weights.sources(tensor.name, layer).between(
            start, start + out.shape[0]
        ):
            block, place = out[at : at + run.count], self._found[run.name]
            if place.dtype == out.dtype:
                self._files.read_rows(place, run.start, block)
            else:
                given = torch.empty(block.shape, dtype=place.dtype)
                self._files.read_rows(place, run.start, given)
                block.copy_(given)
            _check_finite(block, f"{place.file}: {run.name}", run.start)
            at += run.count
        self._done += out.nbytes
        if self._progress:
            self._progress(self._done, self._total)


class _Source:
    """Rows of Hugging Face tensors from a checkpoint's state, in a dtype of the caller's choice."""

    def __init__(
        self,
        state: StateReader,
        kinds: dict[str, torch.dtype],
        progress: Progress | None,
        total: int,
    ) -> None:
        self._state, self._kinds = state, kinds
        self._progress, self._total, self._done = progress, total, 0

    def __call__(
        self, name: str, row_map: rules.RowMap, start: int, out: Tensor
    ) -> None:
        at = 0
        for run in row_map.between(start, start + out.shape[0]):
            block, kind = out[at : at + run.count], self._kinds[run.name]
            stored = (
                block if kind == out.dtype else torch.empty(block.shape, dtype=kind)
            )
            self._state.read_rows(run.name, run.layer, run.start, stored)
            if stored is not block:
                block.copy_(stored)
            at += run.count
        _check_finite(out, name, start)
        self._done += out.nbytes
        if self._progress:
            self._progress(self._done, self._total)


def _check_finite(block: Tensor, name: str, start: int) -> None:
    if is_finite(block):
        return
    row = (
        int(
            (~torch.isfinite(block)).reshape(block.shape[0], -1).any(dim=1).nonzero()[0]
        )
        + start
    )
    raise CheckpointError(
        f"{name} has NaN or infinite values in {block.dtype}, first in row {row}; the weights are "
        "damaged or overflow this dtype: use another checkpoint or dtype"
    )


def drop_tied_head(tied: bool, found: dict[str, TensorPlace]) -> None:
    """Forget a stored head that repeats a tied embedding; CheckpointError where it differs."""
    if not tied or HEAD not in found or EMBEDDING not in found:
        return
    head, embedding = found[HEAD], found[EMBEDDING]
    if not _same_bytes(head, embedding):
        raise CheckpointError(
            f"{head.file}: {HEAD} differs from {EMBEDDING}, but config.json has "
            "tie_word_embeddings=true; set it to false if the head was trained on its own"
        )
    del found[HEAD]


def _same_bytes(one: TensorPlace, other: TensorPlace) -> bool:
    """Whether two stored tensors are equal to the bit."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    step = max(1, (2 << 20) // max(1, one.row_bytes))
    with TensorFiles() as files:
        for start in range(0, one.shape[0], step):
            blocks = [
                torch.empty(
                    (min(step, one.shape[0] - start), *one.shape[1:]), dtype=one.dtype
                )
                for _ in "ab"
            ]
            files.read_rows(one, start, blocks[0])
            files.read_rows(other, start, blocks[1])
            if as_bytes(blocks[0]).tobytes() != as_bytes(blocks[1]).tobytes():
                return False
    return True


def _check_target(target: Path, source: Path, overwrite: bool) -> None:
    if (
        target.resolve() == source.resolve()
        or source.resolve() in target.resolve().parents
    ):
        raise CheckpointError(
            f"{target}: lies in the directory that is converted; choose another one"
        )
    if (
        target.exists()
        and not overwrite
        and (not target.is_dir() or any(target.iterdir()))
    ):
        raise CheckpointError(
            f"{target} exists; remove it, choose another name, or allow overwriting"
        )
    if target.exists() and not target.is_dir():
        raise CheckpointError(f"{target} is a file; choose another name")


@contextmanager
def _building(target: Path, team: Team, begin: Callable[[], Path]) -> Iterator[Path]:
    """The temporary directory beside `target`, removed if the block fails;

    system errors name the target.
    """
    what = "alia-ctx import-hf or export-hf"
    with exclusive(
        target, what, rank=team.rank, gather=lambda error: team.all(lambda: error)
    ):
        temporary: Path | None = None
        try:
            temporary = Path(team.first(lambda: str(begin())))
            yield temporary
        except OSError as error:
            raise CheckpointError(
                f"{target}: cannot be written ({error.strerror or error}); free the "
                "space or choose another place"
            ) from error
        finally:
            if temporary is not None and team.rank == 0:
                # after a commit the name is gone and this does nothing
                checkpoint.discard(temporary)


def _begin_export(hf_dir: Path) -> Path:
    temporary = hf_dir.with_name(hf_dir.name + ".incomplete")
    checkpoint.discard(temporary)
    temporary.mkdir(parents=True)
    return temporary


def _complete_export(
    temporary: Path,
    final: Path,
    manifest: Manifest,
    plan: Sequence[safetensors_writer.Shard],
    carried: Path,
    tokenizer: Path,
) -> None:
    """Add everything but the weights.

    `config.json` comes last: until then nothing loads the directory.
    """
    safetensors_writer.write_index(plan, temporary)
    others = [
        name
        for name in assets.CARRIED
        if name not in (config.CONFIG, *assets.TOKENIZER_FILES)
    ]
    assets.copy_assets(carried, temporary, others)
    assets.copy_assets(tokenizer, temporary, assets.TOKENIZER_FILES)
    assets.raise_length_limit(temporary, manifest.context)
    kinds = [dtype for shard in plan for _, _, dtype, _ in shard.tensors]
    (temporary / "README.md").write_text(
        assets.model_card(manifest, _dtype_names(kinds)), encoding="utf-8"
    )
    original = carried / config.CONFIG
    document = config.write_config(
        manifest.model,
        manifest.rope,
        manifest.context,
        max(kinds, key=kinds.count),
        config.load_json(original) if original.is_file() else None,
    )
    (temporary / config.CONFIG).write_text(
        json.dumps(document, indent=2) + "\n", encoding="utf-8"
    )
    checkpoint.publish(temporary, final)


def _dtype_names(kinds: Any) -> str:
    return ", ".join(sorted({str(kind).removeprefix("torch.") for kind in kinds}))


def _size(tensor: GlobalTensor) -> int:
    return tensor.row_bytes * tensor.shape[0] * (tensor.layers or 1)
