"""A proposed run as the YAML that a person goes on from: every choice with its reason."""

from __future__ import annotations

import dataclasses
import math
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.config.placeholders import PLACEHOLDER
from alia_ctx.config.run import StageConfig
from alia_ctx.config.texts import written
from alia_ctx.planner import RopeFigures, duration
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.workflow.proposing import STEP, Proposal, ProposedStage

_WIDTH = 104  # of a comment
_READS = ".txt .md .rst .json .jsonl .parquet, the first five also .gz .zst .xz .bz2"


@dataclass(frozen=True)
class Delimiters:
    """What the base's tokenizer puts around a document.

    stated: the tokens that the model's own files say end a text, where the tokenizer's
    is none of them.
    """

    bos: bool
    eos: bool
    stated: str | None = None


def configuration_text(
    proposal: Proposal,
    delimiters: Delimiters | None,
    *,
    file: str,
    schema: str,
    hub: str | None,
    text: Sequence[str] = (),
    held_out: Sequence[str] = (),
) -> str:
    """The YAML of a proposal, to be written to `file`.

    delimiters: None where there is no tokenizer to say them. schema: where an editor finds
    the JSON schema. hub: the model's name on the hub, if it was given by that. text,
    held_out: inputs; without any there is a placeholder.
    """
    run, base = proposal.run, proposal.base
    lengths = [base.context, *(s.stage.context for s in proposal.stages)]
    steps = " -> ".join(f"{n:,}" for n in lengths)
    model = base.model
    imported, file = shlex.quote(hub or str(proposal.directory)), shlex.quote(file)
    tokenizer = PLACEHOLDER if delimiters is None else str(proposal.directory)
    lines = [
        f"# yaml-language-server: $schema={schema}",
        f"# {hub or proposal.directory.name}: {steps} tokens of context. Written by "
        "`alia-ctx init`; all of it is yours to change.",
        "#",
        f"#   alia-ctx check {file}    what is left to fill in ({PLACEHOLDER}), and every "
        "mistake",
        f"#   alia-ctx plan {file}     memory, time and layouts, before anything is queued",
        f"#   alia-ctx rope {file}     the RoPE of each stage beside the other choices",
        f"#   alia-ctx run {file}      every step on this machine: import, tokenize, pack, "
        "train, evaluate, report, export",
        "#",
        "# docs/configuration.md has every key, docs/your-own-model.md the way from here.",
        f"name: {written(run.name)}",
        f"output: {written(run.output)}",
        "",
        "# The base. `run` imports it where it is not yet; by hand:",
        f"#   alia-ctx import-hf {imported} {run.output}/base",
        f"hf_base: {written(str(proposal.directory))}",
        f"tokenizer: {written(tokenizer)}",
        f"# {model.parameters():,} parameters: {model.num_hidden_layers} layers of "
        f"{model.hidden_size:,}, {model.num_attention_heads} heads of {model.head_dim} "
        f"({model.num_key_value_heads} for keys and values), vocabulary "
        f"{model.vocab_size:,}.",
        "model: from_checkpoint",
        "",
        *_data(proposal, delimiters, text, held_out),
        "",
        *_machine(proposal),
        "",
        "checkpoint: {every_updates: 50, keep_last: 2}",
        "",
        *_budget(proposal),
        "stages:",
    ]
    for stage in proposal.stages:
        lines += [f"  {line}".rstrip() for line in _stage(proposal, stage)]
    return "\n".join(lines) + "\n"


def _data(
    proposal: Proposal,
    delimiters: Delimiters | None,
    text: Sequence[str],
    held_out: Sequence[str],
) -> list[str]:
    last = proposal.stages[-1].stage.context
    return [
        "data:",
        *_around(delimiters),
        "  sources:",
        "    # As many sources as you like, by names of yours; `pack.weights` of a stage "
        "says the share of each.",
        "    text:",
        f"      # Files, directories and globs: {_READS}.",
        "      # Far context is learned from documents longer than the base's context.",
        f"      inputs: {_inputs(text)}",
        "",
        "evaluation:",
        "  held_out:",
        "    # Text of the same kind that is in no source; some documents of "
        f"{last:,} tokens or more.",
        f"    inputs: {_inputs(held_out)}",
        "  documents: 64",
        "  measure: [positions, blocks]   # also longppl, retrieval, passkey, leak",
    ]


