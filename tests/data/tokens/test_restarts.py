"""Tokenising that was interrupted, killed or damaged ends with the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TokenStore, tokenize_source
from alia_ctx.errors import DataError
from tests.data.tokens.stores import SHARD, files_of
from tests.paths import python_path
from tests.processes import are_gone, children_of


class StopError(Exception):
    pass


def test_an_interrupted_run_goes_on_where_it_was(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    tokenize_source(spec, "a", tokenizer_dir, tmp_path / "whole", shard_bytes=SHARD)

    def stop(state: object) -> None:
        if state.shards_done == 2:  # type: ignore[attr-defined]
            raise StopError

    out = tmp_path / "out"
    with pytest.raises(StopError):
        tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD, progress=stop)
    assert not (out / "a.json").exists()
    with pytest.raises(DataError, match="unfinished run that differs"):
        tokenize_source(
            spec, "a", tokenizer_dir, out, shard_bytes=SHARD, append_eos=False
        )
    seen: list[int] = []
    report = tokenize_source(
        spec,
        "a",
        tokenizer_dir,
        out,
        shard_bytes=SHARD,
        progress=lambda state: seen.append(state.tokens),
    )
    assert (
        report.shards_reused == 2
        and len(seen) == report.shards
        and seen[-1] == report.tokens
    )
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_damaged_shard_is_noticed(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    out = tmp_path / "out"

    def stop(_state: object) -> None:
        raise StopError

    with pytest.raises(StopError):
        tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD, progress=stop)
    shard = out / "a.work" / "shard-000000.bin"
    shard.write_bytes(b"\x01" + shard.read_bytes()[1:])
    with pytest.raises(DataError, match="not what was written"):
        tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD)
    assert not (out / "a.bin").exists()


_SCRIPT = """
import sys
from alia_ctx.data.documents import SourceSpec
from alia_ctx.data.tokens import TokenStore, tokenize_source
if __name__ == "__main__":
    source, tokenizer, shard_bytes, out = sys.argv[1:]
    spec = SourceSpec(inputs=[source], id_key="name")
    tokenize_source(spec, "a", tokenizer, out, workers=2, shard_bytes=int(shard_bytes),
                    progress=lambda state: print(state.shards_done, state.shards_total, flush=True))
"""


def _start(script: Path, *arguments: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_kill_9_at_any_moment_then_rerun_gives_the_same_bytes(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path, suffix: str
) -> None:
    source = Path(spec.inputs[0])
    if suffix:  # one stream, spread over the workers in blocks
        packed = source.with_name("packed.jsonl.gz")
        packed.write_bytes(gzip.compress(source.read_bytes(), mtime=0))
        source = packed
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    arguments = (source, tokenizer_dir, Path("500" if suffix else "1500"))
    whole = _start(script, *arguments, tmp_path / "whole")
    steps = len(whole.communicate()[0].splitlines())
    assert whole.returncode == 0 and steps > 8
    out = tmp_path / "out"
    chance = random.Random(5)
    moments = [0, 1, steps // 2, steps - 1, steps]  # the last one: while joining
    for wait_for in moments[:: 2 if suffix else 1]:
        process = _start(script, *arguments, out)
        lines = iter(process.stdout or ())
        for _ in range(wait_for):
            next(lines, "")
        time.sleep(0.5 if not wait_for else chance.random() * 0.02)
        children = children_of(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # type: ignore[union-attr]
        assert are_gone(children), "workers outlive a killed parent"
    final = _start(script, *arguments, out)
    final.communicate()
    assert final.returncode == 0
    assert files_of(out) == files_of(tmp_path / "whole")


@pytest.mark.parametrize("point", ["a.bin", "a.idx", "a.documents.parquet", "a.json"])
def test_a_death_before_each_final_rename_is_repaired(
    tmp_path: Path,
    spec: SourceSpec,
    tokenizer_dir: Path,
    point: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokenize_source(spec, "a", tokenizer_dir, tmp_path / "whole", shard_bytes=SHARD)
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(target).name == point:
            raise StopError
        real(source, target)

    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(StopError):
            tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD)
    (out / ".a.bin.999999.tmp").write_bytes(b"what kill -9 leaves")
    tokenize_source(spec, "a", tokenizer_dir, out, shard_bytes=SHARD)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    def second(_state: object) -> None:
        tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out")

    with pytest.raises(DataError, match="another run is writing"):
        tokenize_source(spec, "a", tokenizer_dir, tmp_path / "out", progress=second)


def _store(out: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_of(out).items() if "work" not in name}


def _killed(
    out: Path, spec: SourceSpec, tokenizer: Path, moment: str, **options: object
) -> None:
    """tokenize_source in a child that is killed as it calls `moment`."""
    code = (
        "import json, os, signal, sys; from types import SimpleNamespace\n"
        "from alia_ctx.data.documents import SourceSpec\n"
        "from alia_ctx.data.tokens import source, work_folder\n"
        "renamed = []\n"
        "def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)\n"
        "def replace(*names):\n"
        "    renamed.append(names) if len(renamed) < 2 else die()\n"
        "    os.replace(*names)\n"
        f"if {moment!r} == 'encode': source.encode_all = die\n"
        "else: work_folder.os = SimpleNamespace(replace=replace)\n"
        "inputs, tokenizer, out, options = json.loads(sys.argv[1])\n"
        "spec = SourceSpec(inputs=inputs, id_key='name')\n"
        "source.tokenize_source(spec, 'a', tokenizer, out, overwrite=True, **options)"
    )
    argument = json.dumps([list(spec.inputs), str(tokenizer), str(out), options])
    done = subprocess.run(
        [sys.executable, "-c", code, argument],
        env={**os.environ, "PYTHONPATH": python_path()},
        check=False,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL


def test_a_killed_overwrite_leaves_the_old_store_with_its_statement(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    out = tmp_path / "out"
    tokenize_source(spec, "a", tokenizer_dir, out)
    before = _store(out)
    _killed(out, spec, tokenizer_dir, "encode", append_eos=False)
    assert _store(out) == before


def test_a_store_that_was_half_replaced_is_not_opened(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    out = tmp_path / "out"
    tokenize_source(spec, "a", tokenizer_dir, out)
    _killed(out, spec, tokenizer_dir, "rename", append_eos=False)
    assert not (out / "a.json").exists() and (out / "a.bin").exists()
    with pytest.raises(
        DataError, match=r"interrupted(?s:.*)tokenize CONFIG --source a"
    ):
        TokenStore(out / "a")
    tokenize_source(spec, "a", tokenizer_dir, out, append_eos=False)
    tokenize_source(spec, "a", tokenizer_dir, tmp_path / "whole", append_eos=False)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_a_failed_overwrite_leaves_the_old_store_with_its_statement(
    tmp_path: Path, spec: SourceSpec, tokenizer_dir: Path
) -> None:
    out = tmp_path / "out"
    tokenize_source(spec, "a", tokenizer_dir, out)
    before = _store(out)
    torn = tmp_path / "torn.jsonl.gz"
    torn.write_bytes(gzip.compress(b'{"text": "a"}\n' * 900)[:-9])
    more = SourceSpec(inputs=[*spec.inputs, str(torn)])
    with pytest.raises(DataError):
        tokenize_source(more, "a", tokenizer_dir, out, overwrite=True)
    assert _store(out) == before
