"""Numbers that no setting can mean, and names that YAML, a disk or a shell would take for
something else.
"""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.config.texts import written
from alia_ctx.errors import ConfigError
from alia_ctx.spec.model import ModelSpec
from tests.paths import ROOT

ALIA = ROOT / "configs" / "alia-40b.yaml"


def number_fields(cls: Any, prefix: str) -> list[str]:
    """Dotted keys of every setting that is a number, one of each mapping and list."""
    hints = get_type_hints(cls)
    keys = []
    for field in dataclasses.fields(cls):
        pending = [(hints[field.name], f"{prefix}{field.name}")]
        while pending:
            hint, key = pending.pop()
            origin = get_origin(hint)
            if dataclasses.is_dataclass(hint):
                keys += number_fields(hint, f"{key}.")
            elif origin in (Union, types.UnionType):
                pending += [(option, key) for option in get_args(hint)]
            elif origin is dict:
                name = {"stages": "32k", "sources": "long"}.get(field.name, "long")
                pending.append((get_args(hint)[1], f"{key}.{name}"))
            elif hint in (int, float):
                keys.append(key)
    return keys


NUMBERS = number_fields(RunConfig, "")


def test_the_walk_finds_the_settings() -> None:
    assert {
        "seed",
        "model.rms_norm_eps",
        "cluster.efficiency",
        "optimizer.beta1",
        "engine.hang_minutes",
        "stages.32k.learning_rate",
        "stages.32k.rope.theta",
        "stages.32k.rope.attention_factor",
        "stages.32k.pack.weights.long",
        "stages.32k.pack.max_epochs",
        "data.sources.long.max_document_bytes",
    } <= set(NUMBERS)


@pytest.mark.parametrize("key", NUMBERS)
def test_no_setting_takes_what_is_no_number(key: str) -> None:
    for value in (".nan", ".inf", "-.inf", "1.0e+60", "1" + "0" * 40, "9" * 400):
        with pytest.raises(ConfigError) as caught:
            load_run(ALIA, [f"{key}={value}"])
        assert key in {problem.key for problem in caught.value.problems}, value


def test_numbers_inside_lists() -> None:
    buckets = "stages.32k.pack.length_buckets=[{min_tokens: 5, share: .nan}]"
    with pytest.raises(ConfigError, match=r"length_buckets\[0\]\.share=nan"):
        load_run(ALIA, [buckets])


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1",
        "checkpoint.keep_every=-1",
        "evaluation.every_updates=-3",
        "data.workers=-2",
        "data.workers=1000000",
        "engine.timeout_minutes=1.0e+30",
        "engine.hang_minutes=1.0e+12",
        "optimizer.epsilon=1.0e-300",
        "model.rms_norm_eps=-1",
        "model.initializer_range=-0.1",
    ],
)
def test_numbers_out_of_their_range(override: str) -> None:
    key, _, _ = override.partition("=")
    with pytest.raises(ConfigError) as caught:
        load_run(ALIA, [override])
    assert [problem.key for problem in caught.value.problems] == [key]


@pytest.mark.parametrize("key", NUMBERS)
def test_a_zero_is_taken_or_refused(key: str) -> None:
    """It divides nothing before it is refused."""
    try:
        load_run(ALIA, [f"{key}=0"])
    except ConfigError as error:
        assert error.problems


@pytest.mark.parametrize("tokens", ["", "stages.32k.tokens=0"])
@pytest.mark.parametrize("context", [0, -5])
def test_a_context_of_nothing_is_named(context: int, tokens: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_run(ALIA, [f"stages.32k.context={context}", *filter(None, [tokens])])
    assert "stages.32k.context" in [p.key for p in caught.value.problems]


def test_a_model_from_elsewhere_is_asked_too() -> None:
    for bad in (float("nan"), float("inf")):
        spec = ModelSpec(2, 8, 8, 2, 2, 4, 16, rms_norm_eps=bad)
        assert [p.key for p in spec.problems()] == ["model.rms_norm_eps"]


# --- names ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["4096", "012", "1e3", "yes", "null", "1:30", "2024-01-01", "0x10", "-5"]
)
def test_a_key_is_the_name_that_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"stages:\n  {name}: {{tokens: 1}}\n  'b': {{init_from: '{name}'}}")
    stages = read_config(path, [f"stages.{name}.tokens=2"])["stages"]
    assert stages == {name: {"tokens": 2}, "b": {"init_from": name}}


def renamed(tmp_path: Path, stage: str, init_from: str) -> Path:
    """ALIA with its first stage called `stage`, and the second starting from `init_from`;
    both texts go into YAML as they are.
    """
    document = yaml.safe_load((ROOT / "configs/runs/alia-40b.yaml").read_text())
    document["include"] = [str(ROOT / "configs/runs" / i) for i in document["include"]]
    document["stages"]["160k"]["init_from"] = "ORIGIN"
    text = yaml.safe_dump(document, sort_keys=False).replace("  32k:", f"  {stage}:")
    path = tmp_path / "run.yaml"
    path.write_text(text.replace("ORIGIN", init_from))
    return path


