"""A model that was trained with a `dynamic` RoPE, of which each program computes another:
what is said of it, and that answers are scored with what was trained.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.rope_config import dynamic_note
from alia_ctx.hf.scoring import CausalModel
from alia_ctx.nn.rotary import inverse_frequencies
from alia_ctx.spec.rope import RopeSpec
from alia_ctx.workflow.call_generation import TransformersModel
from alia_ctx.workflow.call_writer import CallSettings
from tests.evaluation.function_calling.small_suite import write_suite
from tests.evaluation.function_calling.test_evaluate_calls import alia as run
from tests.evaluation.function_calling.test_evaluate_calls import save_small
from tests.hf.exports import trained
from tests.hf_models import CONTEXT, make_model, save_model
from tests.small_run import alia

THETA, FACTOR, HEAD = 10000.0, 4.0, 16
ROPE = RopeSpec("dynamic", THETA, FACTOR, CONTEXT)
TRAINED = 2 * CONTEXT  # less than the factor reaches


def stretched(context: int) -> float:
    """The base of `context` tokens, by the formula of transformers' documentation."""
    ratio = FACTOR * context / CONTEXT - (FACTOR - 1)
    return THETA * ratio ** (HEAD / (HEAD - 2))


def of_one_base(model: Any, context: int) -> Any:
    """The weights of `model` in a transformers model that knows one base and no scaling."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**model.config.to_dict())
    config.rope_parameters = {"rope_type": "default", "rope_theta": stretched(context)}
    made = LlamaForCausalLM(config).float().eval()
    made.load_state_dict(model.state_dict())
    return made


def export(root: Path, context: int = TRAINED) -> Path:
    save_model(root / "hf", rope="dynamic", dtype=torch.float32)
    import_hf(root / "hf", root / "ck")
    export_hf(trained(root / "ck", context, ROPE), root / "out")
    return root / "out"


def test_texts_of_all_lengths_turn_by_the_base_of_training(tmp_path: Path) -> None:
    model = save_model(tmp_path / "m", rope="dynamic", dtype=torch.float32)
    assert model.config.head_dim == HEAD
    expected, read = (
        of_one_base(model, TRAINED),
        CausalModel(tmp_path / "m", "fp32"),
    )
    random = torch.Generator().manual_seed(1)
    texts = [
        torch.randint(0, model.config.vocab_size, (1, size), generator=random)
        for size in (5, TRAINED, CONTEXT - 1, CONTEXT + 3, 5)
    ]
    with torch.inference_mode():
        apart = [
            float((read.model(t).logits - expected(t).logits).abs().max())
            for t in texts
        ]
        assert apart[0] > 1e-2  # transformers' own rule is another
        read.hold_base(ROPE, TRAINED)
        assert not read.turns_by_length
        for text in texts:
            # fp32 sums in the same order; the bases differ in their last bit at most.
            torch.testing.assert_close(
                read.model(text).logits, expected(text).logits, atol=1e-4, rtol=1e-4
            )


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (4 * CONTEXT, ["angles that were never trained", "the one of training"]),
        (2 * CONTEXT, ["angles that were never trained", "which was not trained"]),
        (CONTEXT, ["has that base too, up to there", "which was not trained"]),
    ],
)
def test_what_is_said_is_what_programs_compute(context: int, said: list[str]) -> None:
    """transformers by its own function; vLLM and SGLang by their formula."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    note = dynamic_note(ROPE, context)
    assert note is not None and all(words in note for words in said)
    assert f"that of {context:,} tokens" in note
    of_training, _ = inverse_frequencies(ROPE, HEAD, context)
    config = make_model("llama", "dynamic").config
    of_short, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, "cpu", seq_len=context // 2)
    same = torch.allclose(of_short, of_training, rtol=1e-6)
    assert same == ("has that base too" in note)
    base = THETA * (FACTOR * FACTOR - (FACTOR - 1)) ** (HEAD / (HEAD - 2))
    served = base ** -(torch.arange(0, HEAD, 2).double() / HEAD)
    same = torch.allclose(served.float(), of_training, rtol=1e-6)
    assert same == ("the one of training" in note)


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_of_other_ropes_nothing_is_said(kind: Any) -> None:
    assert dynamic_note(RopeSpec(kind, THETA, FACTOR, CONTEXT), 4 * CONTEXT) is None


@pytest.mark.long
def test_screen_card_and_comparison_say_it(tmp_path: Path) -> None:
    note = dynamic_note(ROPE, TRAINED)
    out = export(tmp_path)
    assert f"**{note}**" in (out / "README.md").read_text()
    assert "see the head of this card" in (out / "README.md").read_text()
    ck = str(tmp_path / "ck")
    done = alia("export-hf", ck, str(out), "--overwrite")
    assert done.returncode == 0 and f"{note}" in " ".join(done.stderr.split())
    done = alia("verify", str(out), ck, "--weights-only")
    assert done.returncode == 0 and f"{note}" in done.stdout


@pytest.mark.long
def test_answers_are_made_with_what_was_trained(tmp_path: Path) -> None:
    """As a plain loop of the model of one base makes them."""
    model = save_small(tmp_path / "m", context=CONTEXT, rope="dynamic")
    reach = int(CONTEXT * FACTOR)
    expected = of_one_base(model, reach)
    made = TransformersModel(tmp_path / "m", CallSettings(max_new_tokens=6))
    assert made.context == reach and made.statement["rope_base_of"] == reach
    (note,) = made.notes
    assert (
        f"{dynamic_note(ROPE, reach)}" in note and f"base of {reach:,} tokens" in note
    )
    prompt = list(range(6, 26))
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + 6:
            logits = expected(torch.tensor([ids])).logits
            ids.append(int(logits[0, -1].argmax()))
    (answer,) = made.write([prompt], ["x"])
    assert answer.text == made._auto.decode(ids[len(prompt) :])
    words = ["--data", write_suite(tmp_path / "data"), "--limit", 1]
    words += ["--categories", "irrelevance", "--output", tmp_path / "kept"]
    assert note in run("evaluate-calls", tmp_path / "m", *words, "--max-new-tokens", 2)
