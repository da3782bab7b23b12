"""Paths of a run: homes, an output in a wrong place, text on both sides."""

from __future__ import annotations

import gzip
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import alia_ctx
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.config.load import load_run, read_config
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import ConfigError, Problem
from alia_ctx.files import write_json
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec
from tests.small_run import write_run


def changed(path: Path, **values: Any) -> Path:
    """The configuration at `path` with values at dotted keys (`a__b` is `a.b`)."""
    document = yaml.safe_load(path.read_text())
    for key, value in values.items():
        part = document
        *way, last = key.split("__")
        for name in way:
            part = part[name]
        part[last] = value
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def problems_of(path: Path, *overrides: str, **options: Any) -> list[Problem]:
    try:
        load_run(path, overrides, **options)
    except ConfigError as error:
        return list(error.problems)
    return []


def text_run(folder: Path, name: str = "run") -> Path:
    """The small run over JSON lines in `folder`/train and `folder`/held."""
    base = folder / name
    base.mkdir(parents=True)
    path = write_run(base)
    line = '{"text": "' + "word " * 100 + '"}\n'
    for place in ("train", "held"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "a.jsonl").write_text(line)
    return changed(
        path,
        data__sources={"text": {"inputs": [str(folder / "train")]}},
        evaluation__held_out={"inputs": [str(folder / "held")]},
    )


# --- homes ----------------------------------------------------------------------------


@pytest.mark.parametrize("home", ["~", f"~{os.environ.get('USER', 'root')}"])
def test_a_home_is_written_out_wherever_a_path_stands(
    tmp_path: Path, home: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        f"""
name: ~x
root: {home}/project
output: ${{root}}/out
tokenizer: "{home}/tokenizer"
stages: {{a: {{init_from: {home}/base}}, b: {{init_from: a}}}}
evaluation: {{held_out: {{inputs: ["{home}/held/*.jsonl", ./~x], store: {home}/s}}}}
data: {{sources: {{c: {{inputs: ["{home}/c"], store: {home}/d, text_key: ~x}}}}}}
"""
    )
    real = os.path.expanduser(home)
    assert real.startswith("/")
    assert read_config(path, [f"stages.b.init_from={home}/other"]) == {
        "name": "~x",
        "root": f"{real}/project",
        "output": f"{real}/project/out",
        "tokenizer": f"{real}/tokenizer",
        "stages": {
            "a": {"init_from": f"{real}/base"},
            "b": {"init_from": f"{real}/other"},
        },
        "evaluation": {
            "held_out": {
                "inputs": [f"{real}/held/*.jsonl", "./~x"],
                "store": f"{real}/s",
            }
        },
        "data": {
            "sources": {
                "c": {"inputs": [f"{real}/c"], "store": f"{real}/d", "text_key": "~x"}
            }
        },
    }


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("output=~nobody-here/out", "output"),
        ("root=~nobody-here", "root"),
        ("tokenizer=~nobody-here/t", "tokenizer"),
        ("stages.short.init_from=~nobody-here/base", "stages.short.init_from"),
        ("evaluation.held_out.store=~nobody-here/h", "evaluation.held_out"),
        ("data.sources.text.store=~nobody-here/h", "data.sources.text"),
    ],
)
def test_a_home_that_does_not_exist(tmp_path: Path, override: str, key: str) -> None:
    problems = problems_of(write_run(tmp_path), override)
    assert key in [p.key for p in problems if "no such home" in p.rule]


def test_an_include_may_be_at_home(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "base.yaml").write_text("a: 1")
    (tmp_path / "run.yaml").write_text("include: ~/base")
    assert read_config(tmp_path / "run.yaml") == {"a": 1}


@pytest.mark.parametrize(
    "key", ["output", "root", "tokenizer", "stages.short.init_from"]
)
def test_a_nul_in_a_path(tmp_path: Path, key: str) -> None:
    problems = problems_of(write_run(tmp_path), f'{key}="a\\0b"')
    assert [p.key for p in problems] == [key]


# --- output ---------------------------------------------------------------------------


@pytest.mark.parametrize("below", ["", "deep/er", "."])
@pytest.mark.parametrize("pattern", ["{train}", "{train}/", "{train}/**/*.jsonl"])
def test_output_inside_text_that_is_read(
    tmp_path: Path, below: str, pattern: str
) -> None:
    path = text_run(tmp_path)
    train = tmp_path / "train"
    inputs = [pattern.format(train=train)]
    changed(path, output=str(train / below), data__sources__text__inputs=inputs)
    assert [p.key for p in problems_of(path)] == ["output"]


