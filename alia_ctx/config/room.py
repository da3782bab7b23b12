"""What gives a stage room that has none: settings that cost little, then more GPUs, and a
shorter context where not even these do. All of it is tried with the planner.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from alia_ctx.config.budget import budget_problems, schedule_problems
from alia_ctx.config.run import RunConfig, StageConfig

if TYPE_CHECKING:
    from alia_ctx.planner import LayoutChoice

# (run, its stage, GPUs, whether any recomputation may be taken) -> the planner's first layout.
Choose = Callable[[RunConfig, StageConfig, int, bool], "LayoutChoice"]

_MOST_DOUBLINGS = 6
_SHORTEST = 1024  # tokens: nobody extends a context to less
# Gate and up of so many tokens are small beside a long row's hidden states.
_CHUNK = 16_384


@dataclass(frozen=True)
class Room:
    """Settings, as on the command line, with which a stage has room, the run that has those
    of its engine, and the layout that the planner takes with them.
    """

    settings: tuple[str, ...]
    run: RunConfig
    choice: LayoutChoice

    def __str__(self) -> str:
        layout, plan = self.choice.layout, self.choice.plan
        doubt = "" if self.choice.fits else ", a guess of overhead among it: it may fit"
        return (
            f"set {' '.join(self.settings)} (tp={layout.tp} cp={layout.cp} pp={layout.pp} "
            f"with recompute={self.choice.recompute} then takes {plan.fullest.total:.1f} of "
            f"{plan.cluster.memory_gib:g} GiB{doubt})"
        )


def roomier(run: RunConfig) -> Iterator[tuple[list[str], RunConfig]]:
    """(settings, `run` with them) that take less of a GPU's memory in layers that are
    recomputed in full, with as many products, the cheapest first: their inputs on the host, the
    MLP of Megatron-Core's own layers in chunks, and both. Nothing for hosts.
    """
    engine = run.engine
    if engine.device == "cpu" or not run.cluster.is_of_gpus:
        return
    chunk = engine.mlp_chunk_tokens
    chunks = engine.layers == "local" and (chunk is None or chunk > _CHUNK)
    for away in (not engine.offload_activations, False):
        for cut in (False, chunks):
            settings, changed = list[str](), engine
            if away:
                settings.append("engine.offload_activations=true")
                changed = replace(changed, offload_activations=True)
            if cut:
                settings.append(f"engine.mlp_chunk_tokens={_CHUNK}")
                changed = replace(changed, mlp_chunk_tokens=_CHUNK)
            if settings:
                yield settings, replace(run, engine=changed)
    if engine.offload_activations:  # it may be the host that has no room
        changed = replace(engine, offload_activations=False)
        yield ["engine.offload_activations=false"], replace(run, engine=changed)


def way_out(
    run: RunConfig,
    name: str,
    gpus: int,
    choose: Choose,
    opened: Collection[str] = ("layout", "recompute"),
) -> Room | None:
    """The first that gives a stage room on as many GPUs; None where nothing does.

    opened: what of its `layout` and `recompute` the stage leaves to the planner; where another
    of the rest is taken that is one of the settings.
    """
    rooms = []
    for settings, other, stage in _changes(run, name, gpus):
        choice = choose(other, stage, gpus, True)
        if not choice.usable:
            continue
        own = _stage_settings(stage, name, choice, opened)
        if settings or own:
            rooms.append(Room((*own, *settings), other, choice))
    # What may fit is a way out only where nothing fits.
    return next((r for r in rooms if r.choice.fits), rooms[0] if rooms else None)


def _changes(
    run: RunConfig, name: str, gpus: int
) -> Iterator[tuple[list[str], RunConfig, StageConfig]]:
    """What is tried in turn, first nothing but what the stage gives itself."""
    stage = run.stage(name)
    yield [], run, stage
    for settings, other in roomier(run):
        yield settings, other, stage
    rows = gpus * stage.context
    if stage.update_tokens is not None and stage.update_tokens < rows:
        settings, larger = _larger_update(stage, name, rows)
        if _keeps_rules(run, larger):
            yield settings, run, larger
    if run.engine.fp8 != "off":
        yield (
            ["engine.fp8=off"],
            replace(run, engine=replace(run.engine, fp8="off")),
            stage,
        )


def _larger_update(
    stage: StageConfig, name: str, update_tokens: int
) -> tuple[list[str], StageConfig]:
    """(settings, the stage) with so many tokens an update, and where its tokens are fewer than
    that, or the updates then too few for its warm-up, with as many more of them as it takes.
    """
    key, tokens = f"stages.{name}", max(stage.tokens or 0, update_tokens)
    larger = replace(stage, update_tokens=update_tokens, tokens=tokens)
    if schedule_problems(key, larger):
        tokens = max(tokens, stage.updates * update_tokens)
        larger = replace(larger, tokens=tokens)
    settings = [f"{key}.update_tokens={update_tokens}"]
    settings += [f"{key}.tokens={tokens}"] * (tokens != stage.tokens)
    return settings, larger


def _keeps_rules(run: RunConfig, stage: StageConfig) -> bool:
    """Whether a stage whose sizes were changed is one that the configuration may have."""
    rope = stage.rope.problems("", stage.context, run.model.head_dim)
    return not (rope or budget_problems("", stage) or schedule_problems("", stage))


def _gpu_settings(
    run: RunConfig, stage: StageConfig, name: str, gpus: int
) -> list[str] | None:
    """What gives a stage so many GPUs; None where they are no whole nodes of the cluster."""
    each = run.cluster.ranks_per_node
    key = f"stages.{name}" if stage.nodes else "cluster"
    if gpus < each:  # a part of a node, as a plan may be asked of
        return [f"{key}.nodes=1", f"cluster.ranks_per_node={gpus}"]
    return None if gpus % each else [f"{key}.nodes={gpus // each}"]


def _stage_settings(
    stage: StageConfig, name: str, choice: LayoutChoice, opened: Collection[str]
) -> list[str]:
    settings, layout = [], choice.layout
    if "layout" not in opened and layout != stage.layout:
        sizes = f"{{tp: {layout.tp}, cp: {layout.cp}, pp: {layout.pp}}}"
        settings.append(f"'stages.{name}.layout={sizes}'")
    if "recompute" not in opened and choice.recompute != stage.recompute:
        settings.append(f"stages.{name}.recompute={choice.recompute}")
    return settings


def remedy(
    run: RunConfig,
    name: str,
    gpus: int,
    choose: Choose,
    opened: Collection[str] = ("layout", "recompute"),
) -> str:
    """`way_out` in words, with how many GPUs would do without it."""
    stage, see = run.stage(name), "`alia-ctx plan` has the layouts and why others fall"
    ways = [str(room)] if (room := way_out(run, name, gpus, choose, opened)) else []
    for doubling in range(1, _MOST_DOUBLINGS + 1):
        settings = _gpu_settings(run, stage, name, gpus << doubling)
        if settings is None:
            continue
        choice = choose(run, stage, gpus << doubling, True)
        if choice.usable:
            settings += [f"stages.{name}.layout=auto"] * ("layout" not in opened)
            settings += _stage_settings(stage, name, choice, {"layout", *opened})
            ways.append(f"take {gpus << doubling} GPUs (set {' '.join(settings)})")
            break
    if ways:
        return f"{', or '.join(ways)}; {see}"
    context = stage.context // 2
    while context >= _SHORTEST:
        shorter = replace(stage, context=context)
        choice = choose(run, shorter, gpus, True)
        if choice.usable and _keeps_rules(run, shorter):
            settings = [f"stages.{name}.context={context}"]
            settings += [f"stages.{name}.layout=auto"] * ("layout" not in opened)
            settings += _stage_settings(stage, name, choice, {"layout", *opened})
            has = f"has room on as many (set {' '.join(settings)})"
            return f"a context of {context:,} {has}; {see}"
        context //= 2
    lacks = "`alia-ctx plan` says what each layout lacks"
    most = gpus << _MOST_DOUBLINGS
    return f"neither {most:,} GPUs nor shorter rows are enough; {lacks}"
