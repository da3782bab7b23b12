"""What `init` does not know, and paths that are hard to write."""

from __future__ import annotations

import atexit
import json
import shlex
import shutil
import tempfile
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.json_schema import SCHEMA_FILE
from alia_ctx.config.load import load_plan, load_run
from alia_ctx.data.documents import find_inputs
from alia_ctx.errors import ConfigError, DataError
from alia_ctx.workflow.importing import how_to_import
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


def test_what_is_written_is_no_text_and_replaces_no_other_file(
    base: Path, tmp_path: Path
) -> None:
    """Neither the configuration nor the schema beside it is trained on."""
    folder, held = tmp_path / "text", tmp_path / "held"
    folder.mkdir()
    held.mkdir()
    train = write_jsonl(folder / "a.jsonl", ["a text " * 2000])
    write_jsonl(held / "b.jsonl", ["other text " * 2000])
    options = ("--text", folder, "--held-out", held, "--overwrite", "--output")
    for taken in (base / "config.json", train, folder / "new.md", base / "tokenizer"):
        before = taken.read_bytes() if taken.is_file() else None
        refused = init(base, *options, taken)
        assert "a configuration is called .yaml or .yml" in said(refused)
        assert (taken.read_bytes() if taken.is_file() else None) == before
    made = init(base, *options, folder / "mine.yaml")
    assert made.exit_code == 0, said(made)
    assert (folder / "alia-ctx.schema.json").is_file()
    for pattern in (str(folder), f"{folder}/*.js*", f"{folder}/**/*"):
        assert find_inputs([pattern]).files == (str(train),)
    with pytest.raises(DataError, match="the schema of configurations, no text"):
        find_inputs([str(folder / SCHEMA_FILE)])


def test_an_end_that_only_the_model_names_is_left_open(
    base: Path, tmp_path: Path
) -> None:
    """Ids of the base's tokenizer, read from its own vocabulary."""
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config = json.loads((base / "config.json").read_text())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    end, other = settings["eos_token"], next(iter({*ids} - {settings["eos_token"]}))
    for name, stated in ((end, ids[other]), (end, ids[end]), (None, [ids[end], 9999])):
        settings["eos_token"] = name
        (base / "tokenizer_config.json").write_text(json.dumps(settings))
        (base / "config.json").write_text(
            json.dumps({**config, "eos_token_id": stated})
        )
        made = init(base, "--overwrite")
        assert made.exit_code == 0, said(made)
        text = (tmp_path / "mine.yaml").read_text()
        is_open = "to fill in: data.append_eos\n" in made.output
        assert is_open == (name is None)
        assert ("append_eos: true" in text) == (name is not None)
        assert (json.dumps(other) in text) == (stated == ids[other])
        assert (f"A text ends with {json.dumps(end)} ({ids[end]})," in text) == is_open


def test_what_is_said_to_be_run_can_be_run_as_it_stands(tmp_path: Path) -> None:
    """A path with a space is one word of the command."""
    folder = tmp_path / "my models"
    base = write_base(folder / "it's mine")
    config = folder / "mine.yaml"
    made = init(base, "--output", config)
    told = made.output.split("then `")[1].split("`")[0]
    assert shlex.split(told) == ["alia-ctx", "check", str(config)]
    run, _ = load_plan(config)
    place = folder / "base"
    told = how_to_import(run, place).split("`")[1]
    assert shlex.split(told) == ["alia-ctx", "import-hf", str(base), str(place)]