def _around(delimiters: Delimiters | None) -> list[str]:
    """What stands before and after a document, as far as a tokenizer says it."""
    if delimiters is None:
        return [
            "  # The base's directory has no tokenizer, so it is not known what stood around "
            "a text when it was trained.",
            "  # true or false each, as then: its own documentation says it, or the "
            "tokenizer that it was trained with.",
            f"  append_eos: {written(PLACEHOLDER)}    # an end-of-text token after a document",
            f"  prepend_bos: {written(PLACEHOLDER)}   # a begin-of-text token before it",
        ]
    begins = (
        "puts a begin-of-text token before" if delimiters.bos else "puts none before"
    )
    return [
        *_end(delimiters),
        f"  prepend_bos: {_flag(delimiters.bos)}    # the base's tokenizer {begins} a text",
    ]


def _end(delimiters: Delimiters) -> list[str]:
    """What stands after a document; open where the model has an end that its tokenizer
    does not name: false would train documents that never end.
    """
    stated = delimiters.stated
    if stated is None or delimiters.eos:
        ends = "an end" if delimiters.eos else "no end"
        named = f", and is taken; {stated} by the model's own files" if stated else ""
        line = f"  append_eos: {_flag(delimiters.eos)}     "
        return [f"{line}# the tokenizer has {ends}-of-text token{named}"]
    return [
        f"  # A text ends with {stated}, the model's own files say; its tokenizer names no "
        "end.",
        "  # Name that token `eos_token` in its tokenizer_config.json and write true; false "
        "trains documents without an end.",
        f"  append_eos: {written(PLACEHOLDER)}    # an end-of-text token after a document",
    ]


def _inputs(paths: Sequence[str]) -> str:
    return "[" + ", ".join(map(written, paths or [PLACEHOLDER])) + "]"


def _machine(proposal: Proposal) -> list[str]:
    run, cluster = proposal.run, proposal.run.cluster
    changed = {
        f.name: getattr(cluster, f.name)
        for f in dataclasses.fields(ClusterSpec)
        if getattr(cluster, f.name) != f.default
    }
    words = {
        "nodes": cluster.nodes,
        "ranks_per_node": cluster.ranks_per_node,
        **changed,
    }
    who = (
        f"{proposal.gpus} GPU{'s' if proposal.gpus != 1 else ''} of {proposal.machine}"
        if proposal.gpus
        else proposal.machine
    )
    return [
        f"# Planned for {who}; `alia-ctx plan --on` knows other machines.",
        f"cluster: {_flow(words)}",
        f"engine: {{device: {run.engine.device}, precision: {run.engine.precision}}}",
    ]


def _budget(proposal: Proposal) -> list[str]:
    of_one = proposal.stages[0].stage
    return [
        "# Updates and learning rates lie between the two runs that this project knows, by "
        "the model's size:",
        "# SmolLM2-135M with 131,072 tokens and 4e-4 (docs/smollm2.md), ALIA-40b with "
        "4,194,304 and 9e-7 (its model card).",
        f"# {of_one.updates:,} updates a stage are a beginning: ALIA's stages have 477 and "
        "8,984. How much text there is decides.",
    ]


def _stage(proposal: Proposal, proposed: ProposedStage) -> list[str]:
    stage, base = proposed.stage, proposal.base
    before = base.context
    for earlier in proposal.stages[: proposal.stages.index(proposed)]:
        before = earlier.stage.context
    rope = {k: v for k, v in dataclasses.asdict(stage.rope).items() if v is not None}
    rows = stage.rows_per_update
    lines = [
        f"# x{stage.context / before:g} of {before:,}; "
        f"at most x{STEP} at a time, as the card does.",
        f"{proposed.name}:",
        f"  init_from: {written(stage.init_from)}",
        f"  context: {stage.context}",
        *(
            f"  # {line}"
            for reason in _rope_reasons(proposal, proposed)
            for line in textwrap.wrap(reason, _WIDTH, subsequent_indent="  ")
        ),
        f"  rope: {_flow(rope)}",
        f"  tokens: {stage.tokens}",
        f"  update_tokens: {stage.update_tokens}   # {rows} "
        f"row{'s' if rows != 1 else ''} of {stage.context:,}",
        f"  learning_rate: {stage.learning_rate:.1e}",
        "  pack: {policy: best_fit, long_docs: split}",
    ]
    choice = proposed.choice
    if choice.usable:
        lines += [
            f"  # The planner's first: {_layout(proposed)}.",
            "  layout: auto",
        ]
    else:
        lines += [
            f"  # Nothing better is known here, and it may not do: {choice.reason}.",
            "  layout: {tp: 1, cp: 1, pp: 1}",
        ]
    return [*lines, ""]


