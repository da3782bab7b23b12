"""A small model that has learnt a few conversations by heart, made by the product's own
commands: tokenised, packed, trained, exported. What it says is generated, not staged.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from alia_ctx.hf.serving_commands import QUESTION, TOOLS
from tests.small_run import alia
from tests.tokenizers import SPECIAL, save

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get current temperature for a given location.",
    "parameters": {
        "type": "object",
        "properties": {
            "location": {
                "type": "string",
                "description": "City and country e.g. Bogotá, Colombia",
            }
        },
        "required": ["location"],
        "additionalProperties": False,
    },
}
TRIP = {
    "type": "function",
    "function": {
        "name": "book_trip",
        "parameters": {
            "type": "object",
            "properties": {
                "travellers": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string"},
                            "age": {"type": "integer"},
                        },
                    },
                },
                "leg": {"type": "object", "properties": {"to": {"type": "string"}}},
            },
        },
    },
}
SEARCH = {
    "type": "function",
    "function": {
        "name": "cerca",
        "parameters": {"type": "object", "properties": {"text": {"type": "string"}}},
    },
}
PARIS = "What is the weather like in Paris today?"
RESULT = '{"temperature": 18, "unit": "C", "description": "Partly cloudy in Paris"}'
# Tags around what is no call: one that begins as a call is read as a call that is broken, and no
# conversation with it is trained on.
BAD = "So: <tool_call>\nOslo, today\n</tool_call>"
TRAVEL = {
    "travellers": [{"name": "Ana", "age": 7}, {"name": "Jon", "age": 40}],
    "leg": {"to": "Vic"},
}
CALLS: dict[str, tuple[Any, list[tuple[str, dict[str, Any]]]]] = {
    PARIS: (WEATHER, [("get_weather", {"location": "Paris, France"})]),
    "And in Bogotá and Girona?": (
        WEATHER,
        [
            ("get_weather", {"location": "Bogotá, Colombia"}),
            ("get_weather", {"location": "Girona, Catalunya"}),
        ],
    ),
    "Book Vic for Ana, 7, and Jon, 40.": (TRIP, [("book_trip", TRAVEL)]),
    QUESTION: (ast.literal_eval(TOOLS)[0], [("get_weather", {"location": "Girona"})]),
    "Cerca això": (SEARCH, [("cerca", {"text": "l'«ànec» 東京 🐧\n<b>"})]),
}
WORDS = {
    "Who are you?": "I am a small model.",
    "What is the capital of France?": "The capital of France is París.",
}
IN_PARIS = "It is 18 °C in Paris, partly cloudy."


def conversations() -> list[dict[str, Any]]:
    """All that is learnt, as records of OpenAI's form."""
    rows: list[dict[str, Any]] = [
        {"messages": [user(question), {"role": "assistant", "content": answer}]}
        for question, answer in WORDS.items()
    ]
    for question, (tool, made) in CALLS.items():
        calls = [
            {
                "id": f"call_{number}",
                "type": "function",
                "function": {"name": name, "arguments": json.dumps(arguments)},
            }
            for number, (name, arguments) in enumerate(made)
        ]
        messages = [user(question), {"role": "assistant", "tool_calls": calls}]
        if question == PARIS:
            result = {"role": "tool", "tool_call_id": "call_0", "content": RESULT}
            messages += [result, {"role": "assistant", "content": IN_PARIS}]
        rows.append({"messages": messages, "tools": [tool]})
    bad = [user("Break it."), {"role": "assistant", "content": BAD}]
    return [*rows, {"messages": bad, "tools": [WEATHER]}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def export_memorised(folder: Path) -> Path:
    """Train on the conversations until they are known by heart, and export."""
    rows = conversations()
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    _write_tokenizer(folder / "tokenizer", json.dumps(rows, ensure_ascii=False))
    (folder / "run.yaml").write_text(yaml.safe_dump(_run(folder), sort_keys=False))
    for step in (["tokenize"], ["pack"], ["train"]):
        stage = [] if step == ["tokenize"] else ["--stage", "fc"]
        _do(*step, str(folder / "run.yaml"), *stage)
    checkpoints = sorted((folder / "out/stages/fc/checkpoints").glob("update-*"))
    _do("export-hf", str(checkpoints[-1]), str(folder / "model"))
    return folder / "model"


def _do(*arguments: str) -> None:
    done = alia(*arguments, timeout=420)
    assert done.returncode == 0, done.stdout + done.stderr


def _write_tokenizer(directory: Path, text: str) -> None:
    """Byte-level BPE that has learnt the conversations, so that few tokens say them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([text] * 2, trainer)
    save(tokenizer, directory)


def _run(folder: Path) -> dict[str, Any]:
    return {
        "name": "memorised",
        "output": str(folder / "out"),
        "tokenizer": str(folder / "tokenizer"),
        "model": {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 608,
        },
        "data": {
            "sources": {
                "talks": {
                    "inputs": [str(folder / "talks.jsonl")],
                    "chat": {"strict": True},
                }
            }
        },
        "engine": {"precision": "fp32"},
        "evaluation": {"every_updates": 0},
        "stages": {
            "fc": {
                "init_from": "random",
                "context": 1024,
                "rope": {
                    "type": "llama3",
                    "theta": 10000,
                    "factor": 4,
                    "original_max_position_embeddings": 256,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                },
                "epochs": 200,
                "update_instances": 8,
                "learning_rate": 0.004,
                "schedule": {
                    "type": "cosine",
                    "warmup": 0.05,
                    "min_learning_rate": 0.0,
                },
                "pack": {"policy": "best_fit", "long_docs": "drop"},
            }
        },
    }
