"""What `init` does not know, and paths that are hard to write."""

from __future__ import annotations

import atexit
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.errors import ConfigError
from tests.cli.beginning import filled, init, said, write_base
from tests.text_data import write_jsonl

pytestmark = pytest.mark.long


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory, as far as `init` reads it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_base(tmp_path / "mine")


def test_what_no_tokenizer_says_is_left_open(base: Path, tmp_path: Path) -> None:
    for file in base.glob("tokenizer*"):
        file.unlink()
    made = init(base)
    assert made.exit_code == 0, said(made)
    text = (tmp_path / "mine.yaml").read_text()
    assert "the tokenizer has" not in text and "the base's tokenizer puts" not in text
    assert "not known what stood around a text" in text
    for key in ("tokenizer", "data.append_eos", "data.prepend_bos"):
        assert f"to fill in: {key}\n" in made.output
    with pytest.raises(ConfigError) as refused:
        load_run(tmp_path / "mine.yaml", filled(tmp_path))
    told = {problem.key: problem for problem in refused.value.problems}
    assert set(told) == {"tokenizer", "data.append_eos", "data.prepend_bos"}
    assert all("placeholder" in problem.rule for problem in told.values())
    # Neither a plan nor a comparison of RoPEs needs them.
    load_plan(tmp_path / "mine.yaml")
    shown = CliRunner().invoke(app, ["rope", "mine.yaml"])
    assert shown.exit_code == 0 and "RoPE of 2k" in shown.output, said(shown)


@pytest.mark.parametrize("key", ["root", "output", "seed", "engine.precision"])
def test_rope_and_plan_take_placeholders(key: str, base: Path, tmp_path: Path) -> None:
    assert init(base).exit_code == 0
    for command in ("rope", "plan"):
        shown = CliRunner().invoke(app, [command, "mine.yaml", f"{key}='???'"])
        assert shown.exit_code == 0, said(shown)


def test_what_a_plan_needs_is_named_where_it_is_open(
    base: Path, tmp_path: Path
) -> None:
    assert init(base).exit_code == 0
    for key in ("stages.2k.context", "hf_base"):
        message = said(CliRunner().invoke(app, ["rope", "mine.yaml", f"{key}='???'"]))
        assert f"{key}=???: is a placeholder" in message, message
        assert "data.sources" not in message


ODD = [
    "a b",
    "a#b",
    "a #b",
    "it's",
    'a"b',
    "a\\b",
    "a: b",
    "ñandú",
    "- a",
    "[a]",
    "{a}",
]
ODD += [
    "${x}",
    "a${x",
    "${oc.env:HOME}",
    "a\\${x}",
    "a\\\\${x}b",
    "$HOME",
    "~a",
    "~",
    "%a",
]
ODD += [
    "???",
    "*a",
    "&a",
    "!a",
    "@a",
    "`a`",
    "a\u00a0b",
    "😀",
    "yes",
    "1e3",
    "null",
    "a,b",
]


@pytest.mark.parametrize("name", ODD)
def test_any_path_loads_to_what_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    shutil.copytree(written_base(), folder / "mine")
    texts = [write_jsonl(folder / f"{n}.jsonl", [f"{n} " * 3000]) for n in "ab"]
    options = ["--text", texts[0], "--held-out", texts[1], "--gpus", "0"]
    made = init(f"./{name}/mine", *options, "--output", f"./{name}/run.yaml")
    assert made.exit_code == 0, said(made)
    file = folder / "run.yaml"
    run = load_run(file)
    assert run.hf_base == run.tokenizer == str(folder / "mine")
    assert run.data.sources["text"].inputs == [str(texts[0])]
    assert run.evaluation.held_out is not None
    assert run.evaluation.held_out.inputs == [str(texts[1])]
    # The commands in its comments can be pasted.
    [line] = [n for n in file.read_text().splitlines() if "alia-ctx import-hf" in n]
    assert shlex.split(line.removeprefix("#"))[2] == str(folder / "mine")


@cache
def written_base() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="m20-base-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_base(folder / "mine")


@pytest.mark.parametrize(
    "name", ["a\nb", "a\tb", "a\x07b", "a\u2028b", "a\x85b", "a\udcffb"]
)
@pytest.mark.parametrize("place", ["model", "--text", "--output"])
def test_what_no_line_can_hold_is_refused_in_one(
    name: str, place: str, base: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    arguments = {"model": [name], "--text": [base, "--text", name]}
    arguments["--output"] = [base, "--output", name]
    result = init(*arguments[place])
    assert isinstance(result.exception, ConfigError)
    message = str(result.exception)
    assert message.isprintable() and "no line of a configuration can hold" in message
    assert sorted(tmp_path.rglob("*")) == before