def _rope_reasons(proposal: Proposal, proposed: ProposedStage) -> list[str]:
    base, stage = proposal.base, proposed.stage
    rope = stage.rope
    if base.rope.type == "default":
        lines = [
            f"RoPE: the base has turned its pairs through {base.context:,} tokens. "
            f"{_sentence(proposed.figures['unchanged'])}",
            f"{rope.type} with factor {rope.factor:g} = {stage.context:,} / "
            f"{base.context:,} "
            + (
                "is what ALIA-40b and Llama 3.1 were extended with:"
                if rope.type == "llama3"
                else "leaves fewer of them:"
            ),
        ]
    else:
        lines = [
            f"RoPE: the base is scaled already ({base.rope.type}, factor "
            f"{base.rope.factor:g}). {_what_was_done(proposal, stage)}:",
            *_how_published(proposal, stage.context),
        ]
    others = [f for label, f in proposed.figures.items() if label != "unchanged"]
    return [*lines, *(f"  {f.name}: {_sentence(f)}" for f in others)]


def _what_was_done(proposal: Proposal, stage: StageConfig) -> str:
    """How the RoPE of a stage came from that of a base that is scaled already."""
    base, rope, context = proposal.base.rope, stage.rope, stage.context
    if base.type == "dynamic":
        by = "dynamic stretches by the length of the row itself, and is left as it is"
        if rope.type != "dynamic":
            by = (
                "dynamic, left as it is, stretches by the length of the row itself; "
                f"{rope.type} with factor {_scalar(rope.factor)} turns fewer pairs "
                "further than they were trained"
            )
        return by
    before, reads = base.require("factor"), proposal.reads.tokens
    kept, now = "It keeps its type", rope.require("factor")
    if now == before:
        return f"{kept} and its factor, which reaches {context:,} tokens"
    further = f"{before:g} x {context:,} / {reads:,}"
    if math.isclose(now, before * context / reads):
        grows = f"{context / reads:g} times as much, as the context grows"
        return f"{kept}; the factor becomes {_scalar(now)} = {further}, {grows}"
    original = rope.original_max_position_embeddings or reads
    return (
        f"{kept}; the factor becomes {_scalar(now)} = {context:,} / {original:,}, to reach "
        f"the context, which {further} would not: its own reaches "
        f"{round(original * before):,} of its {reads:,} tokens"
    )


def _how_published(proposal: Proposal, context: int) -> list[str]:
    """Of a base whose length may be understood in two ways, both."""
    base, reads = proposal.base, proposal.reads
    if reads.other is None or base.rope.factor is None:
        return []
    otherwise = base.rope.factor * max(1.0, context / reads.other)
    return [
        f"Not known: whether the {base.context:,} tokens of its config.json are from before "
        f"its factor, or what it reads with it. Taken here: it reads {reads.tokens:,}; the "
        f"other reading is {reads.other:,}. In that case write factor: {_scalar(otherwise)}."
    ]


def _sentence(figures: RopeFigures) -> str:
    reach = figures.first_negative
    reaches = "it reaches them all" if reach is None else f"it reaches {reach:,}"
    untrained = (
        f"{figures.beyond_training} of {figures.pairs} pairs would turn up to "
        f"x{figures.furthest:.2f} as far as they were trained"
        if figures.beyond_training
        else "no pair turns further than it was trained"
    )
    return f"At {figures.context:,} {untrained}; {reaches} by the heuristic."


def _layout(proposed: ProposedStage) -> str:
    choice, plan = proposed.choice, proposed.choice.plan
    layout = choice.layout
    return (
        f"tp={layout.tp} cp={layout.cp} pp={layout.pp} dp={plan.work.data_parallel}, "
        f"recompute {choice.recompute}: {_needs(plan)}"
    )


def _needs(plan: StagePlan) -> str:
    return (
        f"{plan.fullest.total:.1f} of {plan.cluster.memory_gib:g} GiB, "
        f"{duration(plan.timing.total)} an update, {duration(plan.seconds)} in all "
        "(estimates)"
    )


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _flow(values: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{k}: {_scalar(v)}" for k, v in values.items()) + "}"


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return _flag(value)
    if isinstance(value, float):
        short = f"{value:.12g}"
        return short if float(short) == value else repr(value)
    return str(value) if isinstance(value, int) else written(str(value))
