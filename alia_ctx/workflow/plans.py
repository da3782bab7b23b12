"""Token stores -> plans of rows of a run's stages."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.config.run import HELD_OUT, RANDOM, RunConfig
from alia_ctx.data.packing import (
    Contamination,
    PackPlan,
    SourceRepeats,
    build_plan,
    copy_places,
    find_contamination,
    find_copies,
    find_repeats,
    held_out_statement,
    read_statement,
)
from alia_ctx.data.tokens import TokenStore, document_places
from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.files import exclusive
from alia_ctx.progress import meter, say
from alia_ctx.workflow.chain import require_free_to_go_on, run_directory
from alia_ctx.workflow.continued import (
    earlier_stages,
    epochs_to_plan,
    own_plan,
    plans_before,
    require_trained,
    rows_before,
    rows_to_plan,
)
from alia_ctx.workflow.conversations import (
    kept_out_of,
    open_conversation_plan,
    pack_conversations,
)
from alia_ctx.workflow.delimiter_settings import delimiter_notes
from alia_ctx.workflow.packed_notes import packed_notes
from alia_ctx.workflow.readiness import require_ready
from alia_ctx.workflow.stores import (
    has_store,
    open_store,
    open_stores,
    require_same_text,
    text_sources,
)


def pack(run: RunConfig, name: str, *, overwrite: bool = False) -> PackPlan:
    """Plan the rows of a stage into OUTPUT/plans/STAGE; a finished identical plan is left
    as it is, one with fewer rows is extended. One with more, on which the stage has
    trained, stays.

    The data continues where the stages before end, or are to end, in their plans; a plan
    that is not there yet is made first.
    """
    require_free_to_go_on(run, name)
    say("comparing the text with what it was tokenised from")
    require_same_text(run)
    require_ready(run, name)
    if note := not_seen(run, name):
        say(f"note: {escape(note)}")
    plan = _plan(run, name, overwrite=overwrite)
    found = [*packed_notes(name, plan), *copies_notes(run, name)]
    for note in [*delimiter_notes(run), *found]:
        say(f"note: {escape(note)}")
    return plan


def _plan(run: RunConfig, name: str, *, overwrite: bool) -> PackPlan:
    """`pack` of text that was compared already; makes plans of earlier stages likewise."""
    stage, stores = run.stage(name), open_stores(run, name)
    seen, seen_rows = dict[str, PackPlan](), dict[str, int]()
    for earlier in earlier_stages(run, name):
        directory = run_directory(run).plan(earlier)
        gone = not directory.is_dir()
        if gone:
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
        try:
            require_trained(run, name, earlier, seen[earlier].statement)
        except DataError:
            if gone:  # made a moment ago, and not the one that was gone
                shutil.rmtree(directory, ignore_errors=True)
            raise
        plans = seen[earlier].statement.plans
        seen_rows[earlier] = rows_before(run, name, earlier, plans)
    directory = run_directory(run).plan(name)
    if directory.is_symlink():  # the plan is made anew where the link leads
        directory = directory.resolve()
    trained = own_plan(run, name)
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
                epochs=epochs_to_plan(run, name),
                held_out=held_out_store(run),
                overwrite=overwrite,
                trained=trained,
                progress=lambda what, done: bar.update(done, what),
            )
        return build_plan(
            stores,
            stage.pack,
            stage.context,
            rows_to_plan(run, name),
            directory,
            rows_per_update=stage.rows_per_update,
            seed=run.seed,
            seen=seen,
            seen_rows=seen_rows,
            unused=[source for source in run.data.sources if source not in stores],
            held_out=held_out_store(run),
            kept_out=kept_out_of(run, name),
            overwrite=overwrite,
            trained=trained,
            progress=lambda what, done: bar.update(done, what),
        )


def _rows_per_update(run: RunConfig, name: str) -> int | None:
    """None for a stage of conversations, whose plan knows."""
    stage = run.stage(name)
    return None if stage.update_instances is not None else stage.rows_per_update


def held_out_store(run: RunConfig) -> TokenStore | None:
    """The held-out text; None where there is none, or it is not tokenised yet."""
    there = HELD_OUT in text_sources(run) and has_store(run, HELD_OUT)
    return open_store(run, HELD_OUT) if there else None


def copies_notes(run: RunConfig, name: str) -> list[str]:
    """That documents of a stage are held-out text, or are there more than once, word for
    word: a line each, with where the first are. What the plan leaves out is not told.
    """
    stage, stores = run.stage(name), open_stores(run, name)
    held_out = None if stage.pack.drop_contaminated else held_out_store(run)
    copies = find_copies(stores, held_out)
    deeper = f"`alia-ctx pack CONFIG --stage {shlex.quote(name)} --inspect`"
    if copies is None:
        return [f"too much text to look for copies in passing; {deeper} does"]
    notes = []
    held = {source: pairs for source, pairs in copies.held_out.items() if pairs}
    if held and held_out is not None:
        source, [(number, other), *_] = next(iter(held.items()))
        places = document_places(stores[source], [number])
        places += document_places(held_out, [other])
        notes.append(
            f"held-out text is trained on: {_counted(held)} that the held-out text has "
            f"word for word, the first {' = '.join(places)}; `stages.{name}.pack."
            f"drop_contaminated: true` leaves them out, {deeper} counts near ones too"
        )
    repeated = {source: found for source, found in copies.repeated.items() if found}
    if repeated:
        source, found = next(iter(repeated.items()))
        notes.append(
            f"copies are trained on: {_counted(repeated)} that an earlier document has "
            f"word for word, the first {copy_places(source, found[:1], stores)[0]}; "
            f"{deeper} counts near ones too"
        )
    return notes


def _counted(found: Mapping[str, Sequence[object]]) -> str:
    parts = [f"{len(pairs):,} of {source}" for source, pairs in found.items()]
    return f"documents, {', '.join(parts)},"


def contamination(run: RunConfig, stage: str | None = None) -> Contamination | None:
    """The training documents that are held-out text, exactly or nearly, of all sources or
    those of a stage; None where there is no tokenised held-out text. Reads all tokens.
    """
    held_out = held_out_store(run)
    if held_out is None:
        return None
    with meter("compare with held-out text", 1.0, "corpus") as bar:
        return find_contamination(
            open_stores(run, stage), held_out, lambda what, done: bar.update(done, what)
        )


def repeats(run: RunConfig, stage: str) -> dict[str, SourceRepeats]:
    """What the sources of a stage hold more than once. Reads all tokens."""
    with meter("look for copies", 1.0, "corpus") as bar:
        return find_repeats(
            open_stores(run, stage), lambda what, done: bar.update(done, what)
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
    held_out = held_out_store(run) if stage.pack.drop_contaminated else None
    stores = open_stores(run, name)
    if stage.update_instances is not None:
        epochs = epochs_to_plan(run, name)
        return open_conversation_plan(
            run, name, stores, directory, epochs=epochs, held_out=held_out
        )
    return PackPlan.open(
        directory,
        stores,
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        rows=rows_to_plan(run, name),
        rows_per_update=stage.rows_per_update,
        seen=plans_before(run, name, directory),
        held_out=held_out_statement(held_out, kept_out=kept_out_of(run, name)),
    )


def not_seen(run: RunConfig, name: str) -> str | None:
    """That a stage counts as not seen what the checkpoint that it or the first of its
    chain starts from, by its path, was trained on; None where there is no such thing.
    """
    stage = run.stage(name)
    if stage.update_instances is not None or stage.pack.data != "continue":
        return None
    first = next(iter(earlier_stages(run, name)), name)
    origin = run.stage(first).init_from
    if origin == RANDOM or origin in run.stages:
        return None
    try:
        ledger = checkpoint.read_manifest(Path(origin)).ledger
    except CheckpointError:  # starting from it says so
        return None
    if not ledger:
        return None
    plans = {entry.plan for entry in ledger}
    own = [other for other in run.stages if plans & _fingerprints(run, other)]
    return (
        f"stage {name} counts as not seen the {sum(e.tokens for e in ledger):,} tokens "
        f"that {origin} was trained on (stage {', '.join(e.stage for e in ledger)}), and "
        "may train on them again"
        + (f"; `init_from: {own[-1]}` continues the data behind them" if own else "")
    )


def _fingerprints(run: RunConfig, name: str) -> set[str]:
    """Of the plan of a stage that is there, and of those that it began as."""
    with suppress(DataError):
        plan = read_statement(run_directory(run).plan(name))
        return {there["fingerprint"] for there in plan.plans}
    return set()
