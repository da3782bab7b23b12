"""What stands below the card's table: the data, what was asked of it, and what of a model's
answers a reader has to know. Nothing of it is a place on a disk, as it is published.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alia_ctx.evaluation.function_calling.release import RELEASE, are_the_benchmarks
from alia_ctx.evaluation.function_calling.scores import MULTI_TURN, NO_ANSWER
from alia_ctx.evaluation.model_names import names_apart

LEGEND = "[ ]: 95% intervals"
# ORGANISATION/NAME is a model's name, whatever has more parts a place.
_PATH = re.compile(r"[/~].*|\.{1,2}/.*|(?:[^/]+/){2,}.*", re.DOTALL)


def public_names(names: Iterable[str]) -> dict[str, str]:
    """Names of models as others may read them: of a path, by which a served model is
    called, the last part, and the number of those that have it already.
    """
    told = [*names]
    last = [name.rstrip("/").rpartition("/")[2] for name in told]
    plain = [
        end if end and _PATH.fullmatch(name) else name
        for name, end in zip(told, last, strict=True)
    ]
    return dict(zip(told, names_apart(plain), strict=True))


def call_remarks(document: Mapping[str, Any]) -> list[str]:
    """Of what `evaluate-calls --json` prints, or of a `scores.json`: a sentence each, as far
    as they say it. Files of earlier releases lack why questions have no answer.
    """
    document = _whole(document)
    shown = public_names(document["models"])
    lines = [*_of_data(document)]
    for name, model in document["models"].items():
        for line in _of_model(model):
            # What a server says of a question may name its model.
            said = line.replace(name, shown[name]) if name != shown[name] else line
            lines.append(f"{shown[name]}: {said}")
    return lines


def suite_name(document: Mapping[str, Any]) -> str:
    """What a table is of: of a `document` as `call_remarks` takes it."""
    return "Function calls" if _whole(document).get("own") else "BFCL"


def _whole(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """A `scores.json` in the form of what `--json` prints, as far as it says that."""
    if "content" not in document:
        return document
    made_from, content = document.get("made_from", {}), document["content"]
    whole: dict[str, Any] = {"models": {content["model"]: content}}
    if {"data", "cases"} <= made_from.keys():
        whole["data"] = made_from["data"]["version"]
        whole["own"] = not are_the_benchmarks(made_from["data"])
        whole["cases"] = len(made_from["cases"])
    return whole


def _of_data(document: Mapping[str, Any]) -> Iterator[str]:
    if "data" in document and "cases" in document:
        limit = document.get("limit")
        part = f", the first {limit} of each category" if limit else ""
        elsewhere = ""
        asked = document.get("sizes", MULTI_TURN)  # earlier releases do not say
        scored = {
            key for model in document["models"].values() for key in model["categories"]
        }
        if scored & set(MULTI_TURN) and not set(asked) & set(MULTI_TURN):
            elsewhere = "; conversations of several turns as they were scored elsewhere"
        yield f"data: {_origin(document)}, {document['cases']} cases{part}{elsewhere}"
        if document.get("own"):
            yield "the card's figures are of BFCL's questions, which these are not"


def _origin(document: Mapping[str, Any]) -> str:
    version = f"BFCL {document['data']}"
    if not document.get("own"):
        return version
    return (
        f"other questions than those of bfcl-eval {RELEASE}, in the form of {version}"
    )


def _calls_nothing(categories: Mapping[str, Any]) -> bool:
    """Whether no answer has a call, though calls were asked for."""
    reasons: Counter[str] = Counter()
    right = 0
    for name, category in categories.items():
        if name in MULTI_TURN:
            continue
        if "irrelevance" not in name:
            right += category["right"]
        reasons.update(category.get("wrong", {}))
    return not right and reasons.keys() - {NO_ANSWER} == {"no_call"}


def _of_model(model: Mapping[str, Any]) -> Iterator[str]:
    reasons: Counter[str] = Counter()
    for category in model["categories"].values():
        reasons.update(category.get("wrong", {}))
    most_first = sorted(reasons.items(), key=lambda pair: (-pair[1], pair[0]))
    wrong = ", ".join(f"{reason} {count}" for reason, count in most_first)
    template = str(model.get("template", "not stated")).rpartition("/")[2]
    yield f"template {template}; wrong: {wrong or 'nothing'}"
    yield from model.get("notes", ())
    if _calls_nothing(model["categories"]):
        yield (
            "no answer has a call that is read; where it writes calls in another form "
            "than those of the documents, these figures are no judgement of it"
        )
    if unanswered := model.get("unanswered"):
        count = sum(unanswered.values())
        where = ", ".join(f"{key} {n}" for key, n in unanswered.items())
        fault = f"; the first: {model['fault']}" if model.get("fault") else ""
        yield (
            f"{count} questions were not answered, as they do not fit, or the template or "
            "the server refuses them or fails with them, and count as wrong "
            f"({where}){fault}"
        )
    if model.get("cut"):
        yield (
            f"{model['cut']} answers were cut, {model['no_room']} of them by the end of "
            "the context and the others at --max-new-tokens"
        )
