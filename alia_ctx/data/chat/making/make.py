"""Seeded conversations about functions -> JSON lines, each verified before it is written."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alia_ctx.data.chat.json_text import write
from alia_ctx.data.chat.making.endpoint import Endpoint, worded
from alia_ctx.data.chat.making.functions import FoundFunctions, Function
from alia_ctx.data.chat.making.grammar import (
    KINDS,
    Grammar,
    Kind,
    Limits,
    MadeConversation,
)
from alia_ctx.data.chat.making.languages import LANGUAGES
from alia_ctx.data.chat.making.verify import fault_of
from alia_ctx.errors import DataError
from alia_ctx.files import atomic_file, file_checksum, write_json
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
    """What was written, by kind and by language, and what was not, by reason."""

    written: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    def lacking(self, spec: MakeSpec, functions: int) -> list[str]:
        """Kinds that were asked for and never made, in words."""
        names = [kind for kind in spec.kinds if not self.kinds[kind]]
        few = functions < 2 and {"multiple", "irrelevant"} & set(names)
        why = "; two functions are needed to offer others" if few else ""
        return [f"no conversation of the kind {', '.join(names)}{why}"] if names else []


def make_tool_data(
    found: FoundFunctions,
    spec: MakeSpec,
    output: Path,
    *,
    endpoint: Endpoint | None = None,
    progress: Callable[[int], None] | None = None,
) -> MadeCounts:
    """Write `spec.count` conversations to `output`, and `OUTPUT.json` beside it, which says
    what they were made from.

    By grammar alone the same functions, spec and seed give the same bytes. Raises
    DataError where the functions do not serve for a kind (two are needed to offer more
    than one), and what the endpoint raises; nothing is written then.
    """
    functions = spec.of_part(found.functions)
    counts = MadeCounts()
    with atomic_file(output) as stream:
        for index, made in _conversations(functions, spec, endpoint, counts):
            about = {"kind": made.kind, "language": made.language, "index": index}
            record = {**made.conversation.to_record(), **about}
            stream.write(f"{write(record)}\n".encode())
            counts.written += 1
            counts.kinds[made.kind] += 1
            counts.languages[made.language] += 1
            if progress is not None:
                progress(counts.written)
    made_from: dict[str, Any] = {
        "functions": _fingerprint(functions),
        "spec": asdict(spec),
        "endpoint": None if endpoint is None else asdict(endpoint),
    }
    # asdict would make a Counter of pairs of a Counter.
    told = dict(vars(counts))
    content = {**told, "checksum": file_checksum(output)}
    write_json(output.with_name(f"{output.name}.json"), sealed(made_from, content))
    return counts


def _conversations(
    functions: Sequence[Function],
    spec: MakeSpec,
    endpoint: Endpoint | None,
    counts: MadeCounts,
) -> Iterator[tuple[int, MadeConversation]]:
    grammar = Grammar(functions, spec.seed, spec.limits)
    pairs = [(kind, language) for kind in spec.kinds for language in spec.languages]
    index, failures = 0, 0
    while counts.written < spec.count:
        kind, language = pairs[index % len(pairs)]
        made = grammar.make(index, kind, language)
        fault = "nothing could be made" if made is None else None
        if made is not None and endpoint is not None:
            made = worded(made, endpoint, spec.seed + index)
            fault = "the model does not say the arguments" if made is None else None
        fault = fault or (fault_of(made) if made is not None else None)
        if made is None or fault is not None:
            reason = (fault or "").split(": ")[-1] if made is None else str(fault)
            counts.refused[f"{kind}: {reason}"[:120]] += 1
            failures += 1
            if failures >= _PATIENCE:
                raise DataError(
                    f"{failures} conversations in a row could not be made "
                    f"({counts.refused.most_common(1)[0][0]}); give more functions, "
                    "fewer kinds, or another model"
                )
        else:
            failures = 0
            yield index, made
        index += 1


def _fingerprint(functions: Sequence[Function]) -> str:
    tools = json.dumps([function.tool() for function in functions], sort_keys=True)
    return hashlib.sha256(tools.encode()).hexdigest()[:32]
