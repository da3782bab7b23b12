"""Prompts of many lengths, each read as if it was alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from alia_ctx.workflow import call_generation, call_writer
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_writer import CallSettings
from tests.tokenizers import byte_level, save

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "a table of positions": ("GPT2Config", {"n_layer": 2, "n_embd": 64, "n_head": 4}),
    "windows": ("MistralConfig", {"sliding_window": 24}),
    "windows in some layers": (
        "Gemma3TextConfig",
        {"sliding_window": 24, "head_dim": 16, "sliding_window_pattern": 2},
    ),
    "states": ("MambaConfig", {"state_size": 4}),
}


@pytest.mark.long
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_of_many_lengths_are_read_apart(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a mask of their longest one's square, and each as if it was alone, by a loop
    without cache, padding or `generate`.
    """
    name, more = FAMILIES[family]
    sizes = {
        **{"vocab_size": 384, "hidden_size": 64, "intermediate_size": 96},
        **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2},
        "max_position_embeddings": 512,
    }
    torch.manual_seed(5)
    config = getattr(transformers, name)(
        **(more if name == "GPT2Config" else sizes | more),
        **({"vocab_size": 384} if name == "GPT2Config" else {}),
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3},
    )
    reference = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in reference.parameters():
            weight.mul_(3)  # or all answers are alike
    save(byte_level(), tmp_path / "m")
    reference.save_pretrained(tmp_path / "m")
    random = torch.Generator().manual_seed(1)
    prompts = [
        torch.randint(6, 340, (size,), generator=random).tolist()
        for size in (50, 60, 33, 7, 45)
    ]
    monkeypatch.setattr(call_generation, "_MOST_FILL", 100)  # all together
    monkeypatch.setattr(call_writer, "_LARGEST_MASK", 0)
    model = TransformersModel(tmp_path / "m", CallSettings(max_new_tokens=6))
    read: list[int] = []
    embedding = model._writer._model.get_input_embeddings()
    embedding.register_forward_hook(lambda *call: read.append(call[1][0].numel()))
    answers = model.write(prompts, "abcde")
    apart = sorted((len(prompt) - 1 for prompt in prompts), reverse=True)
    if family.startswith(("windows", "states")):
        assert read[-1] == len(prompts) and max(read) == 60 * len(prompts)
    else:
        assert read == [*apart, *[len(prompts)] * (len(read) - len(apart))]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        with torch.inference_mode():
            while len(ids) < len(prompt) + 6 and ids[-1] not in (2, 5):
                logits = reference(torch.tensor([ids]), use_cache=False).logits
                ids.append(int(logits[0, -1].argmax()))
        written = [token for token in ids[len(prompt) :] if token not in (2, 5)]
        assert answer.text == model._auto.decode(written), len(prompt)
    assert len({answer.text for answer in answers}) > 2


def test_a_table_of_positions_ends_where_the_context_does(tmp_path: Path) -> None:
    """Of prompts of a server too: a short neighbour has more room than the table."""
    sizes = {"vocab_size": 384, "n_layer": 1, "n_embd": 32, "n_head": 4}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(**sizes, **ids, n_positions=64)
    save(byte_level(), tmp_path / "m")
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "m")
    model = TransformersModel(tmp_path / "m", CallSettings(max_new_tokens=50))
    stops = model._stops
    with torch.no_grad():  # nothing ends before the room does
        model._writer._model.lm_head.weight[stops] = 0
        model._writer._model.lm_head.bias = torch.nn.Parameter(torch.zeros(384))
        model._writer._model.lm_head.bias[stops] = -100
    answers = model.write([range(6, 66 - n) for n in (4, 20, 50, 52)], "abcd")
    assert [answer.tokens for answer in answers] == [8, 24, 50, 50]
    assert all(answer.cut for answer in answers)


@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=64))
def test_what_is_read_together_is_of_like_lengths(sizes: list[int]) -> None:
    prompts = [range(size) for size in sizes]
    groups = list(call_generation._alike(prompts, [0] * len(prompts)))
    assert sorted(n for group in groups for n in group) == list(range(len(sizes)))
    for group in groups:
        lengths = [sizes[n] for n in group]
        assert max(lengths) * len(group) <= 2 * sum(lengths)
    if 2 * min(sizes) >= max(sizes):
        assert len(groups) == 1
