"""What a docstring says of a function's parameters, as Google, NumPy and Sphinx write it."""

from __future__ import annotations

import ast
import inspect
import re
from typing import Any

from alia_ctx.data.chat.making.annotations import Annotations
from alia_ctx.data.chat.making.json_types import NULL, choices, union
from alia_ctx.data.chat.python_text import expression_of

_SPHINX = re.compile(r"^:param (?:([\w\[\], .|]+) )?\*{0,2}(\w+):[ \t]*(.*)$")
_SPHINX_TYPE = re.compile(r"^:type \*{0,2}(\w+):[ \t]*(\S.*)$")
_GOOGLE = re.compile(r"^(\s+)\*{0,2}(\w+)(?: ?\((.*?)\))?[ ]?:(?:[ \t]+(\S.*))?$")
_NUMPY = re.compile(r"^(\w+)\s*:\s*(\S.*)$")
_HEADS = ("Args:", "Arguments:", "Parameters:")
_UNDERLINED = ("Parameters", "Other Parameters")
_SENTENCE = re.compile(
    r"""(?<!e\.g\.)(?<!i\.e\.)(?<=[\w)\]`"'][.!?])\s+(?=[A-Z`*(\[])"""
)
_LONGEST = 240

_WORDS = {
    "integer": ("int", "integer", "ints", "integers"),
    "number": ("float", "floats", "scalar", "number"),
    "string": ("str", "strs", "string", "strings"),
    "boolean": ("bool", "bools", "boolean"),
}
_TYPES = {word: kind for kind, words in _WORDS.items() for word in words}
_ARRAYS = ("array_like", "ndarray", "array-like", "np.ndarray")
_LIST = re.compile(r"^(?:(?:list|sequence|array|List)(?: of |\[)|tuple of )(\w+)\]?$")
_BEHIND = re.compile(r"(?i),?\s*\*?\b(?:optional|keyword[- ]only|defaults?\b.*)\*?.*$")


def parameter_descriptions(docstring: str) -> dict[str, str]:
    """Descriptions by parameter: the first sentence of each, whatever lines it takes."""
    return {name: told for name, (_, told) in _parameters(docstring).items() if told}


def parameter_types(docstring: str) -> dict[str, dict[str, Any]]:
    """JSON schemas by parameter, of those whose type in words JSON has a form for."""
    types = {name: _schema(kind) for name, (kind, _) in _parameters(docstring).items()}
    return {name: schema for name, schema in types.items() if schema is not None}


def _parameters(docstring: str) -> dict[str, tuple[str, str]]:
    """(type in words, description) by parameter; the first of a name holds."""
    lines = inspect.cleandoc(docstring).split("\n")
    found: dict[str, tuple[str, str]] = {}
    types: dict[str, str] = {}
    above = ""
    for number, line in enumerate(lines):
        if match := _SPHINX.match(line):
            more = _indented(lines[number + 1 :], 0)
            found.setdefault(match[2], (match[1] or "", _sentence([match[3], *more])))
        elif match := _SPHINX_TYPE.match(line):
            types[match[1]] = match[2]
        elif line.strip() in _HEADS:
            _google(lines[number + 1 :], found)
        elif set(line.strip()) == {"-"} and above.strip() in _UNDERLINED:
            _numpy(lines[number + 1 :], found)
        above = line
    for name, kind in types.items():
        found[name] = (kind, found.get(name, ("", ""))[1])
    return found


def _google(lines: list[str], found: dict[str, tuple[str, str]]) -> None:
    depth = None
    for number, line in enumerate(lines):
        if line.strip() and not line.startswith(" "):
            return
        match = _GOOGLE.match(line)
        if match is None or depth not in (None, len(match[1])):
            continue
        depth = len(match[1])
        more = _indented(lines[number + 1 :], depth)
        told = _sentence([match[4] or "", *more])
        found.setdefault(match[2], (match[3] or "", told))


def _numpy(lines: list[str], found: dict[str, tuple[str, str]]) -> None:
    for number, line in enumerate(lines):
        after = lines[number + 1] if number + 1 < len(lines) else ""
        if line.strip() and after.strip() and set(after.strip()) == {"-"}:
            return
        if (match := _NUMPY.match(line)) and after.startswith(" "):
            told = _sentence(_indented(lines[number + 1 :], 0))
            found.setdefault(match[1], (match[2], told))


def _indented(lines: list[str], depth: int) -> list[str]:
    """The lines that are further in than `depth`, up to one that is not, or is empty."""
    inside: list[str] = []
    for line in lines:
        if len(line) - len(line.lstrip()) <= depth or not line.strip():
            break
        inside.append(line)
    return inside


def _sentence(lines: list[str]) -> str:
    """The first sentence, without what only the web shows."""
    text = " ".join(" ".join(lines).split())
    text = re.sub(r":\w+:`~?([^`]*)`|\[`~?([^`]*)`\]", r"\1\2", text).replace("``", "`")
    first = _SENTENCE.split(text, maxsplit=1)[0]
    return first if len(first) <= _LONGEST else first[:_LONGEST].rpartition(" ")[0]


def _schema(kind: str) -> dict[str, Any] | None:
    """Of a type in words: `int, optional`, `{'a', 'b'}`, `list of str or None`."""
    kind = kind.replace("`", "").replace("*", "").strip()
    if options := re.match(r"\{[^{}]*\}", kind):
        found = choices(_constants(options[0]))
        return None if found == NULL else found
    words = _BEHIND.sub("", kind).strip().strip(",")
    found = _one(words)  # whole: there may be bars within its brackets
    if found is None or found == NULL:
        parts = re.split(r"\s+or\s+|\s*\|\s*", words)
        types = [_one(part.strip().strip(",")) for part in parts]
        # Words are no language: one that begins with something unknown is left alone.
        found = None if types[0] is None else union(types)
    return found


def _one(kind: str) -> dict[str, Any] | None:
    if kind == "None":
        return NULL
    if kind in _TYPES:
        return {"type": _TYPES[kind]}
    if kind in _ARRAYS:
        return {"type": "array", "items": {"type": "number"}}
    match = _LIST.match(kind)
    if match is not None and match[1] in _TYPES:
        return {"type": "array", "items": {"type": _TYPES[match[1]]}}
    if "[" not in kind:
        return None
    try:
        return Annotations().schema(expression_of(kind).body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _constants(text: str) -> list[Any]:
    try:
        node = expression_of(text).body
        # A set has no order of its own; as it is written it has one.
        parts = node.elts if isinstance(node, ast.Set) else []
        values = [ast.literal_eval(part) for part in parts]
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []  # the last two: what Python says of too many signs or brackets
    is_json = all(isinstance(v, str | int | float | None) for v in values)
    return values if is_json else []
