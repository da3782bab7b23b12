"""Writers of metrics: what they hold, and what happens when one of them cannot go on."""

from __future__ import annotations

import errno
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alia_ctx.errors import ConfigError
from alia_ctx.train import metrics_log, sinks
from alia_ctx.train.metrics_log import JsonLines, LogError, read_lines
from alia_ctx.train.sinks import open_sinks

LINE = {
    "update": 3,
    "loss": 2.5,
    "loss_by_source": {"web": 2.0},
    "applied": True,
    "rows": [1, 2],
}


class Breaks:
    """A writer whose service goes away after one step."""

    def __init__(self, *about: object) -> None:
        self.steps: list[int] = []

    error: BaseException = ConnectionError("gone\nand more")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self.steps:
            raise self.error
        self.steps.append(step)

    def close(self) -> None:
        raise ConnectionError("gone")


def test_a_writer_that_fails_is_left_out_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sinks, "_TensorBoard", Breaks)
    [sink] = open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, said.append)
    for step in (1, 2, 3):
        sink.write(step, {"loss": 1.0})
    sink.close()
    assert said == [
        "tensorboard failed (ConnectionError: gone); metrics.jsonl has what it lacks from here on"
    ]


def test_a_writer_that_ends_the_program_ends_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(sinks, "_TensorBoard", Breaks)
    monkeypatch.setattr(Breaks, "error", SystemExit(0))
    [sink] = open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, said.append)
    for step in (1, 2, 3):
        sink.write(step, {"loss": 1.0})
    [words] = said
    assert words.startswith("tensorboard failed (SystemExit: 0)")
    monkeypatch.setattr(Breaks, "error", KeyboardInterrupt())
    [sink] = open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, said.append)
    sink.write(1, {})
    with pytest.raises(KeyboardInterrupt):
        sink.write(2, {})


@pytest.mark.parametrize("error", [RuntimeError, SystemExit])
def test_a_writer_that_does_not_start_is_a_mistake_with_a_remedy(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*about: object) -> None:
        raise error("no key")

    monkeypatch.setattr(sinks, "_TensorBoard", refuse)
    said = (
        f"metrics.sinks=tensorboard: does not start ({error.__name__}: no key); set it"
    )
    with pytest.raises(ConfigError, match=re.escape(said)):
        open_sinks(["tensorboard"], tmp_path, "run", "stage", {}, print)


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines._stream.close()
    lines._stream = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*metrics\.jsonl"):
        lines.append(LINE)
    lines.close()


# -- metrics.jsonl over resumes --------------------------------------------------------


def text(update: int, loss: float = 2.5) -> bytes:
    return json.dumps({"update": update, "loss": loss}).encode() + b"\n"


def reopen(path: Path, resume_at: int) -> tuple[list[int], list[str]]:
    """(updates of the lines gone on from, what was said)."""
    said: list[str] = []
    lines = JsonLines(path, resume_at, said.append)
    lines.close()
    return [line["update"] for line in lines.kept], said


def aside(path: Path, why: str) -> bytes:
    file = path.with_name(f"{path.name}.{why}")
    return file.read_bytes() if file.is_file() else b""


