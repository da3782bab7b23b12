"""`alia-ctx evaluate` on directories, as somebody without a run uses it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alia_ctx.errors import AliaError
from alia_ctx.hf.convert import import_hf
from tests.distributed import run_distributed
from tests.evaluated_model import VOCABULARY, write_model, write_text, write_tokenizer
from tests.hf_models import make_model

NATIVE, CONTEXT = 128, 256
ALL = ("--text", "text", "--context", f"{NATIVE},{CONTEXT}", "--json")
# Arguments -> what the message names.
MISTAKES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "no model": (("nothing", "--text", "text"), ("nothing: is neither", "config.json")),
    "a directory of text": (("text", "--text", "text"), ("text: is neither",)),
    "another that is none": (
        ("llama", "text", "--text", "text"),
        ("text: is neither",),
    ),
    "nothing to measure": (("llama",), ("--text", "--retrieval")),
    "no text": (("llama", "--text", "gone"), ("gone: matches no file",)),
    "context in words": (("llama", *ALL[:2], "--context", "8k"), ("--context=8k",)),
    "too long": (("llama", *ALL[:2], "--context", "99999"), ("99,999 tokens", "text")),
    "no evaluator": (("llama", *ALL[:2], "--evaluators", "ppl"), ("--evaluators=ppl",)),
    "no task": (("llama", "--retrieval", "--task", "niah"), ("niah_single_1",)),
    "no language": (("llama", "--retrieval", "--language", "fr"), ("--language", "fr")),
    "no samples": (("llama", "--retrieval", "--samples", "0"), ("samples=0",)),
    "no haystack": (("llama", "--retrieval", "--haystack", "hay"), ("haystack=hay",)),
    "no precision": (("llama", *ALL[:2], "--precision", "fp8"), ("--precision=fp8",)),
    "a layout in words": (("llama", *ALL[:2], "--layout", "tp"), ("--layout=tp",)),
    "too few ranks": (("llama", *ALL[:2], "--layout", "tp=2"), ("2", "ranks")),
    "no contrast": (
        ("llama", *ALL[:2], "--contrast", "gpt"),
        ("--contrast gpt", "llama"),
    ),
    "a stage": (("llama", *ALL[:2], "--stage", "32k"), ("--stage=32k",)),
    "positions that end": (
        ("llama", "gpt2", *ALL),
        ("--context=256", "gpt2", "128", "leave the model out"),
    ),
    "others' positions that end": (
        ("llama", "opt", "gptj", "--context", "129", "--retrieval"),
        ("opt can read", "gptj can read", "128"),
    ),
    "no weights": (("llama", "weightless", *ALL), ("weightless", "no weight files")),
    "weights of another model": (("llama", "misshapen", *ALL), ("misshapen",)),
    "no tokenizer, at the end": (
        ("llama", "bare", *ALL),
        ("bare: holds no tokenizer", "--tokenizer"),
    ),
    "a wrong value, and nothing to measure on": (
        ("llama", "--context", "8k", "--precision", "fp8", "--samples", "0"),
        ("--context=8k", "--precision=fp8", "--samples=0"),
    ),
    "tokens without rows": (
        ("llama", "small {a}", *ALL[:2]),
        ("small {a}", "128 (vocab_size)", "small {a}' CHECKPOINT --resize-embeddings"),
    ),
    "another's tokenizer": (
        ("llama", *ALL[:2], "--tokenizer", "wordy"),
        ("wordy", "rows of the embedding", f"{VOCABULARY} (vocab_size)"),
    ),
    "text under another key": (
        ("llama", "--text", "words.jsonl"),
        ("words.jsonl", "--text-key", "words"),
    ),
    "the output of a run": (
        ("run", *ALL[:2]),
        ("run's output", "YAML", "run/stages/s/checkpoints/update-00000002"),
    ),
    "a stage's folder": (
        ("run/stages/s", *ALL[:2]),
        ("holds checkpoints", "run/stages/s/checkpoints/update-00000002"),
    ),
    "no tokenizer": (("bare", *ALL[:2]), ("bare: holds no tokenizer", "--tokenizer")),
}


def command(*arguments: str) -> str:
    """Standard output of `alia-ctx evaluate`; the message where it refuses."""
    from alia_ctx.cli.run_commands import app

    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out):
            code = app(["evaluate", *arguments], standalone_mode=False)
    except AliaError as error:
        return f"{type(error).__name__}: {error}"
    return out.getvalue() + (f"exit status {code}" if code else "")


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    from alia_ctx.workflow.evaluated_models import ModelOpener

    os.chdir(folder)
    opened: list[str] = []
    original = ModelOpener.open

    def noting(self: Any, model: Any, context: int) -> Any:
        opened.append(f"{model.name} {context}")
        return original(self, model, context)

    ModelOpener.open = noting  # type: ignore[method-assign]
    seen: dict[str, Any] = {}

    def evaluate(what: str, *arguments: str) -> None:
        opened.clear()
        seen[what] = command(*arguments), list(opened)

    evaluate("first", "llama", "neox", "dynamic", *ALL)
    seen["left behind"] = sorted(os.listdir("evaluation"))
    evaluate("again", "llama", "neox", "dynamic", *ALL)
    (file,) = Path("evaluation/llama").glob("positions-128-*.json")
    file.write_text(file.read_text().replace('"beyond": 0', '"beyond": 1'))
    evaluate("edited", "llama", "neox", "dynamic", *ALL)
    evaluate("fewer", "llama", "neox", "dynamic", *ALL, "--documents", "2")
    evaluate("as at first", "llama", "neox", "dynamic", *ALL)
    evaluate("tables", "llama", "neox", "dynamic", *ALL[:-1], "--documents", "2")
    evaluate("unreadable", "llama", "late", "dynamic", *ALL[:-1], "--documents", "2")
    evaluate("longer alone", "llama", *ALL[:3], f"{CONTEXT}", "--json")
    for what, (arguments, _) in MISTAKES.items():
        evaluate(what, *arguments)
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

    root = tmp_path_factory.mktemp("evaluate")
    tokenizer = write_tokenizer(root, write_text(root / "text", documents=4))
    sizes = {"vocab_size": VOCABULARY, "max_position_embeddings": NATIVE}
    for name, rope in (("llama", "default"), ("dynamic", "dynamic")):
        model = make_model("llama", rope, torch.float32, **sizes)
        write_model(root / name, model, tokenizer)
    torch.manual_seed(1)
    config = GPTNeoXConfig(
        **sizes,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    write_model(root / "neox", GPTNeoXForCausalLM(config), tokenizer)
    make_model("llama", "default", torch.float32, **sizes).save_pretrained(
        root / "bare"
    )
    small = make_model(
        "llama", "default", torch.float32, **(sizes | {"vocab_size": 128})
    )
    write_model(root / "small {a}", small, tokenizer)
    wordy = AutoTokenizer.from_pretrained(tokenizer)
    wordy.add_tokens([f"<wordy {n}>" for n in range(100)])
    wordy.save_pretrained(root / "wordy")
    (root / "words.jsonl").write_text(json.dumps({"words": "a b c"}))
    checkpoints = root / "run/stages/s/checkpoints"
    import_hf(root / "llama", checkpoints / "update-00000002")
    for name, made in tables_of_positions().items():
        write_model(root / name, made, tokenizer)
    # Headers that say nothing wrong, and weights that are another model's.
    shutil.copytree(root / "neox", root / "late")
    change(root / "late", hidden_size=64)
    shutil.copytree(root / "llama", root / "misshapen")
    change(root / "misshapen", intermediate_size=80)
    shutil.copytree(root / "llama", root / "weightless")
    (root / "weightless/model.safetensors").unlink()
    return root


def tables_of_positions() -> dict[str, Any]:
    """Models that have 128 positions and no more: learned, learned from the third row on,
    and tabulated.
    """
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTJConfig,
        GPTJForCausalLM,
        OPTConfig,
        OPTForCausalLM,
    )

    gpt = {"vocab_size": VOCABULARY, "n_positions": NATIVE}
    gpt |= {"n_embd": 32, "n_layer": 1, "n_head": 4}
    opt = OPTConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=NATIVE,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=1,
        num_attention_heads=4,
    )
    return {
        "gpt2": GPT2LMHeadModel(GPT2Config(**gpt)),
        "opt": OPTForCausalLM(opt),
        "gptj": GPTJForCausalLM(GPTJConfig(**gpt, rotary_dim=4)),
    }


def change(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.fixture(scope="module")
def seen(folder: Path) -> dict[str, Any]:
    return dict(run_distributed(scenarios, 1, str(folder), timeout=600)[0])


def results(printed: str) -> dict[tuple[str, str], Any]:
    document = json.loads(printed)
    return {(r["name"], r["evaluator"]): r for r in document["results"]}


def test_one_table_of_models_and_contexts_the_base_first(seen: dict[str, Any]) -> None:
    printed, opened = seen["first"]
    names = list(dict.fromkeys(name for name, _ in results(printed)))
    assert names == [
        f"{m} at {c}" for m in ("llama", "neox", "dynamic") for c in (128, 256)
    ]
    assert opened == names_opened(names)
    assert json.loads(printed)["native_context"] == NATIVE
    assert any(
        said.startswith("neox at 256: ") for said in json.loads(printed)["verdicts"]
    )
    assert seen["left behind"] == [
        "dynamic",
        "llama",
        "neox",
    ]  # what was imported is gone


def test_a_base_shown_more_is_measured_at_its_own_length_too(
    seen: dict[str, Any],
) -> None:
    found = results(seen["longer alone"][0])
    asked = [(f"llama at {CONTEXT}", name) for name in ("positions", "blocks")]
    assert list(found) == [(f"llama at {NATIVE}", "positions"), *asked]
    assert all(result["content"] for result in found.values())


def names_opened(names: list[str]) -> list[str]:
    return [name.replace(" at", "") for name in names]


def test_a_family_that_the_engine_has_not_is_read_by_transformers(
    seen: dict[str, Any], folder: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found = results(seen["first"][0])["neox at 256", "positions"]
    assert found["made_from"]["settings"]["through"] == "transformers"
    tokenizer = AutoTokenizer.from_pretrained(folder / "neox")
    model = AutoModelForCausalLM.from_pretrained(folder / "neox", dtype=torch.float32)
    losses = []
    for file in sorted((folder / "text").iterdir()):
        ids = tokenizer(file.read_text(), add_special_tokens=False).input_ids[:CONTEXT]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, :-1].double()
        target = torch.tensor(ids[1:])[:, None]
        losses += (-logits.log_softmax(-1).gather(1, target)).flatten().tolist()
    documents = found["content"]["documents"]
    total = sum(sum(entry["sums"]) for entry in documents)
    count = sum(sum(entry["counts"]) for entry in documents)
    assert count == len(losses)
    assert total / count == pytest.approx(np.mean(losses), abs=1e-5)


def test_a_rope_that_depends_on_the_length_is_not_read_in_longer_rows(
    seen: dict[str, Any],
) -> None:
    found = results(seen["first"][0])
    blocks = found["dynamic at 256", "blocks"]
    assert blocks["content"] is None and "dynamic" in blocks["reason"]
    assert found["llama at 256", "blocks"]["content"] is not None
    assert "not above the base's" in found["llama at 128", "blocks"]["reason"]


def test_only_what_differs_is_measured_again(seen: dict[str, Any]) -> None:
    assert seen["again"] == (seen["first"][0], [])
    assert seen["edited"] == (seen["first"][0], ["llama 128"])
    printed, opened = seen["fewer"]
    assert len(opened) == 6
    documents = results(printed)["llama at 256", "positions"]["content"]["documents"]
    assert len(documents) == 2
    # Another question leaves what was found before where it is.
    assert seen["as at first"] == (seen["first"][0], [])


def test_tables_say_what_was_read_through_what(seen: dict[str, Any]) -> None:
    printed, opened = seen["tables"]
    assert opened == []
    assert "Loss by position" in printed and "What far context brings" in printed
    assert "neox was read through transformers" in printed and "gpt_neox" in printed
    assert "llama was read through engine" in printed
    assert "not measured: dynamic at 256, blocks" in printed


def test_a_model_that_turns_out_unreadable_leaves_the_table_of_the_others(
    seen: dict[str, Any],
) -> None:
    printed, opened = seen["unreadable"]
    assert set(opened) == {"late 128", "late 256"}  # the others were measured before
    assert "Loss by position" in printed and "dynamic at 256" in printed
    assert "not measured: late at 256, positions: late: " in printed
    assert "has the shape" in printed and "evaluate another" in printed
    assert printed.endswith("exit status 2")


def test_a_request_to_stop_is_answered_in_a_line_and_keeps_what_is_finished(
    folder: Path,
) -> None:
    arguments = ["llama", *ALL[:3], "256", "--retrieval", "--samples", "500"]
    command = [sys.executable, "-m", "alia_ctx.cli", "evaluate", *arguments]
    place = folder / "stopped"
    process = subprocess.Popen(
        [*command, "--output", str(place)],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while not list(place.glob("llama/positions-128-*.json")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.terminate()
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert errors.endswith(
        "\nstopped by SIGTERM; what is finished stays, start again to go on\n"
    )
    assert "Traceback" not in errors
    assert [path.name for path in place.iterdir() if path.is_dir()] == ["llama"]
    assert not list(place.rglob("retrieval-256-*"))


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_named_before_anything_is_measured(
    what: str, seen: dict[str, Any]
) -> None:
    message, opened = seen[what]
    assert opened == []
    assert message.split(":")[0].endswith("Error"), message
    for part in MISTAKES[what][1]:
        assert part in message
