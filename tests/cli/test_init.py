"""`init` as its user calls it: from a Hugging Face directory to a configuration that
`check` finds nothing in but what is left to fill in.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_plan, load_run, read_config
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.hf import hub
from alia_ctx.workflow.planned import planned_stage
from alia_ctx.workflow.proposing import budget, contexts
from tests.cli.beginning import filled, init, said, write_base
from tests.hf_models import ALIA, edit_json, save_model

pytestmark = pytest.mark.long


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory, as far as `init` reads it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_base(tmp_path / "mine")


def test_check_finds_the_placeholders_and_nothing_else(
    base: Path, tmp_path: Path
) -> None:
    made = init(base, "--context", "10k", "--gpus", "4")
    assert made.exit_code == 0, said(made)
    file = tmp_path / "mine.yaml"
    with pytest.raises(ConfigError) as refused:
        load_run(file)
    keys = [problem.key for problem in refused.value.problems]
    assert keys == ["data.sources.text.inputs", "evaluation.held_out.inputs"]
    for problem in refused.value.problems:
        assert "placeholder" in problem.rule and ".jsonl" in problem.remedy
    run = load_run(file, filled(tmp_path), read_text=True)
    assert [s.context for s in run.stages.values()] == [2048, 10240]
    assert run.model.num_hidden_layers == 4 and run.model.vocab_size == 352
    assert run.data.prepend_bos and run.data.append_eos
    planned, _ = load_plan(file)
    assert planned.world_size(planned.stages["10k"]) == 4
    shown = CliRunner().invoke(
        app, ["check", str(file), *filled(tmp_path)], catch_exceptions=False
    )
    assert shown.exit_code == 0 and "no problems" in shown.output
    assert f"import-hf {base} runs/mine/base" in shown.output


def test_sizes_are_by_reference(base: Path, tmp_path: Path) -> None:
    assert init(base).exit_code == 0
    text = (tmp_path / "mine.yaml").read_text()
    document = yaml.safe_load(text)
    assert document["model"] == "from_checkpoint"
    edit_json(base / "config.json", num_hidden_layers=6)
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    assert run.model.num_hidden_layers == 6


def test_an_editor_finds_the_schema(base: Path, tmp_path: Path) -> None:
    assert init(base).exit_code == 0
    file = tmp_path / "mine.yaml"
    first = file.read_text().splitlines()[0]
    name = first.removeprefix("# yaml-language-server: $schema=")
    schema = json.loads((tmp_path / name).read_text())
    Draft202012Validator(schema).validate(read_config(file))


def test_nothing_is_overwritten(base: Path, tmp_path: Path) -> None:
    target = tmp_path / "sub" / "run.yaml"
    assert init(base, "--output", target).exit_code == 0
    (target.with_name("alia-ctx.schema.json")).write_text("{}")  # somebody else's
    target.write_text("mine")
    assert "is there already" in said(init(base, "--output", target))
    assert target.read_text() == "mine"
    assert init(base, "--output", target, "--overwrite").exit_code == 0
    assert target.read_text() != "mine"
    assert target.with_name("alia-ctx.schema.json").read_text() == "{}"


def test_a_factor_is_written_as_it_is(base: Path, tmp_path: Path) -> None:
    """500,000 of 131,072 tokens are 3.814697265625, which has 13 digits."""
    edit_json(base / "config.json", max_position_embeddings=131072)
    made = init(base, "--context", "500000")
    assert made.exit_code == 0, said(made)
    [stage] = load_run(tmp_path / "mine.yaml", filled(tmp_path)).stages.values()
    assert stage.rope.factor == 500_000 / 131_072


def test_the_cards_own_stages() -> None:
    assert contexts(4096, 163840) == [32768, 163840]
    assert contexts(8192, 32768) == [32768]
    assert contexts(8192, 65536) == [65536]
    assert contexts(4096, 1 << 20) == [32768, 262144, 1048576]
    assert budget(ALIA, 32768) == (4_194_304, 9e-7)


@pytest.mark.parametrize(
    ("text", "context"),
    [("1k", 1024), ("1K", 1024), ("2_048", 2048), ("2048", 2048), ("1M", 1 << 20)],
)
def test_contexts_as_they_are_written(
    text: str, context: int, base: Path, tmp_path: Path
) -> None:
    assert init(base, "--context", text).exit_code == 0
    document = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert [s["context"] for s in document["stages"].values()][-1] == context


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--context", "160q"], ["--context=160q", "160k"]),
        (["--context", "1e5"], ["--context"]),
        (["--context", "0"], ["--context"]),
        (["--context", "1025"], ["--context", "even"]),
        (["--context", "256"], ["--context=256", "256 tokens that the base has"]),
        (["--gpus", "12"], ["--gpus=12", "8"]),
        (["--gpus", "-1"], ["--gpus=-1"]),
        (["--gpus", "0", "--on", "h200"], ["--gpus=0", "not --on h200", "one of them"]),
        (["--on", "h300"], ["--on=h300", "h200"]),
        (["--output", "mine/config.json/x.yaml"], ["cannot be written"]),
        (["--text", "nowhere/"], ["data.sources.text.inputs", "nowhere/"]),
    ],
)
def test_bad_arguments_are_named(
    arguments: list[str], words: list[str], base: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.rglob("*"))
    message = said(init(base, *arguments))
    assert all(word in message for word in words), message
    assert sorted(tmp_path.rglob("*")) == before


def test_sizes_and_tokenizer_are_enough(base: Path, tmp_path: Path) -> None:
    """On a laptop the weights of a large model are not there."""
    with_weights = init(base)
    text = (tmp_path / "mine.yaml").read_text()
    (base / "model.safetensors").unlink()
    made = init(base, "--overwrite")
    assert made.exit_code == with_weights.exit_code == 0, said(made)
    assert (tmp_path / "mine.yaml").read_text() == text
    note = f"note: {base} holds no weights"
    assert note in said(made) and note not in said(with_weights)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), "no such directory"),
        (lambda d: (d / "config.json").unlink(), "config.json: there is no such file"),
        (lambda d: (d / "config.json").write_text("{"), "not readable as JSON"),
        (lambda d: (d / "tokenizer.json").write_text("{"), "no tokenizer that"),
        (lambda d: edit_json(d / "config.json", model_type="gpt2"), "gpt2"),
        (lambda d: (d / "manifest.json").write_text("{}"), "is a checkpoint"),
        (lambda d: edit_json(d / "config.json", hidden_size="64"), "hidden_size"),
    ],
)
def test_a_bad_directory_is_one_clear_line(
    damage: Any, words: str, base: Path, tmp_path: Path
) -> None:
    damage(base)
    message = said(init(base)).removeprefix(f"reading {base}\n")
    assert words in message and str(base) in message
    assert not (tmp_path / "mine.yaml").exists()


def test_too_few_gpus_say_how_many_do(base: Path) -> None:
    edit_json(
        base / "config.json", hidden_size=8192, num_hidden_layers=48, head_dim=128
    )
    edit_json(base / "config.json", num_attention_heads=64, num_key_value_heads=8)
    edit_json(base / "config.json", intermediate_size=24576, vocab_size=256_000)
    message = said(init(base, "--context", "32k", "--gpus", "1"))
    assert "--gpus=1" in message and "take 16 GPUs" in message
    message = said(init(base, "--context", "32k", "--on", "h100-80"))
    assert "16 x h100-80" in message


def seven(base: Path) -> None:
    """The sizes of a model of 7 billion parameters."""
    edit_json(
        base / "config.json", hidden_size=4096, num_hidden_layers=32, head_dim=128
    )
    edit_json(base / "config.json", num_attention_heads=32, num_key_value_heads=32)
    edit_json(base / "config.json", intermediate_size=11_008, vocab_size=32_000)


def test_settings_that_give_room_are_written(base: Path, tmp_path: Path) -> None:
    """Two H100 hold such a model at 163,840 tokens where its layers' inputs wait on the
    host, which takes hardly any time: no more GPUs are asked for.
    """
    seven(base)
    made = init(base, "--context", "160k", "--gpus", "2", "--on", "h100-80")
    assert made.exit_code == 0, said(made)
    text = (tmp_path / "mine.yaml").read_text()
    assert "# Without it a stage has no room on so few GPUs" in text
    assert "note: without it a stage has no room on so few GPUs" in said(made)
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    assert run.engine.offload_activations and run.engine.mlp_chunk_tokens is None
    assert all(planned_stage(run, name).fits for name in run.stages)
    # Where there is room without it nothing is written.
    made = init(
        base, "--context", "160k", "--gpus", "4", "--on", "h100-80", "--overwrite"
    )
    assert made.exit_code == 0, said(made)
    assert "offload" not in (tmp_path / "mine.yaml").read_text()
    assert "no room" not in said(made)


def test_a_shorter_context_is_asked_for_where_there_is_one(base: Path) -> None:
    """Of a head and a layer more GPUs cut nothing; of a vocabulary that alone is too large
    not even a row of the base's context has room.
    """
    edit_json(base / "config.json", hidden_size=4096, num_hidden_layers=1, head_dim=128)
    edit_json(base / "config.json", num_attention_heads=32, num_key_value_heads=1)
    edit_json(base / "config.json", intermediate_size=11_008, vocab_size=1_500_000)
    message = said(init(base, "--context", "32k", "--gpus", "1", "--on", "h100-80"))
    assert (
        "--gpus=1" in message
        and "shorter --context do; name others with --on" in message
    )


# --- the hub --------------------------------------------------------------------------------


@pytest.fixture
def deaf() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(server.accept()[0])
                except OSError:
                    return

        Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        for connection in taken:
            connection.close()


@pytest.mark.parametrize("command", ["init", "import-hf"])
def test_a_name_of_the_hub_without_it(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    arguments = [command, "org/name", *(["base"] if command == "import-hf" else [])]
    message = said(CliRunner().invoke(app, arguments))
    assert "org/name: there is no such directory" in message
    assert "HF_HUB_OFFLINE" in message
    assert not (tmp_path / "base").exists()


def test_a_hub_that_never_answers(
    deaf: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{deaf}"
    )
    monkeypatch.setattr(hub, "_ANSWER_SECONDS", 0.2)
    with pytest.raises(AliaError, match=r"org/name: there is no .*cannot be asked"):
        hub.model_directory(Path("org/name"))


def test_what_the_cache_holds_is_found_without_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "0" * 40
    folder = tmp_path / "hub" / "models--org--small"
    save_model(folder / "snapshots" / revision)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    from huggingface_hub import _tree_cache

    entry = _tree_cache.TreeCacheEntry
    names = [p.name for p in (folder / "snapshots" / revision).iterdir()]
    files = {n: entry(1, n, None, None, None) for n in names}
    _tree_cache.write_tree_cache(str(folder), revision, files)
    found = hub.model_directory(Path("org/small"))
    assert found == folder / "snapshots" / revision
    made = init("org/small")
    assert made.exit_code == 0, said(made)
    text = (tmp_path / "small.yaml").read_text()
    assert "import-hf org/small runs/small/base" in text
    assert yaml.safe_load(text)["hf_base"] == str(found)


@pytest.mark.parametrize("weights", [True, False])
def test_what_is_fetched_from_the_hub(
    weights: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the hub: one revision, asked within a time limit; weights once, and
    only where they are wanted.
    """
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json"]
    fetched: list[str] = []

    class Api:
        def model_info(self, name: str, *, timeout: float) -> SimpleNamespace:
            assert (name, timeout) == ("org/small", hub._ANSWER_SECONDS)
            siblings = [SimpleNamespace(rfilename=file) for file in files]
            return SimpleNamespace(sha="5" * 40, siblings=siblings)

    def download(name: str, *, ignore_patterns: list[str], **about: Any) -> str:
        assert name == "org/small" and about["revision"] == "5" * 40
        for file in files:
            if not any(fnmatch(file, pattern) for pattern in ignore_patterns):
                fetched.append(file)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = hub.model_directory(Path("org/small"), weights=weights)
    assert found == tmp_path / "snapshot"
    small = ["config.json", "tokenizer.json"]
    assert fetched == ([small[0], "model.safetensors", small[1]] if weights else small)
