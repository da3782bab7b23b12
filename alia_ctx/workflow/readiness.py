"""What a stage of conversations is refused for before any stage of its run is trained, once
its sources are tokenised.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from alia_ctx import checkpoint
from alia_ctx.config.budget import warmup_problems
from alia_ctx.config.run import RunConfig
from alia_ctx.data.packing import draw_held_out
from alia_ctx.data.tokens.tokenizer import HubTokenizer
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.evaluation.function_calls import CALL_TAG, calls_of
from alia_ctx.workflow.chain import planned_updates, run_directory
from alia_ctx.workflow.conversations import require_kept_out
from alia_ctx.workflow.mixture import mixture_of
from alia_ctx.workflow.stores import has_store, open_stores

_SHORT = 50  # updates of a stage of which one is a share to know of


def require_ready(run: RunConfig, name: str) -> None:
    """DataError where another stage has trained on what this one holds out, or where what
    it holds out cannot show which checkpoint is the best; ConfigError for a warm-up that
    is no shorter than the stage. Of stages of tokens, and of what is not tokenised yet,
    nothing is said.
    """
    if run.stage(name).update_instances is None or run.deferred(run.output):
        return
    require_warmup(run, name)
    if _tokenised(run, [name]):
        require_calls(run, name)
    # Which conversations a stage leaves out depends on those that all others hold out.
    holding = [n for n, stage in run.stages.items() if stage.pack.held_out_instances]
    if _tokenised(run, holding):
        require_kept_out(run, name)


def _tokenised(run: RunConfig, names: Iterable[str]) -> bool:
    drawn = [run.stage(name).pack.drawn_from(run.data.sources) for name in names]
    return all(has_store(run, source) for sources in drawn for source in sources)


def require_calls(run: RunConfig, name: str) -> None:
    """DataError where the best checkpoint of a stage is to be the one that calls best, and
    no conversation that the stage holds out has a call to measure.
    """
    best, stage = run.evaluation.best, run.stage(name)
    held_out = stage.pack.held_out_instances
    if best is None or best.metric != "calls_exact" or not held_out:
        return
    stores = open_stores(run, name)
    decode = HubTokenizer(run.tokenizer, run.model.architecture).auto.decode
    for source, numbers in draw_held_out(stores, stage.pack, run.seed).items():
        store = stores[source]
        shown = numbers[store.lengths[numbers] <= stage.context].tolist()
        if any(calls_of(store, shown, decode)):
            return
    raise DataError(
        f"evaluation.best.metric=calls_exact: none of the {held_out:,} conversations that "
        f"stage {name} holds out has, within {stage.context:,} tokens, a call of a "
        "function that is trained, so no checkpoint would be the best; hold out more "
        f"(stages.{name}.pack.held_out_instances), or choose conversation_loss. Calls are "
        "known by what `alia-ctx tokenize` marks; in stores that it did not make, by "
        f"{CALL_TAG}"
    )


def require_warmup(run: RunConfig, name: str) -> None:
    """ConfigError where the warm-up of a stage of conversations is no shorter than its plan,
    or, before it is packed, than what its stores come to at most.
    """
    stage = run.stage(name)
    if stage.update_instances is None or run.deferred(run.output):
        return
    if checkpoint.latest(run_directory(run).checkpoints(name)) is not None:
        return  # the warm-up of a stage that was begun cannot change
    updates = planned_updates(run, name)
    if updates is None:
        mixture = mixture_of(run, name)
        if not mixture.epoch or not all(s.is_tokenised for s in mixture.sources):
            return
        updates = mixture.updates
    problems = warmup_problems(f"stages.{name}.schedule", stage, updates)
    if problems:
        raise ConfigError(f"stage {name} has a warm-up that does not end", problems)


def warmup_notes(run: RunConfig, names: Sequence[str] = ()) -> list[str]:
    """Stages (default: all) so short that the first update of a warm-up, whose rate is 0 as
    in transformers and Megatron, is a share of them to know of.
    """
    notes = []
    for name in names or run.stages:
        stage = run.stage(name)
        if not stage.schedule.warmup:
            continue
        known = stage.update_instances is None
        updates = stage.updates if known else planned_updates(run, name)
        if updates is not None and updates <= _SHORT:
            notes.append(
                f"stages.{name}.schedule.warmup: the first of its {updates} updates "
                "has a learning rate of 0, so that what it reads trains nothing; smaller "
                "or more updates, or no warm-up, lose less"
            )
    return notes
