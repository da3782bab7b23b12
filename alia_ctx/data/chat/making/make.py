"""Seeded conversations about functions -> JSON lines, each verified before it is written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import count as count_up
from pathlib import Path
from typing import Any

from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.making.callable import that_can_be_called
from alia_ctx.data.chat.making.drawing import Limits, NotMadeError
from alia_ctx.data.chat.making.endpoint import Endpoint, worded
from alia_ctx.data.chat.making.functions import FoundFunctions, Function
from alia_ctx.data.chat.making.grammar import KINDS, Grammar, Kind
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.left_out import Reason, counted
from alia_ctx.data.chat.making.partial import Attempt, Partial
from alia_ctx.data.chat.making.verify import fault_of
from alia_ctx.errors import DataError
from alia_ctx.files import (
    atomic_file,
    exclusive,
    file_checksum,
    parse_json,
    write_json,
)
from alia_ctx.identity import sealed

# So many in a row that cannot be made are no accident.
_PATIENCE = 200


@dataclass(frozen=True)
class MakeSpec:
    """How many conversations of which kinds and languages, each as often as the others.

    held_out_share: the share of functions that `part` divides: `train` are the others,
    `held_out` these; `all` both. Whether a function is held out depends on its name.
    """

    count: int = 1000
    seed: int = 0
    kinds: tuple[Kind, ...] = KINDS
    languages: tuple[str, ...] = tuple(LANGUAGES)
    part: str = "all"
    held_out_share: float = 0.2
    limits: Limits = field(default_factory=Limits)

    def of_part(self, functions: dict[str, Function]) -> list[Function]:
        """DataError where the part holds none."""
        chosen = [
            function
            for function in functions.values()
            if self.part == "all"
            or function.in_share(self.held_out_share) == (self.part == "held_out")
        ]
        if not chosen:
            raise DataError(
                f"none of {len(functions)} functions is in the part {self.part}; give "
                "more sources, or another --held-out-share"
            )
        return chosen


@dataclass
class MadeCounts:
    """What was written, by kind and by language, how often each of these was tried, and
    what was not written, by kind and reason. `functions` is how many it was made of,
    `left_out` what is none that can be called; `offered` and `called` are names.
    """

    written: int = 0
    functions: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    tried: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, Reason] = field(default_factory=dict)
    offered: dict[str, None] = field(default_factory=dict)  # in the order of the file
    called: set[str] = field(default_factory=set)

    @property
    def never_called(self) -> list[str]:
        """Functions that are offered, and called in no conversation."""
        return [name for name in self.offered if name not in self.called]

    def count_functions(self, record: str) -> None:
        """Count what a record offers and calls."""
        value = parse_json(record)
        for tool in parse_json(value.get("tools") or "[]"):
            self.offered[tool["function"]["name"]] = None
        for message in value["messages"]:
            for call in message.get("tool_calls") or []:
                self.called.add(call["function"]["name"])

    def to_json(self) -> dict[str, Any]:
        """For `OUTPUT.json`."""
        names = self.never_called
        return {
            "written": self.written,
            # asdict would make a Counter of pairs of a Counter.
            "kinds": dict(self.kinds),
            "languages": dict(self.languages),
            "tried": dict(self.tried),
            "refused": dict(self.refused),
            "never_called": {"count": len(names), "names": names},
            "left_out": {where: str(why) for where, why in self.left_out.items()},
        }

    def lacking(self, spec: MakeSpec) -> list[str]:
        """Kinds and languages that were asked for and never made, each with its cause."""
        lines = []
        untried = [
            name for name in (*spec.kinds, *spec.languages) if not self.tried[name]
        ]
        if untried:
            each = len(spec.kinds) * len(spec.languages)
            lines.append(
                f"no conversation of {', '.join(untried)}: a count of {spec.count:,} is too "
                f"small; one of each kind in each language makes {each:,}"
            )
        for kind in spec.kinds:
            if self.tried[kind] and not self.kinds[kind]:
                lines.append(f"no conversation of {kind}: {self.causes(kind)[0]}")
        for language in spec.languages:
            if self.tried[language] and not self.languages[language]:
                tried = self.tried[language]
                lines.append(f"no conversation of {language}: {tried:,} were refused")
        return lines

    def causes(self, kind: str) -> list[str]:
        """Why conversations of a kind were refused, the most frequent first."""
        start = f"{kind}: "
        return [
            refused.removeprefix(start)
            for refused, _ in self.refused.most_common()
            if refused.startswith(start)
        ]


def make_tool_data(
    found: FoundFunctions,
    spec: MakeSpec,
    output: Path,
    *,
    endpoint: Endpoint | None = None,
    progress: Callable[[int], None] | None = None,
) -> MadeCounts:
    """Write `spec.count` conversations to `output`, and `OUTPUT.json` beside it, which says
    what they were made from, and which functions were left out.

    By grammar alone the same functions, spec and seed give the same bytes. With an endpoint
    `OUTPUT.partial` has what is made so far, until the output is whole: a start that was
    stopped goes on behind it. Functions of which no call can be made are left out. Raises
    DataError where these are all, where the others do not serve for a kind (two are needed
    to offer one beside another), where `OUTPUT.partial` is of something else, and what the
    endpoint raises; the output is not written then.
    """
    known = that_can_be_called(found, spec.limits, spec.languages)
    if not known.functions:
        new = {w: why for w, why in known.left_out.items() if w not in found.left_out}
        told = "".join(f"\n  {line}" for line in counted(new))
        raise DataError(
            f"no call could be made of {len(found.functions):,} functions; give other "
            f"sources{told}"
        )
    functions = spec.of_part(known.functions)
    made_from: dict[str, Any] = {
        "functions": _fingerprint(functions),
        "spec": asdict(spec),
        "endpoint": None if endpoint is None else asdict(endpoint),
    }
    counts = MadeCounts(functions=len(functions), left_out=known.left_out)
    with ExitStack() as stack:
        partial = None
        if endpoint is not None:
            endpoint.address()  # before anything is written
            # A lock is of a directory; this one is of the file of that name.
            stack.enter_context(exclusive(output, "alia-ctx make-tool-data"))
            partial = stack.enter_context(Partial(output, made_from))
        stream = stack.enter_context(atomic_file(output))
        for record in _records(functions, spec, endpoint, counts, partial):
            stream.write(f"{record}\n".encode())
            if progress is not None:
                progress(counts.written)
    content = {**counts.to_json(), "checksum": file_checksum(output)}
    write_json(output.with_name(f"{output.name}.json"), sealed(made_from, content))
    if partial is not None:
        partial.remove()
    return counts


def _records(
    functions: Sequence[Function],
    spec: MakeSpec,
    endpoint: Endpoint | None,
    counts: MadeCounts,
    partial: Partial | None,
) -> Iterator[str]:
    """The records as JSON text, those that `partial` has first, and counts them."""
    grammar = Grammar(functions, spec.seed, spec.limits)
    pairs = [(kind, language) for kind in spec.kinds for language in spec.languages]
    there = [] if partial is None else partial.attempts
    failures = 0
    for index in count_up():
        if counts.written >= spec.count:
            return
        kind, language = pairs[index % len(pairs)]
        if index < len(there):
            attempt = there[index]
        else:
            attempt = _attempt(grammar, index, kind, language, endpoint, spec.seed)
            if partial is not None:
                partial.add(attempt)
        counts.tried.update((kind, language))
        if attempt.record is not None:
            failures = 0
            counts.written += 1
            counts.kinds[kind] += 1
            counts.languages[language] += 1
            counts.count_functions(attempt.record)
            yield attempt.record
            continue
        counts.refused[f"{kind}: {attempt.refused}"[:120]] += 1
        failures += 1
        if failures >= _PATIENCE:
            raise DataError(_given_up(failures, spec, counts, endpoint))


def _given_up(
    failures: int, spec: MakeSpec, counts: MadeCounts, endpoint: Endpoint | None
) -> str:
    """Of each kind that was never made what is most often the cause, or of all."""
    never = [k for k in spec.kinds if counts.tried[k] and not counts.kinds[k]]
    causes = [
        f"\n  {kind}: {counts.causes(kind)[0]}"
        for kind in never or spec.kinds
        if counts.causes(kind)
    ]
    other = "" if endpoint is None else ", or another model"
    return (
        f"{failures} conversations in a row could not be made; give more functions, or "
        f"fewer kinds{other}:{''.join(causes)}"
    )


def _attempt(
    grammar: Grammar,
    index: int,
    kind: Kind,
    language: str,
    endpoint: Endpoint | None,
    seed: int,
) -> Attempt:
    try:
        made = grammar.make(index, kind, language)
        if endpoint is not None:
            made = worded(made, endpoint, seed + index)
    except NotMadeError as error:
        return Attempt(index, None, str(error))
    if (fault := fault_of(made)) is not None:
        return Attempt(index, None, fault)
    about = {"kind": made.kind, "language": made.language, "index": index}
    return Attempt(index, write({**made.conversation.to_record(), **about}))


def _fingerprint(functions: Sequence[Function]) -> str:
    tools = json.dumps([function.tool() for function in functions], sort_keys=True)
    return hashlib.sha256(tools.encode()).hexdigest()[:32]
