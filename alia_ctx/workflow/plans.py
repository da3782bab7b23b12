"""Token stores -> plans of rows of a run's stages."""

from __future__ import annotations

from pathlib import Path

from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.packing import (
    Contamination,
    PackPlan,
    build_plan,
    find_contamination,
    read_statement,
)
from alia_ctx.data.tokens import (
    TokenStore,
)
from alia_ctx.errors import DataError
from alia_ctx.files import exclusive
from alia_ctx.progress import meter, say
from alia_ctx.workflow.chain import run_directory
from alia_ctx.workflow.conversations import open_conversation_plan, pack_conversations
from alia_ctx.workflow.stores import (
    has_store,
    open_store,
    open_stores,
    require_same_text,
    text_sources,
)


def earlier_stages(run: RunConfig, name: str) -> list[str]:
    """The stages whose data stage `name` continues, oldest first: those before it in the
    chain, back to one that begins anew. An epoch of conversations is each of them once,
    whatever came before.
    """
    stages: list[str] = []
    stage = run.stage(name)
    if stage.update_instances is not None:
        return stages
    while stage.pack.data == "continue" and stage.init_from in run.stages:
        stages.insert(0, stage.init_from)
        stage = run.stages[stage.init_from]
    return stages


def pack(run: RunConfig, name: str, *, overwrite: bool = False) -> PackPlan:
    """Plan the rows of a stage into OUTPUT/plans/STAGE; a finished identical plan is left
    as it is, one with fewer rows is extended.

    The data continues where the plans of the stages before end; one that is not there
    yet is made first.
    """
    require_same_text(run)
    return _plan(run, name, overwrite=overwrite)


def _plan(run: RunConfig, name: str, *, overwrite: bool) -> PackPlan:
    """`pack` of text that was compared already; makes plans of earlier stages likewise."""
    stage, stores = run.stage(name), open_stores(run, name)
    seen: dict[str, PackPlan] = {}
    for earlier in earlier_stages(run, name):
        directory = run_directory(run).plan(earlier)
        if not directory.is_dir():
            say(f"{name} continues the data of {earlier}, which is packed first")
            _plan(run, earlier, overwrite=False)
        sources = [source for source, _ in read_statement(directory).identity["stores"]]
        seen[earlier] = PackPlan.open(
            directory,
            {
                source: stores.get(source) or open_store(run, source)
                for source in sources
                if source in run.data.sources
            },
            rows_per_update=_rows_per_update(run, earlier),
        )
    directory = run_directory(run).plan(name)
    if directory.is_symlink():  # the plan is made anew where the link leads
        directory = directory.resolve()
    with (
        exclusive(directory, f"alia-ctx pack --stage {name}"),
        meter(f"pack {name}", 1.0, "plan") as bar,
    ):
        if stage.update_instances is not None:
            return pack_conversations(
                run,
                name,
                stores,
                directory,
                held_out=_held_out_store(run),
                overwrite=overwrite,
                progress=lambda what, done: bar.update(done, what),
            )
        return build_plan(
            stores,
            stage.pack,
            stage.context,
            stage.rows,
            directory,
            rows_per_update=stage.rows_per_update,
            seed=run.seed,
            seen=seen,
            unused=[source for source in run.data.sources if source not in stores],
            held_out=_held_out_store(run),
            overwrite=overwrite,
            progress=lambda what, done: bar.update(done, what),
        )


def _rows_per_update(run: RunConfig, name: str) -> int | None:
    """None for a stage of conversations, whose plan knows."""
    stage = run.stage(name)
    return None if stage.update_instances is not None else stage.rows_per_update


def _held_out_store(run: RunConfig) -> TokenStore | None:
    """The held-out text; None where there is none, or it is not tokenised yet."""
    there = HELD_OUT in text_sources(run) and has_store(run, HELD_OUT)
    return open_store(run, HELD_OUT) if there else None


def contamination(run: RunConfig, stage: str | None = None) -> Contamination | None:
    """The training documents that are held-out text, exactly or nearly, of all sources or
    those of a stage; None where there is no tokenised held-out text. Reads all tokens.
    """
    held_out = _held_out_store(run)
    if held_out is None:
        return None
    with meter("compare with held-out text", 1.0, "corpus") as bar:
        return find_contamination(
            open_stores(run, stage), held_out, lambda what, done: bar.update(done, what)
        )


def open_plan(run: RunConfig, name: str) -> PackPlan:
    """The plan of a stage; DataError where there is none, where any bit of it is not what
    was written, or where it was made from something else.
    """
    directory = run_directory(run).plan(name)
    if not directory.is_dir():
        raise DataError(
            f"{directory}: stage {name} has no plan; run `alia-ctx pack CONFIG --stage "
            f"{name}` first"
        )
    stage = run.stage(name)
    held_out = _held_out_store(run) if stage.pack.drop_contaminated else None
    stores = open_stores(run, name)
    if stage.update_instances is not None:
        return open_conversation_plan(run, name, stores, directory, held_out=held_out)
    return PackPlan.open(
        directory,
        stores,
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        rows=stage.rows,
        rows_per_update=stage.rows_per_update,
        seen=_plans_before(run, name, directory),
        held_out=held_out.fingerprint if held_out else None,
    )


def _plans_before(run: RunConfig, name: str, directory: Path) -> list[list[str]]:
    """(stage, fingerprint) of the plans that this plan should continue. A plan that was
    removed after use is taken to be the one that this plan names.
    """
    named = dict(read_statement(directory).identity["seen"])
    return [
        [
            earlier,
            read_statement(run_directory(run).plan(earlier)).fingerprint
            if run_directory(run).plan(earlier).is_dir()
            else named.get(earlier, "none"),
        ]
        for earlier in earlier_stages(run, name)
    ]
