"""Import and export: Hugging Face directories to and from committed checkpoints,
streamed row by row.

Both check everything that can be checked from headers before a byte is written, hold
one buffer of weights at a time, and leave either a whole directory or nothing but a
`.incomplete` one that the next run removes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alia_ctx import checkpoint
from alia_ctx.checkpoint import dcp_store
from alia_ctx.checkpoint.manifest import IMPORT, MANIFEST, Manifest
from alia_ctx.checkpoint.tensor_files import GlobalTensor, TensorFiles
from alia_ctx.checkpoint.trained_sources import SOURCES
from alia_ctx.errors import Problem
from alia_ctx.files import file_checksum
from alia_ctx.hf import (
    assets,
    config,
    rules,
    safetensors_writer,
    streams,
    targets,
    trial,
)
from alia_ctx.hf.export_assets import ExportAssets, dtype_names
from alia_ctx.hf.json_files import refusal, write_json
from alia_ctx.hf.ranks import Ranks
from alia_ctx.hf.resizing import mean_rows, resize
from alia_ctx.hf.rules import EMBEDDING, HEAD, WeightMap
from alia_ctx.hf.source_weights import SOURCE_WEIGHTS, weights_statement
from alia_ctx.hf.stated_training import (
    StatedTraining,
    changed_weights,
    stated_training,
    statement_of_training,
)
from alia_ctx.hf.streams import Progress
from alia_ctx.hf.trained_length import trained_length
from alia_ctx.hf.weight_files import locate_weights
from alia_ctx.progress import say
from alia_ctx.spec.rope import LONGEST, RopeSpec

DEFAULT_SHARD_BYTES = 5_000_000_000


def import_hf(
    hf_dir: Path,
    ckpt_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    resize_embeddings: int | None = None,
    pad_to_multiple_of: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Manifest:
    """Convert the Hugging Face model in `hf_dir` to a checkpoint at `ckpt_dir`; returns
    its manifest.

    Args:
        dtype: of the weights; they keep theirs unless it is given.
        resize_embeddings: rows that the embedding (and the head) shall have; new ones
            are the mean of the others.
        pad_to_multiple_of: rounds that number up.
        overwrite: replace an earlier import, and nothing else.
        progress: `progress(done, total)` hears bytes of this rank's share.
        ranks: the processes that share the work.

    Raises CheckpointError, with nothing left behind: a config that we cannot express,
    tensors that are missing, surplus or wrongly shaped, a broken file, NaN or infinite
    weights, a foreign tokenizer, links out of `hf_dir`, an existing target.
    """
    hf_dir, ckpt_dir, ranks = Path(hf_dir), Path(ckpt_dir), ranks or Ranks()
    published, rope, length = config.read_config(hf_dir)
    context = _trained_context(hf_dir, rope, length, ranks)
    model = resize(published, resize_embeddings, pad_to_multiple_of)
    assets.check_tokenizer(hf_dir, model)
    assets.asset_files(hf_dir, assets.carried(hf_dir))
    assets.check_readable(hf_dir)
    ranks.first(lambda: trial.require_usable(hf_dir, model, rope, context))
    weights, places = WeightMap(model), locate_weights(hf_dir)
    streams.drop_tied_head(model.tie_word_embeddings, places)
    rules.check_huggingface(WeightMap(published), places, str(hf_dir))
    tensors = rules.megatron_tensors(weights, places, dtype, str(hf_dir))
    targets.check_target(ckpt_dir, hf_dir, overwrite, targets.foreign_in_import)
    origin: dict[str, Any] = {
        "source": assets.model_name(hf_dir),
        "dtype": dtype_names(tuple(t.dtype for t in tensors)),
    }
    if model != published:
        origin["resized_embeddings"] = {
            "from": published.vocab_size,
            "to": model.vocab_size,
            "initialisation": "mean",
        }
    known = _known_training(hf_dir, {place.file for place in places.values()}, ranks)
    manifest = Manifest(
        stage=IMPORT,
        update=0,
        model=model,
        rope=rope,
        context=context,
        ledger=() if known is None else known.ledger,
        # Not in `extra`, which travels into exports: it names places of this machine.
        config={SOURCE_WEIGHTS: weights_statement(hf_dir, places, ranks)},
        extra=origin if known is None else {**origin, SOURCES: known.sources},
    )
    with (
        TensorFiles() as files,
        targets.building(
            ckpt_dir, ranks, lambda: checkpoint.begin(ckpt_dir)
        ) as temporary,
    ):
        means = mean_rows(
            places, files, [EMBEDDING, HEAD] if model != published else []
        )
        share = sum(map(_size, tensors)) // ranks.size
        fill = streams.MegatronRows(weights, places, files, means, progress, share)
        state = temporary / checkpoint.STATE
        parts = ranks.all(
            lambda: dcp_store.write_part(
                state, tensors, fill, part=ranks.rank, parts=ranks.size
            )
        )

        def complete() -> Manifest:
            dcp_store.finish(state, tensors, parts)
            kept = temporary / checkpoint.ASSETS
            assets.copy_assets(hf_dir, kept, assets.carried(hf_dir))
            write_json(kept / assets.ORIGIN, origin)
            summed = {
                f"{checkpoint.STATE}/{name}": entry
                for part in parts
                for name, entry in part.files.items()
            }
            replaces = (
                overwrite or ckpt_dir.exists()
            )  # an empty directory may stand there
            return checkpoint.commit(
                temporary, ckpt_dir, manifest, overwrite=replaces, known=summed
            )

        committed: Manifest = ranks.first(complete)
        return committed


def export_hf(
    ckpt_dir: Path,
    hf_dir: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    tokenizer_dir: Path | None = None,
    evaluation: str = "",
    overwrite: bool = False,
    check: bool = True,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> Manifest:
    """Convert the weights of the checkpoint at `ckpt_dir` to a Hugging Face directory at
    `hf_dir`; returns the checkpoint's manifest.

    RoPE and context come from the manifest, never from the configuration it was once
    imported with; the tokenizer is the one of training.

    Args:
        dtype: of the weights; they keep theirs unless it is given.
        shard_bytes: most bytes of a weight file, or one tensor.
        tokenizer_dir: where the tokenizer of training is now.
        evaluation: Markdown for the card: what was measured of this checkpoint.
        overwrite: replace an earlier export, and nothing else.
        check: compare every file's checksum beside the copying.
        progress: `progress(done, total)` hears bytes of this rank's share.
        ranks: the processes that share the work.

    Raises CheckpointError, leaving nothing that loads: a damaged or foreign checkpoint,
    NaN or infinite weights, another tokenizer than that of training, a target that is
    not empty.
    """
    ckpt_dir, hf_dir, ranks = Path(ckpt_dir), Path(hf_dir), ranks or Ranks()
    manifest = (
        ranks.first(lambda: checkpoint.open_checkpoint(ckpt_dir, weights=False))
        if check
        else checkpoint.read_manifest(ckpt_dir)
    )
    weights = WeightMap(manifest.model)
    targets.check_target(hf_dir, ckpt_dir, overwrite, targets.foreign_in_export)
    with ExitStack() as stack:
        state = stack.enter_context(dcp_store.open_state(ckpt_dir / checkpoint.STATE))
        stored = streams.stored_dtypes(weights, state, str(ckpt_dir))
        plan = safetensors_writer.plan(
            weights, lambda row_map: dtype or stored[row_map.runs[0].name], shard_bytes
        )
        dtypes = tuple(dtype for shard in plan for _, _, dtype, _ in shard.tensors)
        prepared = Path(stack.enter_context(TemporaryDirectory()))
        tokenizer = Path(tokenizer_dir) if tokenizer_dir else None
        nbytes = sum(shard.nbytes for shard in plan)
        others = ExportAssets(ckpt_dir, manifest, tokenizer, dtypes, nbytes, evaluation)
        notes = ranks.first(lambda: others.write(prepared))
        temporary = stack.enter_context(
            targets.building(hf_dir, ranks, lambda: targets.begin_export(hf_dir))
        )
        share = nbytes // ranks.size
        source = streams.HuggingFaceRows(state, stored, progress, share)

        def write() -> dict[str, dict[str, Any]]:
            with _checking(ckpt_dir, manifest, ranks) if check else nullcontext():
                return safetensors_writer.write_all(
                    plan[ranks.rank :: ranks.size], temporary, source
                )

        entries = {name: e for part in ranks.all(write) for name, e in part.items()}

        def complete() -> None:
            """Add the rest, `config.json` last: until then nothing loads the directory."""
            safetensors_writer.write_index(plan, temporary)
            names = sorted(path.name for path in prepared.iterdir())
            names.sort(key=lambda name: name == config.CONFIG)
            assets.copy_assets(prepared, temporary, names)
            settings = {"dtype": dtype_names(dtypes), "shard_bytes": shard_bytes}
            targets.write_statement(
                temporary, _made_from(ckpt_dir, manifest), settings, entries
            )
            targets.finish_building(temporary)
            checkpoint.publish(temporary, hf_dir)

        ranks.first(complete)
    if ranks.rank == 0:
        for note in notes:
            say(f"{hf_dir.name}: {note}")
    return manifest


def _trained_context(hf_dir: Path, rope: RopeSpec, published: int, ranks: Ranks) -> int:
    """The tokens that the model was trained on, where `published` may be another length."""
    trained = trained_length(hf_dir, rope, published)
    if trained.tokens > LONGEST:
        rule = f"stretches {published:,} tokens beyond {LONGEST:,}"
        problem = Problem("factor", rope.factor, rule, "correct it")
        raise refusal(hf_dir / config.CONFIG, [problem])
    if trained.other is not None and ranks.rank == 0:
        say(
            f"{hf_dir.name}: nothing says whether it was trained on {trained.tokens:,} or "
            f"{trained.other:,} tokens with its RoPE; {trained.tokens:,} is taken"
        )
    return trained.tokens


def _known_training(
    hf_dir: Path, files: Collection[Path], ranks: Ranks
) -> StatedTraining | None:
    """The training that an export states, of the weights that are in it. Collective."""
    known = stated_training(hf_dir)
    if known is None or not known.ledger:
        return known
    changed = changed_weights(hf_dir, files, ranks)
    if not changed:
        return known
    if ranks.rank == 0:
        stages = ", ".join(entry.stage for entry in known.ledger)
        say(
            f"{hf_dir}: {', '.join(changed[:3])}{', ...' if len(changed) > 3 else ''} not "
            f"as the export wrote it: what {targets.STATEMENT} says of its training ({stages}) "
            "is not taken over, as these weights have had another; import the export "
            "as it was written to go on with its ledger"
        )
    return None


def _made_from(ckpt_dir: Path, manifest: Manifest) -> dict[str, Any]:
    return {
        "checkpoint": ckpt_dir.resolve().name,
        "manifest": file_checksum(ckpt_dir / MANIFEST),
        "run": manifest.config.get("name"),
        "stage": manifest.stage,
        "update": manifest.update,
        **statement_of_training(manifest),
    }


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


def _size(tensor: GlobalTensor) -> int:
    return tensor.row_bytes * tensor.shape[0] * (tensor.layers or 1)
