"""Documents in which a code is told once and needed again later, made from a seed.

In the text of the installed packages, what is said once and needed a few thousand tokens
later is rare: too small a school for a small model to learn to look far back. So these
documents are mixed in. They have the sentences of the retrieval tasks that the demo is
measured by, and codes, keys, places and lengths of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np

from alia_ctx.errors import DataError
from alia_ctx.evaluation.retrieval import LANGUAGES
from alia_ctx.files import atomic_file

DIGITS = 3  # of a code; configs/runs/tiny.yaml asks for as many
_WORDS = LANGUAGES["en"]
_NOISE = tuple(f"{sentence}\n" for sentence in _WORDS.noise)
_HEAD = f"{_WORDS.instruction}\n"
# What the demo's tokenizer makes a token of, near enough: words, signs, pairs of digits.
_TOKEN = re.compile(r"\d{1,2}|[^\W\d]+|[^\w\s]|\n| (?=\d)")


@dataclass(frozen=True)
class RetrievalSource:
    """Documents for one context, a file of the demo's text.

    shortest, longest: tokens of a document, about; drawn log-uniformly from there.
    again: how often the code is needed after it was told, one of these.
    total: tokens of all documents.
    """

    name: str
    shortest: int
    longest: int
    again: tuple[int, ...]
    total: int


# A document of a source fits whole into a row of the context that it is made for.
TRAINED = (
    RetrievalSource("retrieval_128", 30, 118, (1, 2, 4, 6), 1_200_000),
    RetrievalSource("retrieval_1024", 200, 960, (1, 2, 4, 6), 500_000),
    RetrievalSource("retrieval_5120", 2_400, 5_050, (1, 1, 4, 20), 700_000),
)
HELD_OUT = RetrievalSource("heldout_retrieval", 5_400, 5_600, (30,), 115_000)


def write_retrieval_documents(folder: str | Path, seed: int = 1) -> dict[str, Path]:
    """Write NAME.jsonl in `folder` for each of TRAINED and HELD_OUT; their paths by name.

    No held-out document tells a code of a key that a trained one tells of it. Equal
    seeds give equal files. DataError where they cannot be written.
    """
    folder = Path(folder)
    told: set[tuple[str, str]] = set()
    files = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, source in enumerate((*TRAINED, HELD_OUT)):
            random = np.random.default_rng([seed, number])
            avoided = frozenset(told) if source is HELD_OUT else frozenset()
            files[source.name] = folder / f"{source.name}.jsonl"
            with atomic_file(files[source.name]) as stream:
                for at, text in enumerate(_documents(source, random, told, avoided)):
                    line = {"id": f"{source.name}/{at}", "text": text}
                    stream.write(f"{json.dumps(line)}\n".encode())
    except OSError as error:
        raise DataError(
            f"cannot write the retrieval documents in {folder}: "
            f"{error.strerror or error}"
        ) from error
    return files


def _documents(
    source: RetrievalSource,
    random: np.random.Generator,
    told: set[tuple[str, str]],
    avoided: frozenset[tuple[str, str]],
) -> Iterator[str]:
    """Documents of a source until it has its tokens; what they tell is added to `told`."""
    done = 0
    while done < source.total:
        code = _code(random)
        while code in avoided:
            code = _code(random)
        told.add(code)
        low, high = np.log([source.shortest, source.longest])
        tokens = int(np.exp(random.uniform(low, high)))
        text = _document(*code, tokens, int(random.choice(source.again)), random)
        done += size(text)
        yield text


def _code(random: np.random.Generator) -> tuple[str, str]:
    """A key and its code."""
    key = f"{random.choice(_WORDS.adjectives)}-{random.choice(_WORDS.nouns)}"
    return key, str(random.integers(10 ** (DIGITS - 1), 10**DIGITS))


def size(text: str) -> int:
    """About how many tokens the demo's tokenizer makes of a text."""
    return len(_TOKEN.findall(text))


def _document(
    key: str, code: str, tokens: int, again: int, random: np.random.Generator
) -> str:
    """Noise in which a code is told, and needed `again` times: told once more, or asked for.

    A document of one question has it at its end, wherever the code was told; one of
    several has told it early and needs it all along, the last time at its end.
    """
    told = f"{_WORDS.needle.format(key=key, value=code)}\n"
    asked = (
        f"\n\n{_WORDS.needle_question.format(key=key)}\n"
        f"{_WORDS.needle_answer.format(key=key)} {code}\n"
    )
    head = _HEAD if tokens > 2 * size(_HEAD + told) else ""
    room = tokens - size(head + told)
    # What leaves no room for noise is told again, which is shorter than a question.
    again = max(1, min(again, room // size(told)))
    is_asked = random.random(again) < (0.6 if room > again * size(asked) else 0.0)
    needed = [asked if question else told for question in is_asked]
    lines = _noise(room - sum(map(size, needed)))
    first = int(random.integers(len(lines) // (1 if again == 1 else 4) + 1))
    places = [*sorted(random.integers(first, len(lines) + 1, again - 1)), len(lines)]
    parts, done = [head, *lines[:first], told], first
    for place, text in zip(places, needed, strict=True):
        parts += [*lines[done:place], text]
        done = int(place)
    return "".join(parts).rstrip("\n")


def _noise(tokens: int) -> list[str]:
    """Lines of noise of at most so many tokens, in the tasks' order."""
    lines: list[str] = []
    for line in cycle(_NOISE):
        tokens -= size(line)
        if tokens < 0:
            break
        lines.append(line)
    return lines