BROKEN = {
    "cut off": text(3)[:9] + b"\n",
    "of zeros": b"\0" * 40 + b"\n",
    "no JSON": b"Traceback: boom\n",
    "no update": b'{"loss": 1.0}\n',
    "another type": b"[3]\n",
    "no UTF-8": b'{"update": 3, "loss": "\xff"}\n',
    "nested without end": b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_line_takes_no_other_with_it(how: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = {update: text(update) for update in range(1, 8)}
    path.write_bytes(b"".join({**whole, 3: BROKEN[how]}.values()))
    kept, said = reopen(path, 7)
    assert kept == [1, 2, 4, 5, 6, 7]
    assert path.read_bytes() == b"".join(whole[n] for n in kept)
    assert aside(path, "broken") == BROKEN[how]
    assert any(
        "line 3 was not whole" in s and "metrics.jsonl.broken" in s for s in said
    )
    assert any("no line of 1 of the first 7" in s for s in said)


def test_lines_of_updates_done_again_move_aside(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(text(n) for n in range(1, 8)))
    assert reopen(path, 4) == ([1, 2, 3, 4], [])
    assert path.read_bytes() == b"".join(text(n) for n in range(1, 5))
    assert aside(path, "superseded") == b"".join(text(n) for n in (5, 6, 7))


def test_beginning_anew_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    assert reopen(path, 0) == ([], [])
    assert aside(path, "superseded") == before
    path.write_bytes(text(1, 9.0))
    reopen(path, 0)
    assert aside(path, "superseded") == before + text(1, 9.0)


def test_a_cut_off_last_line_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text(1) + text(2).rstrip(b"\n"))  # whole but for its end
    lines = JsonLines(path, 2)
    lines.append({"update": 3, "loss": 1.0})
    lines.close()
    assert [line["update"] for line in read_lines(path)] == [1, 2, 3]


def test_a_log_that_is_in_order_is_only_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(text(1) + text(2))
    inode = path.stat().st_ino
    assert reopen(path, 2) == ([1, 2], [])
    assert path.stat().st_ino == inode


@given(
    written=st.lists(
        st.integers(1, 9).map(text)
        | st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"") + b"\n")
    ),
    resume_at=st.integers(0, 9),
)
@settings(max_examples=200, deadline=None)
def test_every_line_ever_written_is_somewhere(
    written: list[bytes], resume_at: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "metrics.jsonl")
        path.write_bytes(b"".join(written))
        kept, _ = reopen(path, resume_at)
        places = (path.read_bytes(), aside(path, "superseded"), aside(path, "broken"))
        now = b"".join(places).split(b"\n")
        assert sorted(filter(bytes.strip, now)) == sorted(
            filter(bytes.strip, b"".join(written).split(b"\n"))
        )
        assert len(kept) == len(set(kept)) and all(n <= resume_at for n in kept)
        assert set(kept) == {n for n in range(1, resume_at + 1) if text(n) in written}
        assert reopen(path, resume_at)[0] == kept, "a second time changes nothing"
        assert path.read_bytes() == places[0]


class Flaky:
    """A first reading of a file that fails, or comes back short."""

    def __init__(self, first: Callable[[bytes], bytes]) -> None:
        self.first, self.calls = first, 0
        self.original = Path.read_bytes

    def __call__(self, path: Path) -> bytes:
        self.calls += 1
        data = self.original(path)
        return self.first(data) if self.calls == 1 else data


def _fail(error: int) -> Callable[[bytes], bytes]:
    def fail(data: bytes) -> bytes:
        raise OSError(error, os.strerror(error))

    return fail


@pytest.mark.parametrize(
    "first",
    [_fail(errno.EIO), _fail(errno.ESTALE), _fail(errno.EACCES), lambda d: d[:100]],
    ids=["EIO", "ESTALE", "EACCES", "short"],
)
def test_one_failed_reading_changes_nothing(
    first: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    flaky = Flaky(first)
    monkeypatch.setattr(Path, "read_bytes", lambda self: flaky(self))
    with pytest.raises(LogError, match=r"metrics\.jsonl.*nothing was changed"):
        JsonLines(path, 7)
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    assert path.read_bytes() == before


def test_a_log_that_is_not_seen_for_a_moment_is_not_shortened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    before = b"".join(text(n) for n in range(1, 8))
    path.write_bytes(before)
    flaky = Flaky(_fail(errno.ENOENT))
    monkeypatch.setattr(Path, "read_bytes", lambda self: flaky(self))
    said: list[str] = []
    lines = JsonLines(path, 7, said.append)
    lines.append({"update": 8, "loss": 1.0})
    lines.close()
    assert [line["update"] for line in read_lines(path)] == list(range(1, 9))
    assert any("no line of 7 of the first 7" in s for s in said)


def test_killed_between_moving_aside_and_going_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(text(n) for n in range(1, 8)))

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(metrics_log, "atomic_file", killed)
        JsonLines(path, 4)
    assert reopen(path, 4)[0] == [1, 2, 3, 4]
    assert aside(path, "superseded") == b"".join(text(n) for n in (5, 6, 7))
