"""What was measured, as Markdown for a model card: from files of several forms."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from alia_ctx.errors import CheckpointError, DataError
from alia_ctx.evaluation.function_calling import (
    calls_markdown,
    public_names,
    read_scores,
)
from alia_ctx.files import parse_json
from alia_ctx.hf.model_card import fence_after
from alia_ctx.identity import unsealed

# What our own commands say of places on the disk, below what is meant for readers.
_PLACE = re.compile(
    r"(?:- )?[^|]+: answers and scores in .+|(?:results|report|plot): +\S*/\S*"
)
# The head of the table of `evaluate-calls`, between whose first and last columns are names.
_NAMES = re.compile(r"\| metric \| category \| (.+) \| ALIA-40b-fc card \|")
# Absolute paths in JSON: whole texts, which may have blanks, and words of sentences.
_TEXT = re.compile(r'"~?/(?:[^"\\]*/)?([^"/\\]+)"')
_WORD = re.compile(r"(?<![\w.:/~-])~?/(?:[^\s/'\",:;()]+/)*([^\s/'\",:;()]+)")
_DRAWN = re.compile("[\u2500-\u257f]")  # box drawing


def card_evaluation(files: Sequence[Path]) -> str:
    """The contents of `files`, one after another. Markdown stays as it is; a table that a
    terminal draws is fenced as code; scores of `evaluate-calls` as JSON become its
    Markdown, and other JSON is fenced. A card is published: where answers and results
    lie, and paths by which models are called or that JSON names, are left out.

    CheckpointError where one cannot be read as text; DataError where the scores in one are
    none; IdentityError where they were changed since they were written.
    """
    texts = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(
                f"--evaluation {file}: cannot be read as text ({error}); give a file of "
                "Markdown"
            ) from error
        is_json = text.startswith(("{", "["))
        texts.append(_of_json(text, file) if is_json else _markdown(text))
    return "\n\n".join(texts)


def _of_json(text: str, file: Path) -> str:
    try:
        document = parse_json(text)
    except ValueError:  # Markdown may begin with a bracket
        return _markdown(text)
    try:
        scores = read_scores(document)
    except DataError as error:
        raise DataError(f"--evaluation {file}: {error}") from error
    if scores and "made_from" in document:  # a `scores.json`
        unsealed(
            document, f"--evaluation {file}", "run `alia-ctx evaluate-calls` again"
        )
    if not scores:
        text = _WORD.sub(r"\1", _TEXT.sub(r'"\1"', text))
        return f"```json\n{text}\n```"
    return calls_markdown(scores, document)


def _markdown(text: str) -> str:
    """Markdown of anyone's, without the places that our own commands name in theirs."""
    lines = [line for line in text.splitlines() if not _PLACE.fullmatch(line)]
    text = "\n".join(lines).rstrip()
    for head in _NAMES.findall(text):
        names = re.split(r"(?<!\\) \| ", head)
        shown = public_names(names)
        for name in sorted(names, key=len, reverse=True):
            text = text.replace(name, shown[name])
    return _fenced(text)


def _fenced(text: str) -> str:
    """Paragraphs in which a box is drawn, as code, where they are not code already; code
    that is not closed is.
    """
    pieces, fence = [], ""
    for blank, lines in groupby(text.splitlines(), key=lambda line: not line.strip()):
        paragraph = list(lines)
        outside = not fence
        for line in paragraph:
            fence = fence_after(line, fence)
        if not blank and outside and not fence and _DRAWN.search("".join(paragraph)):
            paragraph = ["```text", *paragraph, "```"]
        pieces += paragraph
    # What is not closed would take the rest of the card along.
    return "\n".join([*pieces, fence] if fence else pieces)
