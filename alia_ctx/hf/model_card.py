"""The README.md of an export: what the weights are, and what they were made from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import yaml

from alia_ctx.checkpoint.manifest import Manifest, StageLedger
from alia_ctx.checkpoint.trained_sources import TrainedSource, trained_sources
from alia_ctx.hf.rope_config import rope_parameters
from alia_ctx.spec.rope import RopeSpec

# What a base model's card says of it that still holds for a model made from it.
_INHERITED = ("license", "license_name", "license_link", "language")
# Of CommonMark: indented by four blanks it is code, and `#word` is no heading.
_FENCE = re.compile(r" {0,3}(`{3,}(?=[^`]*$)|~{3,})(.*)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?=[ \t]|$)")
_PICTURE = re.compile(r" {0,3}(!\[|<img\b)")
_NOT_STATED = "not stated"
_UNKNOWN = "not stated by the base model; to be completed by the author"


def front_matter(card: str) -> dict[str, Any]:
    """The YAML at the head of a model card, every scalar as it is written: YAML 1.1 would
    take the language `no` for false, and a version `1.10` for 1.1. Empty where there is
    none that can be read.
    """
    head, _, rest = card.removeprefix("\ufeff").partition("\n")
    block, end, _ = rest.partition("\n---")
    if head.strip() != "---" or not end:
        return {}
    try:
        facts = yaml.load(block, Loader=yaml.BaseLoader)
    except yaml.YAMLError:
        return {}
    return facts if isinstance(facts, dict) else {}


def model_card(
    manifest: Manifest,
    dtype: str,
    *,
    base: str | None,
    base_card: str = "",
    legal: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
    serving: Sequence[str] = (),
    evaluation: str = "",
) -> str:
    """A model card that states what the checkpoint and the base model's card know; its
    author adds the rest.

    Args:
        manifest: of the exported checkpoint.
        dtype: of the exported weights.
        base: name of the imported model, None where training began from random weights.
        base_card: its README.md.
        legal: names of the licence and notice files that travel along.
        notes: what whoever loads the model must know.
        serving: lines about how to serve it.
        evaluation: what was measured, in Markdown.
    """
    inherited = {
        name: value
        for name, value in front_matter(base_card).items()
        if name in _INHERITED and _is_stated(value)
    }
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **{name: inherited[name] for name in _INHERITED if name in inherited},
    }
    if "license" not in facts and legal:
        facts |= {"license": "other", "license_link": legal[0]}
    if base is not None:
        facts["base_model"] = base
    # Of the Hub's specification of model cards: `datasets` takes ids of the Hub, and
    # `license` is the model's; terms of the data have no place but the text.
    if datasets := _distinct(source.dataset for source in _all_sources(manifest)):
        facts["datasets"] = datasets
    model = manifest.model
    head = yaml.safe_dump(facts, sort_keys=False, allow_unicode=True).strip()
    rows = {
        "base model": base or "none: training began from random weights",
        "licence": facts.get("license", _UNKNOWN),
        "languages": _listed(facts.get("language")) or _UNKNOWN,
        "training data": _training_data(manifest),
        "layers": model.num_hidden_layers,
        "hidden size": model.hidden_size,
        "attention heads / KV heads": (
            f"{model.num_attention_heads} / {model.num_key_value_heads}"
        ),
        "vocabulary": f"{model.vocab_size:,}",
        "weights": f"{dtype}; {rounded_from(manifest)}",
        "RoPE": _rope_text(manifest.rope),
        "made from": _origin(manifest),
    }
    title = (
        f"# {model.architecture} model, {model.parameters():,} parameters, "
        f"{manifest.context:,} tokens of context"
    )
    return "\n".join(
        [
            *("---", head, "---", "", title, ""),
            "Written by alia-ctx. To be completed by the author: intended use, risks,",
            "and what is marked below.",
            "",
            *(f"**{note}**\n" for note in notes),
            *("| | |", "|---|---|"),
            *(f"| {name} | {value} |" for name, value in rows.items()),
            *("", "## Training ledger", ""),
            *_ledger_lines(manifest.ledger),
            *_data_lines(manifest),
            *(("", "## Evaluation", "", *_below(evaluation)) if evaluation else ()),
            *(("", "## Serving", "", *serving) if serving else ()),
            "",
        ]
    )


def _below(markdown: str) -> Iterator[str]:
    """Lines of a text of its own as those of a section: headings two levels down, as far as
    there are levels, and without pictures, which do not travel along. Code stays.
    """
    fence = ""
    for line in markdown.strip("\n").splitlines():
        before, fence = fence, fence_after(line, fence)
        if before or fence:
            yield line
        elif heading := _HEADING.match(line):
            yield "#" * min(6, 2 + len(heading[1])) + line[heading.end() :]
        elif not _PICTURE.match(line):
            yield line


def fence_after(line: str, fence: str) -> str:
    """What opened the code that Markdown is in behind a line, if any; `fence` before it."""
    mark = _FENCE.match(line)
    if mark is None:
        return fence
    if not fence:
        return mark[1]
    closes = mark[1].startswith(fence) and not mark[2].strip()
    return "" if closes else fence


def rounded_from(manifest: Manifest) -> str:
    """Of what precision the weights were that an export converts, and whether more
    precise ones were stepped in training.
    """
    precision = manifest.extra.get("precision")
    if not isinstance(precision, dict):
        given = manifest.extra.get("dtype")
        return f"from {given} weights" if given else "from weights as they were stored"
    main = precision.get("main_weights")
    rounded = main and main != precision.get("weights")
    stepped = f", rounded from the {main} ones of training" if rounded else ""
    return f"from {precision.get('weights')} weights{stepped}"


def _is_stated(value: Any) -> bool:
    """Whether a value of a model card is a text or texts, and no YAML null."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(v, str) and _is_stated(v) for v in value)
    return isinstance(value, str) and value.lower() not in ("", "null", "~")


