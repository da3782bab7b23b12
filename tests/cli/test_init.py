"""`init` as its user calls it: from a Hugging Face directory to a configuration that
`check` finds nothing in but what is left to fill in.
"""

from __future__ import annotations

import atexit
import json
import shlex
import shutil
import socket
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from jsonschema import Draft202012Validator
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from typer.testing import CliRunner, Result

from alia_ctx.cli.run_commands import app
from alia_ctx.config.load import load_plan, load_run, read_config
from alia_ctx.errors import AliaError, ConfigError
from alia_ctx.hf import hub
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.comparing_rope import base_rope
from alia_ctx.workflow.proposing import budget, contexts
from tests.hf_models import ALIA, edit_json, save_model
from tests.text_data import write_jsonl
from tests.tokenizers import byte_level, save, with_template

pytestmark = pytest.mark.long

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "num_hidden_layers": 4,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 352,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
SCALED = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 2.0,
        "high_freq_factor": 6.0,
        "original_max_position_embeddings": 32,
    },
    # As Llama 3.1: less than the context by its factor.
    "llama3 beyond its factor": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 16.0,
        "attention_factor": 1.3,
    },
    "linear": {"rope_type": "linear", "factor": 2.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
}


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's directory, as far as `init` reads it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    return write_base(tmp_path / "mine")


def write_base(directory: Path, **changes: Any) -> Path:
    save(with_template(byte_level()), directory)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def init(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["init", *map(str, arguments)])


def said(result: Result) -> str:
    assert result.exception is None or isinstance(
        result.exception, AliaError | SystemExit
    ), result.exception
    return result.output + str(result.exception or "")


def filled(folder: Path) -> list[str]:
    """Overrides that fill in the placeholders."""
    train = write_jsonl(folder / "train.jsonl", ["a text " * 2000, "another " * 9])
    held = write_jsonl(folder / "held.jsonl", ["other text " * 2000])
    return [
        f"data.sources.text.inputs=[{train}]",
        f"evaluation.held_out.inputs=[{held}]",
    ]


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


@pytest.mark.parametrize("kind", SCALED)
def test_a_scaled_base_keeps_its_scaling(kind: str, base: Path, tmp_path: Path) -> None:
    scaling = SCALED[kind]
    edit_json(base / "config.json", rope_scaling=scaling)
    made = init(base, "--context", "4k")
    assert made.exit_code == 0, said(made)
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    for stage in run.stages.values():
        assert stage.rope.type == scaling["rope_type"]
        for name in ("low_freq_factor", "high_freq_factor", "beta_fast"):
            assert getattr(stage.rope, name) == scaling.get(name)
        original = scaling.get("original_max_position_embeddings")
        if original is not None:
            assert stage.rope.original_max_position_embeddings == original
            assert (stage.rope.factor or 0) * original >= stage.context
        if kind == "linear":  # 256 from before its factor: 512 by now
            assert stage.rope.factor == 2 * stage.context / 512
        # A temperature of the base's own is not its factor's.
        assert stage.rope.attention_factor == scaling.get("attention_factor")


def test_a_yarn_that_is_published_with_its_native_length_is_not_stretched_twice(
    base: Path, tmp_path: Path
) -> None:
    yarn = {**SCALED["yarn"], "original_max_position_embeddings": 256}
    edit_json(base / "config.json", rope_scaling=yarn)
    assert init(base, "--context", "1024").exit_code == 0
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    assert [stage.rope.factor for stage in run.stages.values()] == [4.0]


def test_a_factor_is_written_as_it_is(base: Path, tmp_path: Path) -> None:
    """500,000 of 131,072 tokens are 3.814697265625, which has 13 digits."""
    edit_json(base / "config.json", max_position_embeddings=131072)
    made = init(base, "--context", "500000")
    assert made.exit_code == 0, said(made)
    [stage] = load_run(tmp_path / "mine.yaml", filled(tmp_path)).stages.values()
    assert stage.rope.factor == 500_000 / 131_072


LINEAR = {"rope_type": "linear", "factor": 4.0}