def test_output_inside_text_through_a_link(tmp_path: Path) -> None:
    path = text_run(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "train")
    problems = problems_of(changed(path, output=str(tmp_path / "link" / "out")))
    assert [p.key for p in problems] == ["output"]


def test_output_beside_text_and_around_it_is_right(tmp_path: Path) -> None:
    path = text_run(tmp_path)  # the demo has its text inside its output
    for output in (tmp_path, tmp_path / "training", tmp_path / "new" / "run"):
        assert problems_of(changed(path, output=str(output))) == []


@pytest.mark.parametrize("below", ["", "runs/a", "x/.."])
@pytest.mark.parametrize("link", [False, True])
def test_output_inside_what_is_read_as_a_whole(
    tmp_path: Path, below: str, link: bool
) -> None:
    """The tokenizer's directory, and that of a base, there or not yet."""
    path = write_run(tmp_path)
    tokenizer = Path(yaml.safe_load(path.read_text())["tokenizer"])
    base = tmp_path / "base"
    for folder, what in ((tokenizer, "the tokenizer"), (base, "short.init_from")):
        changed(
            path, stages__short__init_from=str(base) if folder == base else "random"
        )
        place = folder
        if link:
            place = tmp_path / f"link-{folder.name}"
            place.symlink_to(folder)
        problems = problems_of(changed(path, output=str(place / below)))
        [rule] = [p.rule for p in problems if p.key == "output"]
        assert rule.startswith("is inside ") and what in rule
    changed(path, stages__short__init_from="random", output=str(tokenizer.parent / "o"))
    assert problems_of(path) == []


def test_output_inside_the_program(tmp_path: Path) -> None:
    inside = Path(alia_ctx.__file__).parent / "runs"
    problems = problems_of(changed(write_run(tmp_path), output=str(inside)))
    assert ["is inside the program" in p.rule for p in problems] == [True]


@pytest.mark.parametrize("sign", ["stages/short/checkpoints/", "plans/short/plan.json"])
@pytest.mark.parametrize("below", ["x", "stages", "stages/short/checkpoints", "hf/a/b"])
def test_output_inside_another_runs(tmp_path: Path, sign: str, below: str) -> None:
    other = tmp_path / "other"
    (other / sign).parent.mkdir(parents=True)
    (other / sign).mkdir() if sign.endswith("/") else (other / sign).write_text("{}")
    problems = problems_of(changed(write_run(tmp_path), output=str(other / below)))
    assert [p.rule.partition(":")[0] for p in problems] == [
        "is inside the output of another run"
    ]
    assert problems_of(changed(tmp_path / "run.yaml", output=str(other))) == []


@pytest.mark.parametrize("below", ["", "x/y"])
def test_output_inside_a_checkpoint_or_a_model(tmp_path: Path, below: str) -> None:
    path = write_run(tmp_path)
    save(tmp_path / "base")
    hf = tmp_path / "hf"
    hf.mkdir()
    (hf / "config.json").write_text("{}")
    (hf / "model-00001-of-00002.safetensors").write_text("")
    for folder, what in ((tmp_path / "base", "a checkpoint"), (hf, "a Hugging Face")):
        problems = problems_of(changed(path, output=str(folder / below)))
        assert len(problems) == 1 and what in problems[0].rule


