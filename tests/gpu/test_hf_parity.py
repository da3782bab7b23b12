"""Logits of the engine against Hugging Face's Llama, both on the GPU in bf16, at ALIA's
longest row.

The yardstick is Hugging Face's own error: its bf16 logits against its fp32 ones. The
engine's bf16 logits must be no further from the fp32 ones than that, within a tenth; in
fact they round less often, since RoPE is computed in fp32. The weights travel the
product's own road: transformers' files, import, the engine's load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from alia_ctx import checkpoint
from alia_ctx.config.run import EngineConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.hf.convert import import_hf
from alia_ctx.mcore.engine import MegatronEngine
from alia_ctx.mcore.runtime import Distributed
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.rope import RopeSpec
from tests.dense import ALIA_160K
from tests.hf_models import write_tokenizer

pytestmark = [pytest.mark.gpu(1), pytest.mark.timeout(900)]

CONTEXT = 163_840
VOCABULARY = 512
SLACK = 1.1
PACKINGS = {
    "one document": (CONTEXT,),
    "packed": (50_000, 1, 2, 100_000, 9_000, 4_000),
}  # the latter ends in fill


def repeated_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """SDPA with the key/value heads repeated:

    in fp32 its grouped form has only the backend that forms all scores.
    """
    key, value = (
        x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (key, value)
    )
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=scaling
    )
    return out.transpose(1, 2).contiguous(), None


def make_llama(context: int = CONTEXT) -> Any:
    """A random Llama in bf16 whose attention is sharp enough to depend on distant positions."""
    from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

    AttentionInterface.register(
        "repeated_sdpa", repeated_sdpa
    )  # no mask is made for it: causal is all there is
    rope = {
        "rope_type": "llama3",
        "rope_theta": ALIA_160K.theta,
        "factor": ALIA_160K.factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 4096,
    }
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=1024,
        intermediate_size=2048,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_parameters=rope,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
        attn_implementation="repeated_sdpa",  # type: ignore[call-arg]
    )
    torch.manual_seed(7)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.06 * noise)
            parameter.data = (
                parameter.bfloat16()
            )  # model.bfloat16() would round the RoPE frequencies too
    model.config.dtype = torch.bfloat16
    return model.eval()


@torch.no_grad()
def huggingface_logits(model: Any, documents: Sequence[np.ndarray]) -> Tensor:
    """fp32 logits [tokens, vocabulary], each document on its own."""
    return torch.cat(
        [
            model(torch.from_numpy(each)[None].to(model.device), use_cache=False)
            .logits[0]
            .float()
            for each in documents
        ]
    )


def documents_of(lengths: Sequence[int]) -> list[np.ndarray]:
    generator = np.random.default_rng(sum(lengths))
    return [generator.integers(0, VOCABULARY, n) for n in lengths]


class Parity:
    """transformers' model, its weights as a checkpoint, and engines that load it."""

    def __init__(self, folder: Path, device: str, context: int = CONTEXT) -> None:
        self.device, self.context = device, context
        self.model = make_llama(context)
        self.model.save_pretrained(folder / "hf")
        write_tokenizer(folder / "hf", VOCABULARY)
        self.manifest = import_hf(folder / "hf", folder / "checkpoint")
        self.state = folder / "checkpoint" / checkpoint.STATE

    def ours(
        self, documents: Sequence[np.ndarray], rope: RopeSpec, precision: str = "bf16"
    ) -> Tensor:
        engine = MegatronEngine(
            self.manifest.model,
            rope,
            self.context,
            Layout(),
            EngineConfig(precision=precision),
            None,
        )
        engine.load(self.state, with_optimizer=False)
        row = PackedRow.from_documents(documents, self.context)
        logits = engine.logits(row)
        assert logits is not None
        return logits[: row.real_tokens]

    def theirs(self, documents: Sequence[np.ndarray], dtype: torch.dtype) -> Tensor:
        self.model.to(self.device)
        for parameter in self.model.parameters():
            parameter.data = parameter.data.to(dtype)
        return huggingface_logits(self.model, documents)


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Parity]:
    with Distributed(EngineConfig()):
        yield Parity(tmp_path_factory.mktemp("parity"), "cuda")


def errors_by_position(
    ours: Tensor, exact: Tensor, documents: Sequence[np.ndarray]
) -> list[float]:
    """Relative error over each eighth of the longest document."""
    start = int(np.argmax([len(d) for d in documents]))
    first = sum(len(d) for d in documents[:start])
    pieces = torch.arange(first, first + len(documents[start])).chunk(8)
    return [float((ours[p] - exact[p]).norm() / exact[p].norm()) for p in pieces]


def check(parity: Parity, lengths: Sequence[int]) -> None:
    documents = documents_of(lengths)
    rope = parity.manifest.rope
    assert rope == ALIA_160K
    exact = parity.theirs(documents, torch.float32)
    theirs = errors_by_position(
        parity.theirs(documents, torch.bfloat16), exact, documents
    )
    ours = errors_by_position(parity.ours(documents, rope), exact, documents)
    print(
        f"relative errors by eighth of the longest document\n  engine       {ours}\n  "
        f"transformers {theirs}"
    )
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine <= SLACK * yours


@pytest.mark.parametrize("packing", PACKINGS)
def test_logits_are_no_further_from_exact_than_transformers(
    parity: Parity, packing: str
) -> None:
    check(parity, PACKINGS[packing])


def test_a_wrong_scaling_would_show(parity: Parity) -> None:
    """The comparison is not blind:

    factor 8 for factor 40 is many times further off at the end of the row.
    """
    documents = documents_of((CONTEXT,))
    exact = parity.theirs(documents, torch.float32)
    right = errors_by_position(parity.ours(documents, ALIA_160K), exact, documents)
    wrong = RopeSpec(
        "llama3", 1e4, 8.0, 4096, low_freq_factor=1.0, high_freq_factor=4.0
    )
    off = errors_by_position(parity.ours(documents, wrong), exact, documents)
    assert off[-1] > 5 * right[-1]