def frequencies(rope: RopeSpec, published: int, length: int) -> np.ndarray:
    """Of heads of 16 at rows of a length, by transformers."""
    fields = {k: v for k, v in vars(rope).items() if v is not None}
    parameters = {"rope_type": fields.pop("type"), "rope_theta": fields.pop("theta")}
    if rope.type == "dynamic":
        published = fields.pop("original_max_position_embeddings")
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=published,
        rope_parameters={**parameters, **fields},
    )
    if rope.type == "default":
        return np.asarray(rope.theta ** -(np.arange(0, 16, 2) / 16))
    made, _ = ROPE_INIT_FUNCTIONS[rope.type](config, "cpu", seq_len=length)
    return np.asarray(made.double().numpy())


@pytest.mark.parametrize(
    ("about", "reads"),
    [
        ({}, 1024),  # as transformers documents it
        ({"max_sequence_length": 1024}, 1024),
        ({"max_sequence_length": 256}, 256),
        ({"tokenizer": 1024}, 1024),
        ({"tokenizer": 256}, 256),
        ({"tokenizer": 1 << 40}, 1024),
        ({"export": True}, 256),
    ],
)
def test_a_linear_base_is_stretched_from_what_it_reads(
    about: dict[str, Any], reads: int, base: Path, tmp_path: Path
) -> None:
    """By as much as the context grows over it, on top of its own factor: the furthest angle
    is the one that it was trained to.
    """
    said_at = dict(about)
    if "tokenizer" in said_at:
        length = said_at.pop("tokenizer")
        edit_json(base / "tokenizer_config.json", model_max_length=length)
    if said_at.pop("export", None):
        (base / "alia_ctx_export.json").write_text("{}")
    edit_json(base / "config.json", rope_scaling=LINEAR, **said_at)
    made = init(base, "--context", "16k")
    assert made.exit_code == 0, said(made)
    file = tmp_path / "mine.yaml"
    run = load_run(file, filled(tmp_path))
    before = frequencies(RopeSpec("linear", 1e4, factor=4.0), 256, reads) * reads
    for stage in run.stages.values():
        now = frequencies(stage.rope, stage.context, stage.context) * stage.context
        assert now == pytest.approx(before, rel=1e-5)  # fp32 on both sides
    asks = not about or about.get("tokenizer") == 1 << 40
    text = " ".join(file.read_text().replace("#", " ").split())
    assert ("Not known: whether the 256 tokens" in text) == asks
    assert ("In that case write factor: 32." in text) == asks  # 4 x 2,048 / 256
    assert ("1,024 or 256 tokens" in made.output) == asks
    base_rope_, trained = compare_base(run)
    assert (base_rope_.factor, trained) == (4.0, reads)


@pytest.mark.parametrize("scaling", [None, *SCALED.values()])
def test_no_base_is_stretched_back_or_beyond(
    scaling: dict[str, Any] | None, base: Path, tmp_path: Path
) -> None:
    """No frequency of the base is raised, and none falls by more than the context grows."""
    if scaling is not None:
        edit_json(base / "config.json", rope_scaling=scaling)
    assert init(base, "--context", "4k").exit_code == 0
    run = load_run(tmp_path / "mine.yaml", filled(tmp_path))
    rope, trained = compare_base(run)
    before = frequencies(rope, trained, trained)
    for stage in run.stages.values():
        ratio = frequencies(stage.rope, stage.context, stage.context) / before
        assert ratio.max() <= 1 + 1e-5
        if rope.type == "dynamic":  # what transformers itself makes of such a row
            own = frequencies(rope, 256, stage.context)
            assert ratio * before == pytest.approx(own)
            continue
        # A factor has to reach the context (`RopeSpec.problems`), which that of Llama
        # 3.1 does not: 16 x 8 = 128 tokens of its 256.
        reach = rope.original_max_position_embeddings
        seen = min(256, (reach or 256) * (rope.factor or 1))
        assert ratio.min() >= seen / stage.context * (1 - 1e-5)


def compare_base(run: Any) -> tuple[RopeSpec, int]:
    return base_rope(run, next(iter(run.stages)))


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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: shutil.rmtree(d), "no such directory"),
        (lambda d: (d / "config.json").unlink(), "config.json: there is no such file"),
        (lambda d: (d / "config.json").write_text("{"), "not readable as JSON"),
        (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
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
