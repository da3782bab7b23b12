"""Options of sbatch in a line of words, whichever way they are written."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterator

# The letters that sbatch has for the options which `launch` looks for; and one word of
# letters: those that take no value, so that another may follow them (sbatch --help).
_LETTERS = {
    "A": "account",
    "J": "job-name",
    "M": "clusters",
    "V": "version",
    "W": "wait",
    "a": "array",
    "h": "help",
    "p": "partition",
    "q": "qos",
}
_SHORT = re.compile(r"-([HOQWVhsv]*.?).*")


def options_among(line: str, known: Collection[str]) -> list[str]:
    """Those of `known`, long names of sbatch, that a line of options gives: with `=` or a
    space before the value, shortened as far as sbatch takes it, by a letter, or behind
    another on the line.

    A shortened name that others of sbatch begin with too counts as each of `known` that
    does: sbatch refuses it.
    """
    found = []
    for word in _words(line):
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            found += [long for long in known if name and long.startswith(name)]
        # With a blank in it, it is the value of the option before.
        elif word.startswith("-") and not re.search(r"\s", word):
            letters = _SHORT.sub(r"\1", word)
            found += [_LETTERS[x] for x in letters if _LETTERS.get(x) in known]
    return found


def header_lines(script: str) -> Iterator[str]:
    """The lines of options at the head of a batch file, as sbatch reads them: up to the
    first command.
    """
    for line in script.splitlines():
        if line.startswith("#SBATCH"):
            yield line.removeprefix("#SBATCH")
        elif line.strip() and not line.startswith("#"):
            return


def _words(line: str) -> list[str]:
    """As sbatch splits a line, up to a comment; none where a quote is not closed."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []
