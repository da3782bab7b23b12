"""Import and export: Hugging Face directories to and from committed checkpoints,
streamed row by row.

Both check everything that can be checked from headers before a byte is written, hold
one buffer of weights at a time, and leave either a whole directory or nothing but a
`.incomplete` one that the next run removes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint import dcp_store
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.checkpoint.tensor_files import GlobalTensor, TensorFiles
from alia_ctx.errors import CheckpointError
from alia_ctx.hf import assets, config, rules, safetensors_writer, streams
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.ranks import Ranks
from alia_ctx.hf.rules import WeightMap
from alia_ctx.hf.streams import Progress
from alia_ctx.hf.targets import begin_export, building, check_target
from alia_ctx.hf.weight_files import locate_weights

DEFAULT_SHARD_BYTES = 5_000_000_000


def import_hf(
    hf_dir: Path,
    ckpt_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Manifest:
    """Convert the Hugging Face model in `hf_dir` to a checkpoint at `ckpt_dir`; returns
    its manifest.

    Weights keep their dtype unless `dtype` is given. `progress(done, total)` hears
    bytes of this rank's share. Raises CheckpointError, with nothing left behind: a
    config that we cannot express, tensors that are missing, surplus or wrongly shaped,
    a broken file, NaN or infinite weights, a foreign tokenizer, an existing target.
    """
    hf_dir, ckpt_dir, ranks = Path(hf_dir), Path(ckpt_dir), ranks or Ranks()
    model, rope, context = config.read_config(hf_dir)
    assets.check_tokenizer(hf_dir, model)
    weights, places = WeightMap(model), locate_weights(hf_dir)
    streams.drop_tied_head(model.tie_word_embeddings, places)
    rules.check_huggingface(weights, places, str(hf_dir))
    tensors = rules.megatron_tensors(weights, places, dtype, str(hf_dir))
    check_target(ckpt_dir, hf_dir, overwrite)
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
        building(ckpt_dir, ranks, lambda: checkpoint.begin(ckpt_dir)) as temporary,
        TensorFiles() as files,
    ):
        fill = streams.MegatronRows(
            weights, places, files, progress, sum(map(_size, tensors)) // ranks.size
        )
        state = temporary / checkpoint.STATE
        parts = ranks.all(
            lambda: dcp_store.write_part(
                state, tensors, fill, part=ranks.rank, parts=ranks.size
            )
        )

        def complete() -> Manifest:
            dcp_store.finish(state, tensors, parts)
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

        return ranks.first(complete)


def export_hf(
    ckpt_dir: Path,
    hf_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokenizer_dir: Path | None = None,
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Manifest:
    """Convert the weights of the checkpoint at `ckpt_dir` to a Hugging Face directory at `hf_dir`.

    RoPE and context come from the checkpoint's manifest, never from the configuration
    it was once imported with. `check` compares every file's checksum beside the
    copying. `tokenizer_dir` replaces the tokenizer that the checkpoint carries. Raises
    CheckpointError, leaving nothing that loads: a damaged or foreign checkpoint, NaN or
    infinite weights, a foreign tokenizer, a target that is not empty.
    """
    ckpt_dir, hf_dir, ranks = Path(ckpt_dir), Path(hf_dir), ranks or Ranks()
    manifest = (
        ranks.first(lambda: checkpoint.open_checkpoint(ckpt_dir, weights=False))
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
    check_target(hf_dir, ckpt_dir, overwrite)
    with dcp_store.open_state(ckpt_dir / checkpoint.STATE) as state:
        dtypes = streams.stored_dtypes(weights, state, str(ckpt_dir))
        plan = safetensors_writer.plan(
            weights, lambda row_map: dtype or dtypes[row_map.runs[0].name], shard_bytes
        )
        with building(hf_dir, ranks, lambda: begin_export(hf_dir)) as temporary:
            source = streams.HuggingFaceRows(
                state,
                dtypes,
                progress,
                sum(shard.nbytes for shard in plan) // ranks.size,
            )

            def write() -> None:
                with _checking(ckpt_dir, manifest, ranks) if check else nullcontext():
                    safetensors_writer.write_all(
                        plan[ranks.rank :: ranks.size], temporary, source
                    )

            ranks.all(write)
            ranks.first(
                lambda: _complete_export(
                    temporary, hf_dir, manifest, plan, carried, tokenizer
                )
            )
    return manifest


@contextmanager
def _checking(ckpt_dir: Path, manifest: Manifest, ranks: Ranks) -> Iterator[None]:
    """Compare this rank's share of the checksums beside the block;

    what they find explains what the block met.
    """
    with ThreadPoolExecutor(1) as pool:
        verdict = pool.submit(
            checkpoint.verify_files,
            ckpt_dir,
            manifest,
            part=ranks.rank,
            parts=ranks.size,
        )
        try:
            yield
        finally:
            verdict.result()


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
    dtypes = [dtype for shard in plan for _, _, dtype, _ in shard.tensors]
    (temporary / "README.md").write_text(
        assets.model_card(manifest, _dtype_names(dtypes)), encoding="utf-8"
    )
    original = carried / config.CONFIG
    document = config.write_config(
        manifest.model,
        manifest.rope,
        manifest.context,
        max(dtypes, key=dtypes.count),
        load_json(original) if original.is_file() else None,
    )
    (temporary / config.CONFIG).write_text(
        json.dumps(document, indent=2) + "\n", encoding="utf-8"
    )
    checkpoint.publish(temporary, final)


def _dtype_names(dtypes: Any) -> str:
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))


def _size(tensor: GlobalTensor) -> int:
    return tensor.row_bytes * tensor.shape[0] * (tensor.layers or 1)