@pytest.mark.parametrize(
    ("stage", "init_from"),
    [
        *(("'012'", "'012'"), ("yes", "'yes'")),
        *((name, name) for name in ("4096", "012", "yes", "on", "no", "null", "1_000")),
        *((name, name) for name in ("1e3", "true", "1.5", "0x10", "Null", "0b1")),
    ],
)
def test_a_stage_with_a_number_for_a_name_is_a_stage(
    tmp_path: Path, stage: str, init_from: str
) -> None:
    path = renamed(tmp_path, stage, init_from)
    name = stage.strip("'")
    run = load_run(path, [f"stages.{name}.tokens=4194304", f"name='{name}'"])
    assert list(run.stages) == [name, "160k", "fc"]
    assert run.stages["160k"].init_from == name
    assert run.stages[name].tokens == 4_194_304
    assert load_run(path, [f"stages.160k.init_from={init_from}"]) is not None


@pytest.mark.parametrize("value", ["012", "1:30", "yes", "1.5", "[1]"])
def test_a_value_that_yaml_takes_for_another_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"stages\.32k\.context="):
        load_run(ALIA, [f"stages.32k.context={value}"])


WORDS = [
    "yes",
    "off",
    "1e3",
    "1_000",
    "1.5",
    "012",
    "1:30.5",
    "2024-01-01",
    "true",
    ".inf",
]


@pytest.mark.parametrize("word", WORDS)
def test_a_setting_that_is_text_is_what_is_written(tmp_path: Path, word: str) -> None:
    """Wherever it stands; where it may be nothing, null is nothing, and so is an empty one."""
    path = tmp_path / "run.yaml"
    path.write_text(
        f"name: {word}\nroot: null\nhf_base: ~\noutput:\nnotes: [{word}]\n"
        f"data: {{sources: {{a: {{inputs: [{word}], store: {word}}}}}}}\n"
        f"stages: {{s: {{<<: {{init_from: {word}}}, rope: {{type: {word}}}}}}}\n"
        f"stage_defaults: {{init_from: {word}}}\n"
    )
    raw = read_config(path)
    assert (raw["name"], raw["notes"]) == (word, [word])
    assert raw["root"] is raw["hf_base"] is raw["output"] is None
    assert raw["data"]["sources"]["a"] == {"inputs": [word], "store": word}
    assert raw["stages"]["s"] == {"init_from": word, "rope": {"type": word}}
    for override in (f"stages.s.init_from={word}", f"stages.s={{init_from: {word}}}"):
        other = read_config(ALIA, [override, f"launch={{account: {word}}}"])
        assert other["stages"]["s"]["init_from"] == word
        assert other["launch"]["account"] == word
    assert read_config(path, ["stages.s=null"])["stages"] == {}


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
@example("${x}")
@example("a\\\\${x}\\")
@example("\\???x")
@example("\x85a\ufeff\u2028")
@settings(max_examples=150, deadline=None)
def test_text_that_is_written_is_read_as_it_was(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.yaml")
        path.write_text(f"name: {written(text)}\nnotes: [{written(text)}]\n")
        if set(text[:-3]) <= {"\\"} and text.endswith("???"):
            return  # spelled as a placeholder, which `???` itself is
        assert read_config(path) == {"name": text, "notes": [text]}


@pytest.mark.parametrize("first", ["4096", "'4096'", '"4096"'])
def test_the_same_name_twice(tmp_path: Path, first: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"# a comment\nstages:\n  {first}: 1\n  '4096': 2\n")
    with pytest.raises(ConfigError, match=r"4096 stands twice\n.*line 4"):
        read_config(path)


ODD = ["a/b", "../x", ".", "..", "", ".hidden", "-x", "a ", "~", "a\\b", "*", "a:b"]
ODD += ["a\nb", "a\0b", "[red]", "${name}", "x" * 200]


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("place", ["stages", "sources"])
def test_a_name_that_cannot_be_a_files_is_refused(
    tmp_path: Path, place: str, name: str
) -> None:
    entry = {"init_from": "32k"} if place == "stages" else {"inputs": ["/gpfs/x"]}
    added = {place: {name: entry}}
    path = tmp_path / "run.yaml"
    document = {
        "include": str(ALIA),
        **(added if place == "stages" else {"data": added}),
    }
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    rules = [p for p in caught.value.problems if "cannot be a name" in p.rule]
    assert [p.value for p in rules] == [name]


@pytest.mark.parametrize(
    "name", ["held_out", "4096", "wiki.en", "a b", "català-2", "_x"]
)
def test_reserved_and_usual_names(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run.yaml"
    source = {"data": {"sources": {name: {"inputs": ["/gpfs/projects/alia/x"]}}}}
    weights = {"stage_defaults": {"pack": {"weights": {name: 0}}}}
    path.write_text(yaml.safe_dump({"include": str(ALIA), **source, **weights}))
    if name == "held_out":
        with pytest.raises(ConfigError, match=r"data\.sources\.held_out"):
            load_run(path)
    else:
        assert name in load_run(path).data.sources


def test_a_stage_called_random_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"stages\.random.*random weights"):
        load_run(ALIA, ["stages.random.init_from=32k"])


def test_no_traceback_on_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"include: {ALIA}\nstages:\n  32k:\n    rope: {{factor: .inf}}\n")
    command = [sys.executable, "-m", "alia_ctx.cli", "check", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "stages.32k.rope.factor=inf" in done.stderr
    assert "Traceback" not in done.stderr
