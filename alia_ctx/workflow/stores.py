"""Text -> token stores of a run: making them, opening them, and what they were made from."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.markup import escape

from alia_ctx.checkpoint import Manifest
from alia_ctx.config.run import HELD_OUT, RunConfig
from alia_ctx.data.chat import (
    ChatEncoder,
    chat_settings,
    require_same_chat,
    require_same_chat_options,
    write_chat_store,
)
from alia_ctx.data.documents import SourceSpec, find_inputs
from alia_ctx.data.tokens import (
    TOKENIZER,
    TextEncoder,
    TokenizeProgress,
    TokenStore,
    known_tokenizer,
    making_anew,
    require_same_source,
    require_written,
    tokenize_source,
)
from alia_ctx.data.tokens import require_same_options as require_options_of_source
from alia_ctx.errors import ConfigError, DataError, Problem
from alia_ctx.files import exclusive
from alia_ctx.identity import require_same
from alia_ctx.progress import Meter, meter, say
from alia_ctx.workflow.chain import (
    configured_tokenizer,
    longest_context,
    run_directory,
)


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


def not_tokenised(run: RunConfig, names: Iterable[str]) -> list[str]:
    """Those of `names` of which `tokenize` has still to make a store: no source that names
    one made elsewhere, and none that the run does not have.
    """
    known = text_sources(run)
    return [
        name
        for name in names
        if name in known and not known[name].store and not has_store(run, name)
    ]


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


def require_same_text(run: RunConfig, names: Sequence[str] | None = None) -> None:
    """DataError where a token store that is there was made from other text, with another
    tokenizer, or with other options than the configuration says now, or its files are
    others than were written. Reads the fingerprints of all inputs and loads the tokenizer.

    Args:
        names: of the sources that are looked at; all, the held-out text among them.
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
        if not has_store(run, name) or (names is not None and name not in names):
            continue
        prefix = store_prefix(run, name)
        require_written(prefix, making_anew(spec, name))
        if spec.chat is not None:
            chat = functools.partial(_chat_encoder, run, spec)
            require_same_chat(spec, prefix, chat)
        else:
            require_same_source(spec, prefix, encoder, name)


def require_same_held_out(run: RunConfig) -> None:
    """`require_same_text` of the held-out text, as far as its inputs are at hand: models
    are measured, and trained, also where none of the text lies.
    """
    spec = run.evaluation.held_out
    if spec is None or not has_store(run, HELD_OUT):
        return
    if not spec.store:
        try:
            find_inputs(spec.inputs)
        except (DataError, OSError):
            return
    require_same_text(run, [HELD_OUT])


def require_same_options(run: RunConfig, stage: str) -> None:
    """DataError where a store that the stage draws from says that it was made with other
    options than the configuration's. Quick: neither inputs nor tokenizer are read.
    """
    options = run.data
    for name in run.stage(stage).pack.drawn_from(list(run.data.sources)):
        spec, prefix = run.data.sources[name], store_prefix(run, name)
        if spec.chat is not None:
            require_same_chat_options(
                spec,
                prefix,
                max_tokens=longest_context(run),
                special_tokens=options.special_tokens,
            )
        else:
            require_options_of_source(
                spec,
                prefix,
                append_eos=options.append_eos,
                prepend_bos=options.prepend_bos,
                special_tokens=options.special_tokens,
                name=name,
            )


def tokenizer_of_text(run: RunConfig, stage: str) -> dict[str, str] | None:
    """What the stores that a stage draws from state of the tokenizer that they were made
    with; None where none of them does, as those made elsewhere: whose tokens these are
    is not known.

    IdentityError where the configuration's is another by now.
    """
    now = configured_tokenizer(run)
    text: dict[str, str] | None = None
    for name, store in open_stores(run, stage).items():
        stated = store.sidecar.get(TOKENIZER)
        if isinstance(stated, dict):
            for other in (text, now):
                if other is not None:
                    what = f"the token store of {name}"
                    remedy = making_anew(run.data.sources[name], name)
                    require_same(stated, other, what, f"{_OTHER_FILES}, or {remedy}")
            text = stated
    return text


_OTHER_FILES = "the files of `tokenizer` were changed since: restore them"


def require_tokenizer_of(manifest: Manifest, store: TokenStore) -> None:
    """IdentityError where a store says that it was made with another tokenizer than the
    text that the model of `manifest` was trained on.
    """
    trained, stated = known_tokenizer(manifest.extra), store.sidecar.get(TOKENIZER)
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
