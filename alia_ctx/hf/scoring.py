"""A Hugging Face model read by transformers itself: for families that the engine has not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from alia_ctx.errors import CheckpointError
from alia_ctx.hf.upstream import load_causal_lm, no_room
from alia_ctx.nn.dtypes import DTYPES
from alia_ctx.nn.rotary import inverse_frequencies
from alia_ctx.spec.execution import Precision
from alia_ctx.spec.rope import RopeSpec


def position_limit(config: Any) -> int | None:
    """How many positions a transformers model of `config` has at all: rows of its table of
    learned (GPT-2, OPT) or tabulated ones (GPT-J); None where it computes them, or cannot
    be built to be looked at.
    """
    from transformers import AutoModelForCausalLM

    factory: Any = AutoModelForCausalLM
    try:
        with torch.device("meta"):
            model = factory.from_config(config, trust_remote_code=False)
    except Exception:  # by what a file's content provokes
        return None
    limits = []
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, torch.nn.Embedding) and (
            "position" in last or last == "wpe"
        ):
            # OPT's table begins with rows that no position has.
            limits.append(module.num_embeddings - int(getattr(module, "offset", 0)))
    for name, buffer in model.named_buffers():
        if name.endswith("embed_positions") and buffer.ndim == 2:
            limits.append(buffer.shape[0])
    return min(limits, default=None)


def turns_by_length(config: Any) -> bool:
    """Whether the RoPE of a transformers configuration depends on the length of what is
    read: of the longest text of a batch, therefore.
    """
    stated = getattr(config, "rope_parameters", None)
    if not isinstance(stated, dict):
        return False
    # Some families have one for each type of layer.
    forms = [stated, *(form for form in stated.values() if isinstance(form, dict))]
    types = [str(form.get("rope_type")) for form in forms]
    return any("dynamic" in named or named == "longrope" for named in types)


class CausalModel:
    """`AutoModelForCausalLM` of a directory, whole on this process's device.

    CheckpointError where transformers cannot load it without code of its own, or not all
    of its weights: the others would be random.
    """

    def __init__(self, hf_dir: Path, precision: Precision) -> None:
        on_gpu = torch.cuda.is_available()
        self.device = torch.device("cuda" if on_gpu else "cpu")
        remedy = "copy it again, or evaluate another"
        loaded, problems = load_causal_lm(hf_dir, remedy, dtype=DTYPES[precision])
        if problems:
            raise CheckpointError(f"{hf_dir}: {problems[0]}; {remedy}")
        try:
            self.model: Any = loaded.eval().to(self.device)
        except torch.OutOfMemoryError as error:
            raise no_room(hf_dir) from error
        self.turns_by_length = turns_by_length(self.model.config)

    def hold_base(self, rope: RopeSpec, context: int) -> None:
        """Turn by the one base that the `dynamic` RoPE `rope` has at `context` tokens,
        whatever is read: as in training, and as in `evaluate`.
        """
        for module in self.model.modules():
            if getattr(module, "rope_type", None) == "dynamic":
                size = 2 * module.inv_freq.numel()
                inv_freq, scaling = inverse_frequencies(rope, size, context)
                inv_freq = inv_freq.to(self.device)
                module.register_buffer("inv_freq", inv_freq, persistent=False)
                module.attention_scaling = scaling
                # By this name upstream's `dynamic_rope_update` (modeling_rope_utils.py)
                # makes frequencies anew.
                module.rope_type = "default"
        self.turns_by_length = False

    @torch.no_grad()
    def forget_lengths(self) -> None:
        """Make what is read next independent of what was read before.

        A dynamic RoPE of transformers (`dynamic_frequency_update` in
        modeling_rope_utils.py) keeps the frequencies of the longest text until one comes
        that is shorter than its original length: here a single token.
        """
        if self.turns_by_length:
            token = torch.zeros((1, 1), dtype=torch.int64, device=self.device)
            self.model(token, use_cache=False)

    @torch.no_grad()
    def losses_and_hits(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(fp32 [T-1] losses in nats, bool [T-1] hits) of the targets tokens[1:], each
        from all before it. All logits exist at once: T x vocabulary.
        """
        self.forget_lengths()
        ids = torch.from_numpy(np.asarray(tokens, np.int64)).to(self.device)
        logits = self.model(ids[None], use_cache=False).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")
        hits = logits.argmax(dim=-1) == ids[1:]
        return losses.cpu().numpy(), hits.cpu().numpy()
