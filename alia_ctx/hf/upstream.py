"""What `transformers` itself makes of a Hugging Face directory: weights, and what they
compute.
"""

# ruff: noqa: N803 - shape suffixes are part of tensor names

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from alia_ctx.checkpoint.tensor_files import TensorFiles, TensorPlace
from alia_ctx.errors import CheckpointError
from alia_ctx.hf.assets import GENERATION_CONFIG
from alia_ctx.host_memory import available_memory

# Loading takes the model's bytes, and some room for what else runs.
_ROOM = 1.25


class LoadedWeights:
    """The weights as `AutoModelForCausalLM.from_pretrained` gives them, all in memory, each
    in the dtype of its place in the files.

    They are loaded in one dtype that holds all of those: the one of config.json, which
    transformers takes by default, would round what the files have.
    """

    def __init__(self, hf_dir: Path, places: Mapping[str, TensorPlace]) -> None:
        self._places = places
        model, self._problems = load_causal_lm(
            hf_dir,
            "copy or export it again",
            dtype=_widest(places),
            attn_implementation="eager",
        )
        self._weights: Mapping[str, Tensor] = model.state_dict()

    def problems(self) -> Iterator[str]:
        """Weights that transformers did not find where it looks, or found and left."""
        yield from self._problems

    def dtype(self, name: str) -> torch.dtype:
        return self._places[name].dtype

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Rows [start, start + count) of a tensor, in the file's dtype."""
        rows = self._weights[name][start : start + count]
        return rows.to(self._places[name].dtype).contiguous()


def loaded_bytes(places: Mapping[str, TensorPlace]) -> int:
    """Bytes of the tensors at `places` as LoadedWeights holds them."""
    values = sum(math.prod(place.shape) for place in places.values())
    return values * _widest(places).itemsize


def _widest(places: Mapping[str, TensorPlace]) -> torch.dtype:
    """The narrowest dtype that has every value of the tensors at `places`."""
    return reduce(torch.promote_types, {place.dtype for place in places.values()})


class FileWeights:
    """The weights as our own reader finds them: for models that memory cannot hold."""

    def __init__(self, places: Mapping[str, TensorPlace], files: TensorFiles) -> None:
        self._places, self._files = places, files

    def problems(self) -> Iterator[str]:
        """None: what can be wrong with files was an error before."""
        return iter(())

    def dtype(self, name: str) -> torch.dtype:
        return self._places[name].dtype

    def rows(self, name: str, start: int, count: int) -> Tensor:
        """Rows [start, start + count) of a tensor, in the file's dtype."""
        place = self._places[name]
        out = torch.empty((count, *place.shape[1:]), dtype=place.dtype)
        self._files.read_rows(place, start, out)
        return out


def load_causal_lm(hf_dir: Path, remedy: str, **options: Any) -> tuple[Any, list[str]]:
    """`AutoModelForCausalLM` of a directory, and a sentence for each weight that is not the
    directory's: transformers draws those at random, with no more than a warning.

    CheckpointError where it cannot be loaded without code of its own.
    """
    from transformers import AutoModelForCausalLM

    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            hf_dir,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else it raises, and names no tensor
            **options,
        )
    # transformers raises OSError, ValueError, SafetensorError, ... by what is wrong
    except Exception as error:
        if is_lack_of_memory(error):
            raise no_room(hf_dir) from error
        reason = str(error).strip().split("\n")[0]
        raise CheckpointError(
            f"{hf_dir}: transformers cannot load this model ({reason}); {remedy}"
        ) from error
    model, loading = loaded
    problems = [
        f"{name} is in no file that transformers reads: it would be random"
        for name in sorted(map(str, loading["missing_keys"]))
    ]
    problems += [
        f"{name} has the shape {tuple(own)}, transformers expects {tuple(expected)}"
        for name, own, expected in sorted(loading["mismatched_keys"])
    ]
    return model, problems


