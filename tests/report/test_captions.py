"""Captions end before the command that makes their figure again; labels stand apart."""

from __future__ import annotations

import re

import numpy as np
import pytest

from alia_ctx.report import html
from alia_ctx.report.figures import heat_map


@pytest.mark.parametrize(
    ("caption", "shown"),
    [
        ("right of asked", "right of asked. Make it again:"),
        ("right of asked.", "right of asked. Make it again:"),
        ("a < b", "a &lt; b. Make it again:"),
    ],
)
def test_a_caption_ends_before_its_command(caption: str, shown: str) -> None:
    for made in (
        html.table(["a"], [["1"]], caption=caption, how="run it"),
        html.figure("<svg></svg>", caption, "run it"),
    ):
        assert shown in made


@pytest.mark.parametrize(("count", "upright"), [(7, False), (10, True)])
def test_labels_of_many_lengths_stand_upright(count: int, upright: bool) -> None:
    lengths = [1024 * 2**n for n in range(count)]
    made = heat_map("passkey", lengths, ["0%", "50%"], np.ones((2, count)))
    label = next(tag for tag in re.findall(r"<text[^>]*>[^<]*", made) if "1,024" in tag)
    assert ("rotate(-90" in label) == upright
