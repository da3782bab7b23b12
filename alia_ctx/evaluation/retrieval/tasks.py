"""RULER's thirteen tasks as parameters.

From arXiv 2404.06654, appendix B, and from
https://github.com/NVIDIA/RULER/blob/main/scripts/synthetic.yaml.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DIGITS = 7  # of a number that is a value, as RULER has them
Form = Literal["needles", "variables", "common_words", "frequent_words", "question"]
HaystackType = Literal["noise", "text", "needles"]
Keys = Literal["words", "uuids"]
Values = Literal["numbers", "uuids"]


@dataclass(frozen=True)
class Task:
    """One task. Which parameters count depends on `form`:

    needles: `keys` keys are given `values` values each, `queries` keys are asked for;
        key_type and value_type say of
        what form. A haystack of `needles` is made of more of the same sentences, about other keys.
    variables: `chains` chains of one number and `hops` copies; asked are all names that
        have the number.
    common_words: `words` words come `common` times each, all others `uncommon` times.
    frequent_words: counts fall as rank ** -alpha; the three most frequent are asked for.
    question: one fact among records about other people (`hops` 0), or a fact about
        somebody's neighbour (1).
    """

    form: Form
    haystack: HaystackType = "text"
    keys: int = 1
    values: int = 1
    queries: int = 1
    key_type: Keys = "words"
    value_type: Values = "numbers"
    chains: int = 1
    hops: int = 0
    words: int = 10
    common: int = 30
    uncommon: int = 3
    alpha: float = 2.0


RULER: dict[str, Task] = {
    "niah_single_1": Task("needles", "noise"),
    "niah_single_2": Task("needles", "text"),
    "niah_single_3": Task("needles", "text", value_type="uuids"),
    "niah_multikey_1": Task("needles", "text", keys=4),
    "niah_multikey_2": Task("needles", "needles"),
    "niah_multikey_3": Task("needles", "needles", key_type="uuids", value_type="uuids"),
    "niah_multivalue": Task("needles", "text", values=4),
    "niah_multiquery": Task("needles", "text", keys=4, queries=4),
    "vt": Task("variables", "noise", chains=1, hops=4),
    "cwe": Task("common_words", words=10, common=30, uncommon=3),
    "fwe": Task("frequent_words", alpha=2.0),
    "qa_1": Task("question", "needles", hops=0),
    "qa_2": Task("question", "needles", hops=1),
}

# Beside RULER's: the plainest task by depth and length, as passkey heat maps show it.
PASSKEY = "passkey"
TASKS: dict[str, Task] = {**RULER, PASSKEY: Task("needles", "noise")}
