"""Which conversations are too like a held-out one to be trained on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from alia_ctx.data.chat import write_chat_store
from alia_ctx.data.documents import ChatSpec, SourceSpec
from alia_ctx.data.packing import duplicates_of, write_held_out
from alia_ctx.data.tokens import TokenStore
from alia_ctx.data.tokens.said import SAID, said_of
from alia_ctx.errors import DataError
from tests.data.chat.tokenizers import save_chat_tokenizer

TOOLS = json.dumps(
    [
        {
            "name": "book_a_table_in_a_restaurant",
            "description": "Books a table for so many people on a day.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "people": {"type": "integer"},
                },
                "required": ["city", "people"],
            },
        }
    ]
)
CITIES = ("Lugo", "Vigo", "Bilbo", "Palma", "Girona", "Boston", "Dublin", "Madrid")
SORRY = "None of my functions does that."
ESSAY = " ".join(f"Sentence {n} of it is about {n * n} hens." for n in range(20))


def call(
    city: str, people: int, ask: str = "A table in {}, for {}."
) -> dict[str, object]:
    arguments = json.dumps({"city": city, "people": people})
    function = {"name": "book_a_table_in_a_restaurant", "arguments": arguments}
    calls = [{"type": "function", "function": function}]
    return talk(ask.format(city, people), {"tool_calls": calls})


def talk(asked: str, answer: dict[str, object]) -> dict[str, object]:
    turns = [{"role": "user", "content": asked}, {"role": "assistant", **answer}]
    return {"messages": turns, "tools": TOOLS}


def says(asked: str, answer: str) -> dict[str, object]:
    return talk(asked, {"content": answer})


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_tokenizer("byte level", tmp_path_factory.mktemp("t") / "t")


def test_what_is_said_makes_alike_and_not_what_the_template_writes(
    tokenizer: Path, tmp_path: Path
) -> None:
    calls = [call(city, number) for number, city in enumerate(CITIES, 41)]
    others = [
        says(
            "Please paint my cat and the fence of my garden red before Monday.", SORRY
        ),
        says("Could somebody bring 200 old hats to the station of Lugo now?", SORRY),
    ]
    essays = [
        says("Write about hens.", ESSAY),
        says("Tell me of hens.", ESSAY.replace("144", "12 times 12")),
        says("Write of ducks.", ESSAY[::-1]),
    ]
    again = call(CITIES[0], 41)
    rows = [*calls, *others, *essays, again]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    spec = SourceSpec(inputs=[str(path)], chat=ChatSpec())
    write_chat_store(spec, "chat", tokenizer, tmp_path)
    store = TokenStore(tmp_path / "chat")
    said = said_of(store)
    assert said is not None and store.weights is not None
    first = len(calls) + len(others)
    held_out = [0, len(calls), first]
    kept = write_held_out(
        tmp_path / "kept", {"chat": store}, {"chat": np.array(held_out)}
    )
    alike = [*held_out, first + 1, len(rows) - 1]
    assert duplicates_of({"chat": store}, kept)["chat"].tolist() == sorted(alike)
    # Nothing is written anew, and nothing of it is left where it is of other tokens.
    time = (tmp_path / f"kept{SAID}").stat().st_mtime_ns
    write_held_out(tmp_path / "kept", {"chat": store}, {"chat": np.array(held_out)})
    assert (tmp_path / f"kept{SAID}").stat().st_mtime_ns == time
    (tmp_path / f"chat{SAID}").write_bytes(b"\1" * 5)
    with pytest.raises(DataError, match="is of 5 tokens"):
        duplicates_of({"chat": store}, kept)


def test_said_are_words_and_values(tokenizer: Path, tmp_path: Path) -> None:
    from alia_ctx.data.chat import ChatEncoder, read_record

    encoder = ChatEncoder(tokenizer, ChatSpec())
    encoded = encoder.encode(read_record(call("Lugo", 41)))
    said = encoder.tokenizer.auto.decode(encoded.ids[encoded.said].tolist())
    assert "".join(said.split()) == "AtableinLugo,for41.Lugo41"
