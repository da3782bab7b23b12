"""Keys and values of prompts of several lengths, for transformers' `generate`.

Padded to one length and read together, prompts need a mask [n, w, w], which also keeps
attention from its fast kernels: 64 prompts of up to 30,000 tokens would take 58 GB for
the mask alone, and be read as 64 of 30,000. So each is read by itself, without padding,
and what it left is put side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def read_apart(model: Any, prompts: Sequence[Sequence[int]]) -> Any | None:
    """The cache of all but the last token of each prompt, of two tokens at least:
    n x (w - 1) for the longest of w tokens, zeros before the shorter ones' first: what
    `generate` goes on from with the prompts padded on the left and their mask.

    None for a model that keeps something else than all keys and values of each layer
    (windows, states).
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    width = max(map(len, prompts)) - 1
    caches: list[Any] = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt[:-1])], device=model.device)
        # Without the head: its logits [w, words] are not wanted.
        read = model.base_model(ids, use_cache=True)
        cache = getattr(read, "past_key_values", None)  # states have other names
        # By exact type: layers with windows are derived from it.
        if not isinstance(cache, DynamicCache) or any(
            type(layer) is not DynamicLayer for layer in cache.layers
        ):
            return None
        caches.append(cache)
    joined = DynamicCache()
    for number in range(len(caches[0].layers)):
        layers = [cache.layers[number] for cache in caches]
        keys, values = (
            _side_by_side([getattr(layer, name) for layer in layers], width)
            for name in ("keys", "values")
        )
        joined.update(keys, values, number)
        for layer in layers:  # what was copied goes, a layer at a time
            layer.keys = layer.values = None
    return joined


def _side_by_side(parts: Sequence[torch.Tensor], width: int) -> torch.Tensor:
    """[1, heads, tokens, dim] of each -> [n, heads, width, dim], the last tokens last."""
    first = parts[0]
    shape = (len(parts), first.shape[1], width, first.shape[3])
    whole = first.new_zeros(shape)
    for row, part in enumerate(parts):
        whole[row, :, width - part.shape[2] :] = part[0]
    return whole
