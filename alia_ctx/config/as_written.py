"""YAML as a person reads it, where YAML 1.1 reads something else."""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from alia_ctx.config.texts import is_choice, is_text

_STRING, _INTEGER, _NULL, _MERGE_KEY = (
    f"tag:yaml.org,2002:{name}" for name in ("str", "int", "null", "merge")
)
_OTHERWISE_READ = re.compile(r"[-+]?(0[0-9_]+|[0-9_]+(:[0-9_]+)+)")


def as_written(text: str, place: Sequence[str] = ()) -> str:
    """The YAML in `text`, which stands at `place`, with what it would read otherwise than
    a person does in quotes.

    Keys are names: a stage `4096`, `012` or `yes` is not the number 4096, the octal
    number 10 or the word true. Neither is the value of a setting that is text. And YAML
    1.1 takes the values 012 and 1:30 for 10 and 90.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if root is None:
        return text
    pending, seen = [(root, tuple(place))], set()
    while pending:
        node, at = pending.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                is_merged = key.tag == _MERGE_KEY
                pending.append((value, at if is_merged else (*at, str(key.value))))
                if isinstance(key, yaml.ScalarNode) and not is_merged:
                    key.tag, key.style = _STRING, "'"
                    if key.value in names:
                        rule = f"the key {key.value} stands twice"
                        raise yaml.MarkedYAMLError(rule, problem_mark=key.start_mark)
                    names.add(key.value)
        elif isinstance(node, yaml.SequenceNode):
            pending.extend((value, (*at, "*")) for value in node.value)
        elif isinstance(node, yaml.ScalarNode) and _is_misread(node, at):
            node.tag, node.style = _STRING, "'"
    return yaml.serialize(root, Dumper=yaml.SafeDumper, allow_unicode=True)


def _is_misread(node: yaml.ScalarNode, place: Sequence[str]) -> bool:
    """Whether YAML takes a value for something else than a person does."""
    if node.style or not node.value:  # quoted, or nothing
        return False
    if node.tag == _NULL:
        return node.value != "~" and is_text(place, null=True)
    if node.tag == _INTEGER and _OTHERWISE_READ.fullmatch(node.value):
        return True
    return is_text(place) or is_choice(place, node.value)
