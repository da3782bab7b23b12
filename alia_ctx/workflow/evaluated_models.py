"""The models that are evaluated: a run's base and stages, checkpoints, Hugging Face
directories; what each is, and how it is opened.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alia_ctx import checkpoint
from alia_ctx.config.run import RANDOM, EngineConfig, RunConfig
from alia_ctx.errors import CheckpointError, LayoutError
from alia_ctx.evaluation.model_names import names_apart
from alia_ctx.host_memory import available_memory
from alia_ctx.progress import say
from alia_ctx.spec.execution import loss_chunk_tokens
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.train.engine import Scorer
from alia_ctx.train.rendezvous import World
from alia_ctx.train.run_directory import mended_by_training
from alia_ctx.train.stage_identity import checkpoint_statement
from alia_ctx.workflow.chain import finished_checkpoint
from alia_ctx.workflow.model_checksums import model_checksums

BASE = "base"


@dataclass(frozen=True)
class EvaluatedModel:
    """A model by name, and what it is.

    Args:
        name: in tables, and of the folder of its results.
        path: of its checkpoint, or its Hugging Face directory.
        statement: what it is, wherever it lies.
        context: its own, in tokens.
        model, rope: what the engine builds; None where transformers runs it.
        tokenizer: directory of its tokenizer; None where there is none.
        through: what reads it: `engine`, or `transformers` and why.
        stage: of a run, whose last checkpoint it is; None for other models.
        limit: positions that it has at all, where these are a table; None: no end.
    """

    name: str
    path: Path
    statement: dict[str, Any]
    context: int
    vocab_size: int
    model: ModelSpec | None
    rope: RopeSpec | None
    tokenizer: Path | None
    is_checkpoint: bool = True
    through: str = "engine"
    stage: str | None = None
    limit: int | None = None

    @property
    def packs(self) -> bool:
        """Whether short documents may share a long row: not where the RoPE depends on the
        length of what is read.
        """
        return self.rope is None or self.rope.type != "dynamic"


def base_checkpoint(run: RunConfig) -> EvaluatedModel | None:
    """The checkpoint that the first stage of a run starts from; None where that is random
    weights, or it is not at hand any more.
    """
    origin = next(iter(run.stages.values())).init_from
    if origin == RANDOM or origin in run.stages:
        return None
    if not Path(origin, checkpoint.MANIFEST).is_file():
        return None
    name = BASE if BASE not in run.stages else "the origin of the first stage"
    return replace(
        of_checkpoint(Path(origin)), name=name, tokenizer=Path(run.tokenizer)
    )


def base_name(run: RunConfig) -> str | None:
    """What the base of a run is called: `base`, the model that the first stage started
    from; where that is `random`, the first stage. None where it is not at hand any more.
    """
    first, stage = next(iter(run.stages.items()))
    if stage.init_from == RANDOM or stage.init_from in run.stages:
        return first
    base = base_checkpoint(run)
    return None if base is None else base.name


def model_of(run: RunConfig, name: str) -> EvaluatedModel:
    """The base or a stage of a run by its name."""
    base = base_checkpoint(run)
    return base if base is not None and name == base.name else of_stage(run, name)


def of_stage(run: RunConfig, name: str) -> EvaluatedModel:
    """The last checkpoint of a finished stage."""
    made = of_checkpoint(finished_checkpoint(run, name))
    return replace(made, name=name, stage=name, tokenizer=Path(run.tokenizer))


def of_checkpoint(path: Path) -> EvaluatedModel:
    """A checkpoint directory, with the tokenizer that it carries or was trained with."""
    manifest = checkpoint.read_manifest(path)
    known = manifest.config.get("tokenizer")
    candidates = [path / checkpoint.ASSETS, *([Path(known)] if known else [])]
    name = path.name if manifest.is_import else f"{manifest.stage}-{manifest.update}"
    return EvaluatedModel(
        name=name,
        path=path,
        statement={"checkpoint": checkpoint_statement(manifest)},
        context=manifest.context,
        vocab_size=manifest.model.vocab_size,
        model=manifest.model,
        rope=manifest.rope,
        tokenizer=next(filter(_has_tokenizer, candidates), None),
    )


def of_directory(path: Path) -> EvaluatedModel:
    """A checkpoint, or a Hugging Face directory: through the engine where it computes that
    family, else through transformers.

    CheckpointError where it is neither.
    """
    if (path / checkpoint.MANIFEST).is_file():
        return of_checkpoint(path)
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path}: is neither a configuration, a checkpoint, nor a Hugging Face "
            f"directory (no config.json); {_nearby(path)}"
        )
    return _of_huggingface(path)


def _nearby(path: Path) -> str:
    """What to name in place of a directory: of a run's, of a stage's or of checkpoints,
    what is in it.
    """
    patterns = ("*", "checkpoints/*", "stages/*/checkpoints/*")
    checkpoints = [
        file.parent
        for pattern in patterns
        for file in path.glob(f"{pattern}/{checkpoint.MANIFEST}")
    ]
    if not checkpoints:
        return "name one of these"
    newest = max(
        checkpoints, key=lambda place: (place / checkpoint.MANIFEST).stat().st_mtime
    )
    if (path / "stages").is_dir():
        return (
            "it is a run's output: name the run's YAML, or a checkpoint in it, as "
            f"{newest}"
        )
    return f"it holds checkpoints: name one, as {newest}"


def _of_huggingface(path: Path) -> EvaluatedModel:
    from alia_ctx.hf import assets, config, rules, streams, weight_files
    from alia_ctx.hf.trained_length import read_length

    made = EvaluatedModel(
        name=path.resolve().name,
        path=path,
        statement={},
        context=0,
        vocab_size=0,
        model=None,
        rope=None,
        tokenizer=path if _has_tokenizer(path) else None,
        is_checkpoint=False,
    )
    try:
        model, rope, published = config.read_config(path)
    except CheckpointError as refusal:
        made = _through_transformers(made, refusal)
        return replace(made, statement={"huggingface": model_checksums(path)})
    # All that an import refuses by headers alone is refused before others are measured.
    assets.asset_files(path, assets.carried(path))
    assets.check_readable(path)
    places = weight_files.locate_weights(path)
    streams.drop_tied_head(model.tie_word_embeddings, places)
    rules.check_huggingface(rules.WeightMap(model), places, str(path))
    return replace(
        made,
        statement={"huggingface": model_checksums(path)},
        context=read_length(path, rope, published),
        vocab_size=model.vocab_size,
        model=model,
        rope=rope,
    )


def _through_transformers(
    made: EvaluatedModel, refusal: CheckpointError
) -> EvaluatedModel:
    """What transformers says of a model that the engine has not; `refusal` where it knows
    it as little.
    """
    from transformers import AutoConfig

    from alia_ctx.hf import weight_files
    from alia_ctx.hf.scoring import position_limit
    from alia_ctx.hf.trained_length import read_length, upstream_rope

    try:
        config: Any = AutoConfig.from_pretrained(
            made.path, trust_remote_code=False, local_files_only=True
        )
        published, vocabulary = int(config.max_position_embeddings), config.vocab_size
        rope = upstream_rope(config)
    except Exception:  # whatever a file's content provokes
        raise refusal from None
    weight_files.locate_weights(made.path)
    reason = " ".join(str(refusal).split())
    return replace(
        made,
        context=published if rope is None else read_length(made.path, rope, published),
        vocab_size=int(vocabulary),
        limit=position_limit(config),
        through=f"transformers, as the engine has not its family: {reason}",
    )


def _has_tokenizer(directory: Path) -> bool:
    from alia_ctx.data.tokens import has_vocabulary

    return has_vocabulary(directory)


def named_apart(models: Sequence[EvaluatedModel]) -> list[EvaluatedModel]:
    """The models with names that differ, as each has a folder of its own. What begins with
    a dot (the folder of imports, locks) is no model's.
    """
    names = names_apart([_folder_name(model.name) for model in models])
    return [replace(m, name=name) for m, name in zip(models, names, strict=True)]


def _folder_name(name: str) -> str:
    return name.replace("/", "_").lstrip(".") or "model"


class ModelOpener:
    """Opens models on the ranks of the process group, one at a time, each in a layout that
    is found for it.

    A Hugging Face directory is imported below `scratch` when it is first opened, and what
    was imported goes with the opener (`with`).

    Args:
        layout: taken in place of one that is found.
    """

    def __init__(
        self, engine: EngineConfig, scratch: Path, layout: Layout | None = None
    ) -> None:
        self.engine, self.layout = engine, layout
        self._scratch = scratch / ".imported"
        self._imported: dict[Path, Path] = {}

    def __enter__(self) -> ModelOpener:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._imported and World().rank == 0:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @contextmanager
    def open(self, model: EvaluatedModel, context: int) -> Iterator[Scorer]:
        """The model, ready to read rows of `context` tokens. Collective."""
        if model.model is None:
            from alia_ctx.workflow.transformers_scorer import TransformersScorer

            scorer = TransformersScorer(model.path, self.engine)
            scorer.try_length(context)
            yield scorer
            return
        yield self._engine(model, context)

    def check(self, model: EvaluatedModel, context: int) -> None:
        """LayoutError where the ranks cannot hold the model, or not in the layout that was
        asked for. Collective.
        """
        if model.model is None:
            return
        if self.layout is None:
            find_layout(self.engine, model.model, context)
            return
        ranks = World().world_size
        problems = self.layout.problems("layout", model.model, context, ranks)
        if problems:
            lines = [f"the layout does not fit {model.name} at {context:,} tokens"]
            raise LayoutError("\n  ".join([*lines, *map(str, problems)]))

    def _engine(self, model: EvaluatedModel, context: int) -> Scorer:
        import torch

        from alia_ctx.mcore.engine import MegatronEngine

        # Upstream's modules hold each other: without this the model before stays.
        gc.collect()
        torch.cuda.empty_cache()
        assert model.model is not None and model.rope is not None
        layout = self.layout or find_layout(self.engine, model.model, context)
        path = model.path if model.is_checkpoint else self._import(model)
        engine = MegatronEngine(
            model.model, model.rope, context, layout, self.engine, None
        )
        with mended_by_training(model.stage) if model.stage else nullcontext():
            checkpoint.open_checkpoint(path, engine)
        engine.load(path / checkpoint.STATE, with_optimizer=False)
        return engine

    def _import(self, model: EvaluatedModel) -> Path:
        """The checkpoint that a Hugging Face directory is imported to, once. Collective."""
        if model.path not in self._imported:
            from alia_ctx.hf import convert
            from alia_ctx.hf.ranks import Ranks

            ranks = Ranks(World().rank, World().world_size)
            target = self._scratch / f"{len(self._imported)}"
            if not self._imported:  # what a killed evaluation left
                ranks.first(lambda: shutil.rmtree(self._scratch, ignore_errors=True))
            ranks.first(lambda: target.parent.mkdir(parents=True, exist_ok=True))
            if ranks.rank == 0:
                say(f"{model.name}: imported into {target} for this evaluation")
            self._imported[model.path] = target
            convert.import_hf(model.path, target, ranks=ranks)
        return self._imported[model.path]


def find_layout(engine: EngineConfig, model: ModelSpec, context: int) -> Layout:
    """A layout in which the ranks that there are evaluate `model` in rows of `context`
    tokens; LayoutError names how many would do. Collective.
    """
    from alia_ctx.planner.evaluation_layout import evaluation_layout

    device, memory = _device_memory()
    found = World().gather_objects(memory)
    return evaluation_layout(
        model,
        context,
        len(found),
        weight_bytes=4 if engine.precision == "fp32" else 2,
        memory_bytes=min(found),
        loss_chunk_tokens=loss_chunk_tokens(engine.loss_chunk_tokens, device),
    )


def _device_memory() -> tuple[str, int]:
    """Type of this rank's device, and the bytes of memory that are its own."""
    import torch

    if torch.cuda.is_available():
        return "cuda", int(torch.cuda.mem_get_info()[0])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", World().world_size))
    return "cpu", available_memory() // max(1, local)


def choose_precision(engine: EngineConfig, precision: str | None) -> EngineConfig:
    """The engine of an evaluation without a configuration: bf16 on GPUs, fp32 on hosts,
    where bf16 is slow; or what was asked for.
    """
    import torch

    if precision not in (None, "fp32", "bf16"):
        raise LayoutError(f"--precision {precision}: use fp32 or bf16")
    chosen = precision or ("bf16" if torch.cuda.is_available() else "fp32")
    return replace(engine, precision=chosen)  # type: ignore[arg-type]