def test_output_that_is_a_file_or_below_one(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for output in (path, path / "out"):
        problems = problems_of(changed(path, output=str(output)))
        assert [(p.key, "is a file" in p.rule) for p in problems] == [("output", True)]


def test_output_of_a_run_of_another_name(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    save(tmp_path / "out/stages/short/checkpoints/update-00000003", name="other")
    (problem,) = problems_of(path)
    assert problem.key == "output" and "holds the run other" in problem.rule
    assert problems_of(path, "name=other") == []


def save(path: Path, name: str = "small", **model: Any) -> None:
    """A checkpoint as far as its manifest says."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 200,
        **model,
    }
    (path / "state").mkdir(parents=True)
    manifest = Manifest(
        "short",
        3,
        ModelSpec(**sizes),
        RopeSpec("default", 10_000),
        64,
        config={"name": name},
    )
    write_json(path / "manifest.json", manifest.to_json())


# --- text on both sides ---------------------------------------------------------------


def test_text_that_is_apart_is_right(tmp_path: Path) -> None:
    assert problems_of(text_run(tmp_path)) == []
    (tmp_path / "stores").mkdir()
    assert problems_of(write_run(tmp_path / "stores")) == []


@pytest.mark.parametrize("way", ["path", "dots", "symlink", "hard link", "folder link"])
def test_one_file_on_both_sides(tmp_path: Path, way: str) -> None:
    path, file = text_run(tmp_path), tmp_path / "train" / "a.jsonl"
    held = tmp_path / "held" / "b.jsonl"
    if way == "path":
        held = file
    elif way == "dots":
        held = tmp_path / "held" / ".." / "train" / "a.jsonl"
    elif way == "symlink":
        held.symlink_to(file)
    elif way == "hard link":
        os.link(file, held)
    else:
        (tmp_path / "linked").symlink_to(tmp_path / "train")
        held = tmp_path / "linked"
    for inputs in ([str(held)], [str(tmp_path / "held" / "a.jsonl"), str(held)]):
        (problem,) = problems_of(changed(path, evaluation__held_out__inputs=inputs))
        assert problem.key == "evaluation.held_out"
        assert "data.sources.text" in problem.rule


@pytest.mark.parametrize("way", ["path", "symlink", "hard link"])
def test_one_store_on_both_sides(tmp_path: Path, way: str) -> None:
    path, store = write_run(tmp_path), tmp_path / "text"
    if way != "path":
        link = os.symlink if way == "symlink" else os.link
        for suffix in (".bin", ".idx"):
            link(f"{store}{suffix}", tmp_path / f"other{suffix}")
        store = tmp_path / "other"
    (problem,) = problems_of(changed(path, evaluation__held_out__store=str(store)))
    assert problem.key == "evaluation.held_out" and "sources.text" in problem.rule


def test_the_store_that_tokenize_makes_of_a_source(tmp_path: Path) -> None:
    """A source on one side, and on the other the store that it becomes."""
    path = text_run(tmp_path)
    out = tmp_path / "run" / "out" / "tokens"
    out.mkdir(parents=True)
    for name in ("text", "held_out"):
        write_store(out / name, [np.full(10, 5)], 200)
    changed(path, evaluation__held_out={"store": str(out / "text")})
    assert [p.key for p in problems_of(path)] == ["evaluation.held_out"]
    changed(
        path,
        evaluation__held_out={"inputs": [str(tmp_path / "held")]},
        data__sources__text={"store": str(out / "held_out")},
    )
    assert [p.key for p in problems_of(path)] == ["evaluation.held_out"]


@pytest.mark.parametrize(("held", "right"), [("b", True), ("a", False), ("a/x", False)])
def test_below_a_root_that_is_not_mounted(
    tmp_path: Path, held: str, right: bool
) -> None:
    path = text_run(tmp_path)
    changed(
        path,
        root="/not/mounted",
        data__sources__text__inputs=["/not/mounted/a"],
        evaluation__held_out__inputs=[f"/not/mounted/{held}"],
    )
    assert (problems_of(path) == []) is right


# --- text that is none ----------------------------------------------------------------


@pytest.mark.parametrize("place", ["train", "held"])
@pytest.mark.parametrize(
    "content",
    [
        {"a.jsonl": b""},
        {"a.jsonl": b"", "b.txt": b""},
        {"a.jsonl": b"\n \n"},
        {"a.json": b"[]"},
        {"a.txt": b"\xef\xbb\xbf\n"},
        {"a.jsonl.gz": gzip.compress(b"", mtime=0)},
        {"a.jsonl": b'{"text": ""}\n{"text": " "}\n'},
    ],
    ids=str,
)
def test_a_source_without_documents_is_named(
    tmp_path: Path, place: str, content: dict[str, bytes]
) -> None:
    path = text_run(tmp_path)
    (tmp_path / place / "a.jsonl").unlink()
    for name, data in content.items():
        (tmp_path / place / name).write_bytes(data)
    key = {"train": "data.sources.text.inputs", "held": "evaluation.held_out.inputs"}
    problems = [p for p in problems_of(path) if p.key == key[place]]
    assert len(problems) == 1 and "no documents" in problems[0].rule
    (tmp_path / place / "c.jsonl").write_text('{"text": "some words"}\n')
    assert [p for p in problems_of(path) if p.key == key[place]] == []


def test_a_store_without_tokens_is_named(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    for suffix in (".bin", ".idx"):
        (tmp_path / f"s{suffix}").write_bytes(b"")
    changed(path, data__sources__text={"store": str(tmp_path / "s")})
    [problem] = [p for p in problems_of(path) if "empty" in p.rule]
    assert problem.key == "data.sources.text.store"
