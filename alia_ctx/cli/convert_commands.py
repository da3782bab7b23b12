"""The commands that convert: import-hf, export-hf, verify. Wiring only.

Import and export share their work where torchrun starts several processes:
`torchrun --nproc-per-node N -m alia_ctx.cli import-hf HF_DIR CHECKPOINT`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alia_ctx.cli.arguments import finite, path
from alia_ctx.errors import CheckpointError
from alia_ctx.progress import loading

if TYPE_CHECKING:
    import torch

    from alia_ctx.hf.streams import Progress

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}


class DType(StrEnum):
    """Number formats of weights."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


HfDir = Annotated[
    Path,
    typer.Argument(help="Hugging Face directory.", show_default=False, parser=path),
]
HfModel = Annotated[
    Path,
    typer.Argument(
        help="Hugging Face directory, or ORGANISATION/MODEL on the hub.",
        show_default=False,
        parser=path,
    ),
]
Checkpoint = Annotated[
    Path,
    typer.Argument(help="Checkpoint directory.", show_default=False, parser=path),
]
AsDType = Annotated[
    DType | None,
    typer.Option("--dtype", help="Convert weights (default: as they are stored)."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what an earlier conversion wrote.")
]


def register(app: typer.Typer) -> None:
    """Add the commands to `app`."""
    app.command("import-hf")(import_hf)
    app.command("export-hf")(export_hf)
    app.command()(verify)


def import_hf(
    hf_dir: HfModel,
    checkpoint: Checkpoint,
    dtype: AsDType = None,
    resize_embeddings: Annotated[
        int | None,
        typer.Option(help="Rows that the embedding shall have; new ones are the mean."),
    ] = None,
    pad_to_multiple_of: Annotated[
        int | None, typer.Option(help="Round the embedding's rows up to a multiple.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Convert a Hugging Face model to a checkpoint that every layout loads.

    Parallel under torchrun.
    """
    loading("torch")
    from alia_ctx.hf import convert
    from alia_ctx.hf.hub import model_directory
    from alia_ctx.hf.ranks import Ranks

    with (
        Ranks.from_environment() as ranks,
        _progress("import-hf", ranks.rank == 0) as progress,
    ):
        manifest = convert.import_hf(
            ranks.first(lambda: model_directory(hf_dir)),
            checkpoint,
            dtype=_torch_dtype(dtype),
            resize_embeddings=resize_embeddings,
            pad_to_multiple_of=pad_to_multiple_of,
            overwrite=overwrite,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank == 0:
        typer.echo(
            f"{checkpoint}: {manifest.model.parameters():,} parameters in "
            f"{manifest.extra['dtype']}, "
            f"context {manifest.context:,}, RoPE {manifest.rope.type}"
        )


def export_hf(
    checkpoint: Checkpoint,
    hf_dir: HfDir,
    dtype: AsDType = None,
    overwrite: Overwrite = False,
    shard_size: Annotated[
        str, typer.Option(help="Most bytes in a file, as in 5GB.")
    ] = "5GB",
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="Where the tokenizer of training is.", parser=path),
    ] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            help="For the model card, what was measured: Markdown, or JSON of "
            "evaluate-calls. May be repeated.",
            parser=path,
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option(help="Compare the checkpoint's checksums.")
    ] = True,
) -> None:
    """Convert a checkpoint's weights to safetensors shards with config.json, tokenizer
    and model card.
    """
    loading("torch")
    from alia_ctx.hf import convert
    from alia_ctx.hf.model_card import rounded_from
    from alia_ctx.hf.ranks import Ranks
    from alia_ctx.workflow.card_evaluation import card_evaluation

    with (
        Ranks.from_environment() as ranks,
        _progress("export-hf", ranks.rank == 0) as progress,
    ):
        manifest = convert.export_hf(
            checkpoint,
            hf_dir,
            dtype=_torch_dtype(dtype),
            overwrite=overwrite,
            shard_bytes=parse_bytes(shard_size),
            tokenizer_dir=tokenizer,
            evaluation=card_evaluation(evaluation or []),
            check=check,
            progress=progress,
            ranks=ranks,
        )
    if ranks.rank == 0:
        typer.echo(
            f"{hf_dir}: context {manifest.context:,}, RoPE {manifest.rope.type}, "
            f"stages {', '.join(entry.stage for entry in manifest.ledger) or 'none'}, "
            f"{rounded_from(manifest)}"
        )


def verify(
    hf_dir: HfDir,
    checkpoint: Checkpoint,
    weights_only: Annotated[
        bool, typer.Option("--weights-only", help="Skip the logits.")
    ] = False,
    tolerance: Annotated[
        float,
        typer.Option(
            help="Largest difference of logits, over max(1, largest logit).",
            min=0,
            callback=finite,
        ),
    ] = 1e-4,
) -> None:
    """Compare a Hugging Face model with a checkpoint:

    every weight to the bit, then logits. Status 1: they differ.
    """
    loading("torch")
    from alia_ctx.hf.verify import verify as compare

    with _progress("verify", True) as progress:
        report = compare(
            hf_dir,
            checkpoint,
            logits=not weights_only,
            tolerance=tolerance,
            progress=progress,
        )
    typer.echo(str(report))
    if not report.ok:
        raise typer.Exit(1)


def parse_bytes(text: str) -> int:
    """Bytes in `5GB`, `500 MiB`, `1000`; CheckpointError where it is none of these."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    size = float(match[1]) * _UNITS.get(match[2].upper(), 0) if match else 0
    if size < 1:
        raise CheckpointError(
            f"shard size {text!r} is no size; write it as 5GB, 500MB or 4GiB"
        )
    return int(size)


def _torch_dtype(dtype: DType | None) -> torch.dtype | None:
    import torch

    kinds = {
        DType.bf16: torch.bfloat16,
        DType.fp16: torch.float16,
        DType.fp32: torch.float32,
    }
    return None if dtype is None else kinds[dtype]


@contextmanager
def _progress(title: str, shown: bool) -> Iterator[Progress]:
    """A `progress(done, total)` that opens its bar when it first hears of a total."""
    from alia_ctx.progress import Meter, meter

    with ExitStack() as stack:
        bars: list[Meter] = []

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(meter(title, total, "B", shown=shown)))
            bars[0].update(min(done, total))

        yield progress
