"""The sizes that the programs for GPUs take of a model that a user names."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import LlamaConfig

from benchmarks.stacks import stack_of


def test_a_directory_gives_its_sizes(tmp_path: Path) -> None:
    LlamaConfig(
        vocab_size=128_000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=4,
        head_dim=128,
    ).save_pretrained(tmp_path)
    stack = stack_of(str(tmp_path))
    found = stack(8, None)
    assert (found.num_hidden_layers, found.hidden_size) == (8, 2048)
    assert (found.intermediate_size, found.vocab_size) == (5632, 128_000)
    assert (found.num_attention_heads, found.num_key_value_heads) == (16, 4)
    assert stack(8, 512).vocab_size == 512


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "neither of alia, smollm2"), ("{", "config.json"), ("{}", "config.json")],
)
def test_what_is_no_model_is_said(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=said):
        stack_of(str(tmp_path))


def test_names_have_the_vocabulary_of_the_tables() -> None:
    assert stack_of("alia")(2, None).vocab_size == 8192
    assert stack_of("smollm2")(30, 49_152).hidden_size == 576