def is_lack_of_memory(error: Exception) -> bool:
    """Of a GPU, or of a host, for which torch has no type of error."""
    kinds = (torch.OutOfMemoryError, MemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def no_room(hf_dir: Path) -> CheckpointError:
    """What is said where a model cannot be loaded for want of memory."""
    return CheckpointError(
        f"{hf_dir}: memory does not hold the model's weights; take a larger machine, or "
        "end what else runs on it"
    )


def fits_in_memory(nbytes: int) -> bool:
    """Whether this machine, and its job, have room for weights of `nbytes` beside what
    runs there.
    """
    return nbytes * _ROOM < available_memory()


def end_ids(hf_dir: Path) -> list[int]:
    """The tokens at which `generate` stops by generation_config.json, or by config.json
    where there is none, as transformers (`adjust_generation_fn`) has it.

    CheckpointError where the file cannot be read: transformers would go by the other one.
    """
    from transformers import GenerationConfig

    own = (hf_dir / GENERATION_CONFIG).exists()
    name = GENERATION_CONFIG if own else "config.json"
    try:
        stated = GenerationConfig.from_pretrained(
            hf_dir, config_file_name=name, local_files_only=True
        )
        ids: Any = stated.eos_token_id
        return [
            int(i)
            for i in (ids if isinstance(ids, list) else [] if ids is None else [ids])
        ]
    except Exception as error:  # whatever a value provokes
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{hf_dir / name}: transformers does not load it ({reason}); correct it"
        ) from error


def load_config(hf_dir: Path) -> Any:
    """What transformers makes of `hf_dir/config.json`; CheckpointError where it makes
    nothing of it.
    """
    try:
        from transformers import AutoConfig
    except ImportError as error:
        raise CheckpointError(
            "verify needs transformers for the logits; install it or compare weights only"
        ) from error
    try:
        return AutoConfig.from_pretrained(hf_dir, trust_remote_code=False)
    except Exception as error:  # whatever a value provokes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{hf_dir}/config.json: transformers does not load it ({reason}); correct it"
        ) from error


class WholeModel:
    """The installed `transformers`' model of a directory from embeddings to the norm before
    the head, its weights in memory a layer at a time.

    It is the whole one and not its layers alone: which token attends to which (`is_causal`,
    windows, chunks) and what stands between the layers is decided there.

    Args:
        hf_dir: a directory with config.json.
        weights: prefix (`model.layers.0.`) -> fp32 weights, named as behind it.
    """

    def __init__(
        self, hf_dir: Path, weights: Callable[[str], dict[str, Tensor]]
    ) -> None:
        from transformers import AutoModelForCausalLM

        config, build = load_config(hf_dir), cast(Any, AutoModelForCausalLM)
        with torch.device("meta"):
            model = build.from_config(config, attn_implementation="eager")
        self._decoder: Any = model.eval().get_decoder()
        # Its frequencies are of no file, so nothing would load them.
        self._decoder.rotary_emb = type(self._decoder.rotary_emb)(config=config)
        self._weights = weights

    @torch.no_grad()
    def hidden(self, x_TH: Tensor, positions_T: Tensor) -> tuple[list[Tensor], Tensor]:
        """The output of each layer, and of the norm behind the last, for embeddings `x_TH` of
        tokens at ascending `positions_T`, all [T, H].
        """
        outputs: list[Tensor] = []

        def load(layer: Any, _: Any) -> None:
            prefix = f"model.layers.{len(outputs)}."
            layer.load_state_dict(self._weights(prefix), assign=True)

        def unload(layer: Any, _: Any, out: Any) -> None:
            hidden = out[0] if isinstance(out, tuple) else out
            outputs.append(hidden.view(x_TH.shape))
            layer.to("meta")

        handles = [
            handle
            for layer in self._decoder.layers
            for handle in (
                layer.register_forward_pre_hook(load),
                layer.register_forward_hook(unload),
            )
        ]
        self._decoder.norm.load_state_dict(self._weights("model.norm."), assign=True)
        try:
            normed = self._decoder(
                inputs_embeds=x_TH[None],
                position_ids=positions_T[None],
                # As generate and pipelines give it; without it transformers 5 takes a gap
                # between positions for the end of a document (`masking_utils`,
                # `find_packed_sequence_indices`).
                attention_mask=torch.ones_like(positions_T)[None],
                use_cache=False,
            )[0]
        finally:
            for handle in handles:
                handle.remove()
        return outputs, normed.view(x_TH.shape)


@contextmanager
def without_reminder_of_length() -> Iterator[None]:
    """Within it transformers does not say that generating goes on past the model's
    maximum length, where the caller keeps to the length that the model reads.

    `MaxLengthCriteria` (generation/stopping_criteria.py) compares the length of the
    longest row, padding and all, with `max_position_embeddings`, which of a scaled RoPE
    is what the model read before.
    """
    logger = logging.getLogger("transformers.generation.stopping_criteria")

    def is_other(record: logging.LogRecord) -> bool:
        return "friendly reminder" not in record.getMessage()

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)
