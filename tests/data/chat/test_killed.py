"""Tokenising conversations leaves no process behind, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.chat.tokenizers import save_chat_tokenizer
from tests.paths import python_path
from tests.processes import are_gone, children_of

_SCRIPT = """
import sys
from alia_ctx.data.chat import write_chat_store
from alia_ctx.data.documents import ChatSpec, SourceSpec
if __name__ == "__main__":
    source, tokenizer, out = sys.argv[1:]
    spec = SourceSpec(inputs=[source], chat=ChatSpec())
    write_chat_store(spec, "a", tokenizer, out, workers=2,
                     progress=lambda *_: print("on", flush=True))
"""


@pytest.mark.long
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    tokenizer = save_chat_tokenizer("byte level", tmp_path / "t")
    row = [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text(f"{json.dumps({'messages': row})}\n" * 3_000)
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    process = subprocess.Popen(
        [sys.executable, str(script), str(rows), str(tokenizer), str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": python_path(), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"  # a block is done, so workers work
    children = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(children) >= 2
    assert are_gone(children), "workers outlive a killed parent"
