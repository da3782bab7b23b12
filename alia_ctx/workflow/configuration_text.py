"""A proposed run as the YAML that a person goes on from: every choice with its reason."""

from __future__ import annotations

import dataclasses
import shlex
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alia_ctx.config.placeholders import PLACEHOLDER
from alia_ctx.config.run import EngineConfig, StageConfig
from alia_ctx.config.texts import value_written, written
from alia_ctx.planner import duration
from alia_ctx.planner.stage import StagePlan
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.machines import speeds_from
from alia_ctx.workflow.proposing import SMALL, STEP, Proposal, ProposedStage
from alia_ctx.workflow.rope_reasons import rope_reasons

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
    epochs: str | None = None,
) -> str:
    """The YAML of a proposal, to be written to `file`.

    delimiters: None where there is no tokenizer to say them. schema: where an editor finds
    the JSON schema. hub: the model's name on the hub, if it was given by that. text,
    held_out: inputs; without any there is a placeholder. epochs: how often the stages
    read the text, where that could be estimated.
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
        *_optimizer(proposal),
        "checkpoint: {every_updates: 50, keep_last: 2}",
        "",
        *_budget(proposal, epochs),
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
    speeds = textwrap.wrap(
        f"Both efficiencies that the planner takes are {speeds_from(cluster)}.", _WIDTH
    )
    return [
        f"# Planned for {who}; `alia-ctx plan --on` knows other machines.",
        *(f"# {line}" for line in speeds if proposal.gpus),
        f"cluster: {_flow(words)}",
        *_room(run.engine),
        f"engine: {_flow(_engine(run.engine))}",
    ]


def _engine(engine: EngineConfig) -> dict[str, Any]:
    """What is said of it: device and precision, and what is not as it is by default."""
    default = EngineConfig()
    changed = {
        f.name: getattr(engine, f.name)
        for f in dataclasses.fields(EngineConfig)
        if getattr(engine, f.name) != getattr(default, f.name)
    }
    return {"device": engine.device, "precision": engine.precision, **changed}


def room_note(engine: EngineConfig) -> str | None:
    """That the inputs of layers or their MLP are kept small, and why; None where not."""
    words = []
    if engine.offload_activations:
        words.append("the inputs of recomputed layers wait on the host")
    if engine.mlp_chunk_tokens is not None:
        words.append("their MLP is computed in chunks")
    if not words:
        return None
    return (
        f"without {'them' if len(words) > 1 else 'it'} a stage has no room on so few GPUs: "
        f"{', and '.join(words)} (docs/gpu.md)"
    )


def _room(engine: EngineConfig) -> list[str]:
    note = room_note(engine)
    if note is None:
        return []
    return [f"# {line}" for line in textwrap.wrap(f"W{note[1:]}.", _WIDTH)]


def _optimizer(proposal: Proposal) -> list[str]:
    if not proposal.is_small:
        return []
    decay = proposal.run.optimizer.weight_decay
    return [f"optimizer: {{weight_decay: {decay:g}}}   # as of SmolLM2-135M", ""]


def _budget(proposal: Proposal, epochs: str | None) -> list[str]:
    of_one = proposal.stages[0].stage
    size = f"{SMALL / 1e9:.1f} billion parameters"
    how = (
        [
            f"Below {size}, nearer to the first, also a rate that falls in a line, 5% of the "
            "updates to warm up, little decay of weights: what the first was trained with.",
        ]
        if proposal.is_small
        else [
            f"Above {size}, nearer to the second, a constant rate and the RoPE of each "
            "stage's own length, as the second. With the first a falling rate was taken, and "
            "YaRN with the last stage's factor from the first stage on was better than llama3 "
            "(docs/smollm2.md): not tried with a model of this size."
        ]
    )
    if epochs is not None:
        how.append(epochs[0].upper() + epochs[1:])
    lines = (w for line in how for w in textwrap.wrap(line, _WIDTH))
    return [
        "# Updates and learning rates lie between the two runs that this project knows, by "
        "the model's size:",
        "# SmolLM2-135M with 131,072 tokens and 4e-4 (docs/smollm2.md), ALIA-40b with "
        "4,194,304 and 9e-7 (its model card).",
        f"# {of_one.updates:,} updates a stage are a beginning: ALIA's stages have 477 and "
        "8,984. How much text there is decides.",
        *(f"# {line}" for line in lines),
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
            for reason in rope_reasons(proposal, proposed)
            for line in textwrap.wrap(reason, _WIDTH, subsequent_indent="  ")
        ),
        f"  rope: {_flow(rope)}",
        f"  tokens: {stage.tokens}",
        f"  update_tokens: {stage.update_tokens}   # {rows} "
        f"row{'s' if rows != 1 else ''} of {stage.context:,}",
        f"  learning_rate: {stage.learning_rate:.1e}",
        *_schedule(stage),
        "  pack: {policy: best_fit, long_docs: split}",
    ]
    choice = proposed.choice
    if choice.usable:
        doubt = f"; it {choice.reason}" if choice.reason else ""
        lines += [
            f"  # The planner's first: {_layout(proposed)}{doubt}.",
            "  layout: auto",
        ]
    else:
        lines += [
            f"  # Nothing better is known here, and it may not do: {choice.reason}.",
            "  layout: {tp: 1, cp: 1, pp: 1}",
        ]
    return [*lines, ""]


def _schedule(stage: StageConfig) -> list[str]:
    spec = stage.schedule
    if spec.type == "constant":
        return []
    return [f"  schedule: {{type: {spec.type}, warmup: {spec.warmup:g}}}"]


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
    return "{" + ", ".join(f"{k}: {value_written(v)}" for k, v in values.items()) + "}"
