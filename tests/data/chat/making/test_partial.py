"""`OUTPUT.partial` that is none of ours, or was damaged, is not written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from alia_ctx.data.chat.making.partial import Attempt, Partial
from alia_ctx.errors import DataError

MADE_FROM = {"spec": {"seed": 1}}


def kept(directory: Path) -> Path:
    """A file of four attempts."""
    with Partial(directory / "made", MADE_FROM) as partial:
        for index in range(4):
            partial.add(Attempt(index, f'{{"n": {index}}}'))
    return partial.path


def test_a_last_line_that_was_cut_off_is_made_again(tmp_path: Path) -> None:
    file = kept(tmp_path)
    file.write_bytes(file.read_bytes()[:-1])
    with Partial(tmp_path / "made", MADE_FROM) as partial:
        assert [attempt.index for attempt in partial.attempts] == [0, 1, 2]
        partial.add(Attempt(3, "{}"))
    with Partial(tmp_path / "made", MADE_FROM) as partial:
        assert len(partial.attempts) == 4


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"index": 1', b'"index": 9'),
        (b'"index": 1', b'"number": 1'),
        (b'{"index": 1', b'"index": 1'),
        (b'{"index": 1', b'\n{"index": 1'),
    ],
)
def test_lines_behind_a_damaged_one_are_not_lost(
    old: bytes, new: bytes, tmp_path: Path
) -> None:
    file = kept(tmp_path)
    file.write_bytes(file.read_bytes().replace(old, new))
    before = file.read_bytes()
    with pytest.raises(DataError, match=r"made\.partial, line 3: is damaged"):
        Partial(tmp_path / "made", MADE_FROM)
    assert file.read_bytes() == before


@pytest.mark.parametrize("content", [b"half a download", b"\x80\n", b"[1]", b"a\nb\n"])
def test_a_file_of_somebody_s_of_that_name(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "made.partial"
    file.write_bytes(content)
    with pytest.raises(DataError, match="what was made so far is of something else"):
        Partial(tmp_path / "made", MADE_FROM)
    assert file.read_bytes() == content
