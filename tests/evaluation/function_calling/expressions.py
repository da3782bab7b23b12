"""Seeded source of Java and JavaScript: values, collections of them, and near misses."""

from __future__ import annotations

from random import Random
from typing import Any

_JAVA_SCALARS = ("byte", "short", "integer", "long", "float", "double", "boolean")
_JAVA = (*_JAVA_SCALARS, "char", "String", "any", "Array", "ArrayList", "HashMap")
_JAVASCRIPT = (
    "String",
    "integer",
    "float",
    "Bigint",
    "Boolean",
    "dict",
    "array",
    "any",
)
_ATOMS = (
    *("1", "-7", "007", "1L", "2l", "3n", "1.5", "-1.5e3", "2F", "1.5f", "1e5", "+1"),
    *("true", "false", "True", "null", "x", "a b", "'a'", '"a"', '"a, b"', "'it''s'"),
    *(
        "",
        " ",
        "1_000",
        ".5",
        "5.",
        "nan",
        "Infinity",
        "new Foo(1)",
        "é",
        '"',
        "'",
        "{}",
    ),
    *("[]", "1\n", "\n1", "(", ")", "[1]", "a:b", '{"k": 1}', "x.y(z)", "0x1F", "--1"),
)
_WRAPS = {
    "java": (
        "new ArrayList<>(Arrays.asList({}))",
        "new  ArrayList<Integer>(Arrays.asList({}))",
        "new ArrayList<String>() {{{{ add({}); add({}); }}}}",
        "new ArrayList<String>()  {{{{\n add({});\n add({});\n}}}}",
        "new ArrayList<>()",
        "new ArrayList<List<String>>()",
        "Arrays.asList({})",
        "List.of({}, {})",
        "new int[]{{{}, {}}}",
        "new String[] {{ {} }}",
        "new int[3]",
        "new Object[]{{}}",
        "new Object[]{{{},\n{}}}",
        'new HashMap<String, Object>() {{{{ put("a", {}); put("b c", {}); }}}}',
        'new HashMap<>() {{ {{ put("a",{}); }} }}',
        "new HashMap<String, Integer>()",
        "new HashMap<>() {{}}",
        'Map.of("a", {})',
        "new ArrayList<String>() {{{{}}}} add({}); }}}}",
        "new ArrayList<String>() {{{{ \n}}}} add({}); }}}}",
        "new ArrayList<String>() {{{{ add({});  ",
        'new HashMap<String, Object>() {{{{ put("a", {});',
        'new HashMap<>() {{ }} new HashMap<>() {{{{ put("a", {}); }}}}',
        "{}",
    ),
    "javascript": (
        "[{}, {}]",
        "[{}]",
        "[ ]",
        "[[{}, {}], [{}]]",
        " [ [ {} ],[{}] ] ",
        "[[{}], {}]",
        "new Array({}, {})",
        "new Array([{}], [{}])",
        "new  Array()",
        "Array.of({})",
        "{{a: {}, b: {}}}",
        "{{\"a\": {}, 'b': {}}}",
        "{{a: [{}, {}], b: {{c: {}}}}}",
        "{{ a: {} }}",
        "{{a:\n{}}}",
        "{{}}",
        "{{a}}",
        "[[{}], [{}], [{}]",
        "[[{}], [{}]\n, [{}]]",
        "[[{}\n], [{}]]",
        "[[{}], [{}] {}]",
        "[[{}], {}], [{}]]",
        "new Array([{}], [{}]] ",
        "new Array([{}], [{}] 1], [{}])",
        "{}",
    ),
}


_SIGNS = {
    "java": (("ArrayList", "ArrayList"), ("HashMap", "HashMap"), ("[]", "Array")),
    "javascript": (("Array(", "array"), ("{", "dict"), ("[", "array")),
}


def expressions(language: str, count: int, seed: int) -> list[dict[str, Any]]:
    """Questions about the value of an expression: `text`, `type` and `items`."""
    rng = Random(seed)
    types = _JAVA if language == "java" else _JAVASCRIPT
    plain = types[:-3] if language == "java" else ("String", "integer", "float", "any")
    asked = []
    for _ in range(count):
        text = rng.choice(_WRAPS[language])
        text = text.format(*(_inner(language, rng) for _ in range(3)))
        if rng.random() < 0.1 and text:
            at = rng.randrange(len(text))
            text = text[:at] + text[at + 1 :]
        kind = rng.choice(types)
        if rng.random() < 0.6:  # mostly what it looks like
            kind = next((k for sign, k in _SIGNS[language] if sign in text), kind)
        with_items = kind in ("Array", "ArrayList", "array")
        items = rng.choice((*plain, None)) if with_items else None
        asked.append({"text": text, "type": kind, "items": items, "language": language})
    return asked


def _inner(language: str, rng: Random) -> str:
    if rng.random() < 0.1:
        return rng.choice(_WRAPS[language]).format(*rng.choices(_ATOMS, k=3))
    return rng.choice(_ATOMS)
