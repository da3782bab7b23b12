"""Token stores -> plans of rows of a run's stages."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.markup import escape

from alia_ctx import checkpoint
from alia_ctx.checkpoint.manifest import DamagedError
from alia_ctx.config.run import HELD_OUT, RANDOM, RunConfig
from alia_ctx.data.packing import (
    Contamination,
    PackPlan,
    SourceRepeats,
    Statement,
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
from alia_ctx.train.stage_identity import PLAN
from alia_ctx.workflow.chain import require_free_to_go_on, run_directory
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
    seen: dict[str, PackPlan] = {}
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
            _require_trained(run, name, earlier, seen[earlier].statement)
        except DataError:
            if gone:  # made a moment ago, and not the one that was gone
                shutil.rmtree(directory, ignore_errors=True)
            raise
    directory = run_directory(run).plan(name)
    if begun_before(run, name, {e: plan.statement for e, plan in seen.items()}):
        return open_plan(run, name)
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
                held_out=held_out_store(run),
                overwrite=overwrite,
                trained=trained,
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
            held_out=held_out_store(run),
            kept_out=kept_out_of(run, name),
            overwrite=overwrite,
            trained=trained,
            progress=lambda what, done: bar.update(done, what),
        )


def own_plan(run: RunConfig, name: str) -> dict[str, Any] | None:
    """What a plan must begin with that a begun stage goes on from: the one that its
    newest checkpoint was trained on, as that states it, or as the plan that is there does.
    """
    directory = run_directory(run)
    for path in reversed(checkpoint.list_checkpoints(directory.checkpoints(name))):
        try:
            manifest = checkpoint.read_manifest(path)
        except DamagedError:
            continue
        fingerprint = manifest.ledger[-1].plan if manifest.ledger else None
        stated = manifest.extra.get(PLAN, {})
        if fingerprint == stated.get("fingerprint"):
            return dict(stated) or None
        with suppress(DataError):  # of a release whose checkpoints do not state it
            return read_statement(directory.plan(name)).as_trained(fingerprint)
        return None
    return None


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
        return open_conversation_plan(run, name, stores, directory, held_out=held_out)
    return PackPlan.open(
        directory,
        stores,
        spec=stage.pack,
        row_length=stage.context,
        seed=run.seed,
        rows=stage.rows,
        rows_per_update=stage.rows_per_update,
        seen=plans_before(run, name, directory),
        held_out=held_out_statement(held_out, kept_out=kept_out_of(run, name)),
    )


def plans_before(run: RunConfig, name: str, directory: Path) -> list[list[str]]:
    """(stage, fingerprint) of the plans that this plan should continue: those that the
    stages before were trained on, or are to be.

    A plan that was removed after use is taken to be the one that this plan names, if the
    ledger says so too. One to which rows were added since a begun stage has continued it
    is to that stage what it was.
    """
    named = dict(read_statement(directory).identity["seen"])
    begun = checkpoint.latest(run_directory(run).checkpoints(name)) is not None
    pairs = []
    for earlier in earlier_stages(run, name):
        fingerprint = named.get(earlier, "none")
        if run_directory(run).plan(earlier).is_dir():
            there = read_statement(run_directory(run).plan(earlier))
            _require_trained(run, name, earlier, there)
            if not (begun and fingerprint in _shorter(there)):
                fingerprint = there.fingerprint
        else:
            trained = _trained_on(run, name, earlier)
            fingerprint = trained or fingerprint
        pairs.append([earlier, fingerprint])
    return pairs


def begun_before(run: RunConfig, name: str, seen: Mapping[str, Statement]) -> bool:
    """Whether a stage was begun on a plan that continues plans in `seen` as they were
    before rows were added to them.
    """
    directory = run_directory(run).plan(name)
    if checkpoint.latest(run_directory(run).checkpoints(name)) is None:
        return False
    if not directory.is_dir():
        return False
    named = dict(read_statement(directory).identity["seen"])
    return any(named.get(stage) in _shorter(plan) for stage, plan in seen.items())


def _shorter(plan: Statement) -> set[str]:
    return {shorter["fingerprint"] for shorter in plan.shorter}


def _trained_on(run: RunConfig, name: str, earlier: str) -> str | None:
    """The fingerprint of the plan that stage `earlier` was trained on, by the ledger of
    the stage `name` that continues it, or else by its own; None where there is none.
    """
    for stage in (name, earlier):
        for path in reversed(
            checkpoint.list_checkpoints(run_directory(run).checkpoints(stage))
        ):
            with suppress(CheckpointError):
                for entry in reversed(checkpoint.read_manifest(path).ledger):
                    if entry.stage == earlier:
                        return entry.plan
    return None


def _require_trained(run: RunConfig, name: str, earlier: str, plan: Statement) -> None:
    """DataError unless `plan`, of stage `earlier`, is the one that it was trained on, or
    that one with rows added: a plan that grew in steps is made anew in one as another.
    """
    trained = _trained_on(run, name, earlier)
    if trained is None or trained in {plan.fingerprint, *_shorter(plan)}:
        return
    raise DataError(
        f"{plan.directory}: is not the plan that stage {earlier} was trained on (plan "
        f"{trained} there, {plan.fingerprint} now), so that {name} would train again on "
        f"what {earlier} has trained on. Restore that plan; where it is lost and rows "
        "were added to it, move this one away and pack it in the same steps, with "
        f"stages.{earlier}.tokens as they were in turn; or set "
        f"stages.{name}.pack.data=restart"
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
        return {plan.fingerprint, *_shorter(plan)}
    return set()