def _all_sources(manifest: Manifest) -> list[TrainedSource]:
    """Of all stages that say it, the oldest first."""
    return [s for sources in trained_sources(manifest) for s in sources or ()]


def _distinct(values: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(value for value in values if value))


def _training_data(manifest: Manifest) -> str:
    names = _distinct(source.name for source in _all_sources(manifest))
    text = _cell(", ".join(names))
    if None in trained_sources(manifest):
        return f"{text}; of other stages {_NOT_STATED}" if text else _NOT_STATED
    return text or "none with alia-ctx"


def _data_lines(manifest: Manifest) -> Iterator[str]:
    """What each stage was trained on, as far as the checkpoint states it."""
    if not manifest.ledger:
        return
    yield from ("", "## Training data", "")
    yield "| stage | source | licence of the source | tokens | documents |"
    yield "|" + "---|" * 5
    for entry, sources in zip(manifest.ledger, trained_sources(manifest), strict=True):
        if sources is None:
            unknown = [entry.stage, _NOT_STATED, _NOT_STATED, f"{entry.tokens:,}"]
            yield f"| {' | '.join(map(_cell, unknown))} | |"
        for source in sources or ():
            name = source.name
            if source.dataset:
                url = f"https://huggingface.co/datasets/{source.dataset}"
                name = f"{name} ([{source.dataset}]({url}))"
            cells = [entry.stage, name, source.licence or _NOT_STATED, *_counts(source)]
            yield f"| {' | '.join(map(_cell, cells))} |"
    yield ""
    yield (
        "Licences are those that the publishers of the sources state. A document counts "
        "each time that it was begun, so again in each epoch."
    )


def _counts(source: TrainedSource) -> tuple[str, str]:
    if source.tokens is None or source.documents is None:
        return _NOT_STATED, _NOT_STATED
    unit = "conversations" if source.of_conversations else "documents"
    if source.documents == 1:
        unit = unit.removesuffix("s")
    return f"{source.tokens:,}", f"{source.documents:,} {unit}"


def _cell(text: str) -> str:
    """Text that stays in its cell of a table."""
    return " ".join(text.split()).replace("|", r"\|")


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value or "")


def _origin(manifest: Manifest) -> str:
    text = f"checkpoint of stage {manifest.stage}, update {manifest.update:,}"
    run = manifest.config.get("name")
    return f"{text}, run {run}" if run else text


def _ledger_lines(ledger: tuple[StageLedger, ...]) -> Iterator[str]:
    if not ledger:
        yield "No training with alia-ctx: the weights are as they were imported."
        return
    yield (
        "| stage | context | RoPE | learning rate | updates (skipped) | tokens | "
        "predicted tokens | plan |"
    )
    yield "|" + "---|" * 8
    for e in ledger:
        yield (
            f"| {e.stage} | {e.context:,} | {_rope_text(e.rope)} | {e.learning_rate:g} | "
            f"{e.updates:,} ({e.skipped_updates:,}) | {e.tokens:,} | "
            f"{e.predicted_tokens:,} | {e.plan or 'none'} |"
        )
    yield ""
    yield "Tokens are real ones; fill at the end of a row is not counted."


def _rope_text(rope: RopeSpec) -> str:
    parameters = rope_parameters(rope)
    original = rope.original_max_position_embeddings
    if original is not None:
        parameters.setdefault("original_max_position_embeddings", original)
    rest = [
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in parameters.items()
        if name != "rope_type"
    ]
    return ", ".join([rope.type, f"theta {rope.theta:g}", *rest])
