"""The commands of the documents that measure GPUs are taken by their programs."""

from __future__ import annotations

import re
import shlex
from types import ModuleType

import pytest

from benchmarks import (
    gpu_attention,
    gpu_context_parallel,
    gpu_layouts,
    gpu_loss,
    gpu_peers,
    gpu_program,
    gpu_step,
)
from tests.benchmarks.test_gpu_programs import run
from tests.paths import ROOT

PROGRAMS = {
    module.__name__.rpartition(".")[2]: module
    for module in (
        *(gpu_attention, gpu_context_parallel, gpu_layouts),
        *(gpu_loss, gpu_peers, gpu_step),
    )
}
COMMAND = re.compile(
    r"(?:--nproc-per-node=(\d+) )?(?:benchmarks/)?(gpu_\w+)\.py (--[^`#>]*)"
)


def commands() -> list[tuple[str, int, str, str]]:
    """(page, ranks, program, arguments) of each that stands in the pages whole: what prints
    another file's table, or names a folder of the reader's, does not.
    """
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = page.read_text().replace("\\\n", " ")
        blocks = [line for line in text.splitlines() if line.startswith("    ")]
        for source in [*blocks, *re.findall(r"`([^`\n]+)`", text)]:
            for ranks, program, arguments in COMMAND.findall(source):
                words = shlex.split(arguments)
                told = {"--case", "--context", "--row", "--lengths", "--tokens"}
                if program in PROGRAMS and told & {*words} and "DIRECTORY" not in words:
                    name = str(page.relative_to(ROOT))
                    found.append((name, int(ranks or 1), program, shlex.join(words)))
    return found


def test_there_are_many() -> None:
    assert {program for _, _, program, _ in commands()} == {*PROGRAMS}
    assert len(commands()) > 15


@pytest.mark.parametrize(("page", "ranks", "program", "arguments"), commands())
def test_a_command_is_taken(
    page: str,
    ranks: int,
    program: str,
    arguments: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes to where it looks for its GPUs, or begins."""
    module: ModuleType = PROGRAMS[program]

    def begin(*_: object) -> None:
        raise SystemExit("begun")

    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.setattr(gpu_program.Parser, "require_gpus", begin)
    monkeypatch.setattr(gpu_program.Parser, "require_gpus_or_few_tokens", begin)
    if program == "gpu_attention":
        monkeypatch.setattr(module, "run_all", begin)
    words = tuple(shlex.split(arguments))
    if program in ("gpu_layouts", "gpu_context_parallel") and "--out" not in words:
        words += ("--out", "not-there.json")
    assert run(module, words, monkeypatch) == "begun", (page, capsys.readouterr().err)
