"""Text -> token stores -> plans of rows: the steps before training."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape

from alia_ctx.checkpoint import Manifest
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.chat import (
    ChatEncoder,
    chat_settings,
    require_same_chat,
    write_chat_store,
)
from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.packing import (
    Contamination,
    PackPlan,
    build_plan,
    find_contamination,
    read_statement,
)
from alia_ctx.data.tokens import (
    TOKENIZER,
    TextEncoder,
    TokenizeProgress,
    TokenStore,
    require_same_source,
    tokenize_source,
    tokenizer_statement,
)
from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.files import exclusive
from alia_ctx.identity import require_same
from alia_ctx.progress import Meter, meter, say
from alia_ctx.workflow.chain import longest_context, run_directory
from alia_ctx.workflow.conversations import open_conversation_plan, pack_conversations


def tokenize(
    run: RunConfig, sources: Sequence[str] = (), *, overwrite: bool = False
) -> None:
    """Tokenise the named sources (default: all, and the held-out text) into OUTPUT/tokens."""
    known = text_sources(run)
    for name in sources or known:
        if name not in known:
            raise ConfigError(
                "",
                [
                    Problem(
                        "--source",
                        name,
                        "is not a source",
                        f"there are {', '.join(known)}",
                    )
                ],
            )
        spec = known[name]
        if spec.store:
            say(f"{name}: uses the store {spec.store} as it is")
            continue
        if spec.chat is not None:
            _tokenize_chat(run, name, spec, overwrite=overwrite)
            continue
        with (
            exclusive(store_prefix(run, name), f"alia-ctx tokenize --source {name}"),
            meter(f"tokenize {name}", 1.0, "token") as bar,
        ):

            def show(state: TokenizeProgress, bar: Meter = bar) -> None:
                tokens_a_byte = state.tokens / max(state.bytes_done, 1)
                bar.retotal(max(tokens_a_byte * state.bytes_total, 1))
                bar.update(state.tokens)

            report = tokenize_source(
                spec,
                name,
                run.tokenizer,
                run_directory(run).tokens,
                workers=run.data.workers or os.cpu_count() or 1,
                append_eos=run.data.append_eos,
                prepend_bos=run.data.prepend_bos,
                special_tokens=run.data.special_tokens,
                model_type=run.model.architecture,
                vocab_size=run.model.vocab_size,
                overwrite=overwrite,
                progress=show,
            )
        state = (
            "is there already" if report.unchanged else f"took {report.seconds:.1f} s"
        )
        say(
            f"{name}: {report.tokens:,} tokens of {report.counts.documents:,} "
            f"documents; {state}"
        )
        for line in report.remarks():
            say(f"  {escape(line)}")  # `[/INST]` in a text is no markup
        if name == HELD_OUT and (few := few_held_out(run)):
            say(f"  {few}")


def _tokenize_chat(
    run: RunConfig, name: str, spec: SourceSpec, *, overwrite: bool
) -> None:
    """Conversations: rendered, tokenised once, and each target given its weight."""
    with exclusive(store_prefix(run, name), f"alia-ctx tokenize --source {name}"):
        report = write_chat_store(
            spec,
            name,
            run.tokenizer,
            run_directory(run).tokens,
            max_tokens=longest_context(run),
            workers=run.data.workers or os.cpu_count() or 1,
            special_tokens=run.data.special_tokens,
            model_type=run.model.architecture,
            vocab_size=run.model.vocab_size,
            overwrite=overwrite,
        )
    state = "is there already" if report.unchanged else f"took {report.seconds:.1f} s"
    counts = report.counts
    say(
        f"{name}: {counts.tokens:,} tokens of {counts.conversations:,} conversations; {state}"
    )
    for line in report.remarks():
        say(f"  {escape(line)}")


def text_sources(run: RunConfig) -> dict[str, SourceSpec]:
    """All text of a run by name: what is trained on, and the held-out text if there is."""
    held_out = run.evaluation.held_out
    return {**run.data.sources, **({HELD_OUT: held_out} if held_out else {})}


def store_prefix(run: RunConfig, source: str) -> Path:
    """Where the token store of a source is, or will be."""
    store = text_sources(run)[source].store
    return Path(store) if store else run_directory(run).store(source)


def has_store(run: RunConfig, source: str) -> bool:
    prefix = store_prefix(run, source)
    return prefix.with_name(prefix.name + ".idx").is_file()


def open_store(run: RunConfig, source: str) -> TokenStore:
    """The token store of a source; DataError tells to tokenise first where there is none,
    and names a token id that the model has no row for.
    """
    if source == HELD_OUT and run.evaluation.held_out is None:
        raise DataError(
            "there is no held-out text; name some under evaluation.held_out"
        )
    prefix = store_prefix(run, source)
    if not has_store(run, source):
        raise DataError(f"{prefix}.idx: no such file; run `alia-ctx tokenize` first")
    store = TokenStore(prefix)
    store.check_vocabulary(run.model.vocab_size)
    return store


def open_stores(run: RunConfig, stage: str | None = None) -> dict[str, TokenStore]:
    """The stores of all sources, or of those that a stage draws from."""
    names = list(run.data.sources)
    if stage is not None:
        names = run.stage(stage).pack.drawn_from(names)
    return {name: open_store(run, name) for name in names}


def require_same_text(run: RunConfig) -> None:
    """DataError where a token store that is there was made from other text, with another
    tokenizer, or with other options than the configuration says now. Reads the
    fingerprints of all inputs and loads the tokenizer.
    """

    @functools.cache  # all sources have one; none is loaded for stores made elsewhere
    def encoder() -> TextEncoder:
        return TextEncoder(
            run.tokenizer,
            append_eos=run.data.append_eos,
            prepend_bos=run.data.prepend_bos,
            special_tokens=run.data.special_tokens,
            model_type=run.model.architecture,
        )

    for name, spec in text_sources(run).items():
        if not has_store(run, name):
            continue
        if spec.chat is not None:
            chat = functools.partial(_chat_encoder, run, spec)
            require_same_chat(spec, store_prefix(run, name), chat)
        else:
            require_same_source(spec, store_prefix(run, name), encoder)


def tokenizer_of_text(run: RunConfig) -> dict[str, str] | None:
    """What the stores of a run state of the tokenizer that they were made with; for those
    made elsewhere, the configuration's as it is now. None where it is not at hand.

    IdentityError where the configuration's is another by now.
    """
    now = tokenizer_statement(Path(run.tokenizer)) or None
    for name in run.data.sources:
        stated = open_store(run, name).sidecar.get(TOKENIZER)
        if isinstance(stated, dict):
            if now is not None:
                require_same(stated, now, f"the token store of {name}", _OTHER_FILES)
            now = stated
    return now


_OTHER_FILES = (
    "the files of `tokenizer` were changed since: restore them, or make the stores anew "
    "with `alia-ctx tokenize CONFIG --overwrite`"
)


def require_tokenizer_of(manifest: Manifest, store: TokenStore) -> None:
    """IdentityError where a store says that it was made with another tokenizer than the
    text that the model of `manifest` was trained on.
    """
    trained, stated = manifest.extra.get(TOKENIZER), store.sidecar.get(TOKENIZER)
    if trained is not None and stated is not None:
        require_same(
            trained,
            stated,
            f"the token store {store.prefix}, for stage {manifest.stage},",
            "make the store anew with the tokenizer of training, "
            "`alia-ctx tokenize CONFIG --overwrite`",
        )


def few_held_out(run: RunConfig) -> str | None:
    """That fewer held-out documents are long enough than evaluations shall use, if so;
    None too where the text is not tokenised yet.
    """
    if HELD_OUT not in text_sources(run) or not has_store(run, HELD_OUT):
        return None
    longest = longest_context(run)
    enough = int((open_store(run, HELD_OUT).lengths >= longest).sum())
    if enough >= run.evaluation.documents:
        return None
    return (
        f"evaluation.documents={run.evaluation.documents}: only {enough} held-out "
        f"documents have the {longest:,} tokens of the longest context; no more are used"
    )


def _chat_encoder(run: RunConfig, spec: SourceSpec) -> ChatEncoder:
    return chat_settings(
        spec,
        run.tokenizer,
        max_tokens=longest_context(run),
        special_tokens=run.data.special_tokens,
        model_type=run.model.architecture,
    ).encoder()


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
