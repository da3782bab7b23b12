"""Whether transformers loads, and generates with, the config and generation config that an
export carries: tried on a model of a few numbers.

What a base's files say beyond the model is carried along unread, and a value there can
stop transformers although the weights are right (`text_config`, `num_beams: 0`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from alia_ctx.errors import Problem
from alia_ctx.hf.assets import GENERATION_CONFIG
from alia_ctx.hf.config import CONFIG, left_behind, write_config
from alia_ctx.hf.json_files import load_json, refusal, write_json
from alia_ctx.hf.limits import lift_generation
from alia_ctx.hf.special_ids import NAMES, reconcile, without_foreign_ids
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

_REMEDY = "correct it, or take it out"
# What a model of any size has in common with the real one is its vocabulary and its RoPE.
_SMALL = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "dtype": "float32",
    "torch_dtype": "float32",
}
_SWITCHES = ("do_sample", "num_beams")
# Settings that need a tokenizer, or a GPU, where `generate` is called.
_ELSEWHERE = ("stop_strings", "cache_implementation")


def unusable(
    needed: Mapping[str, Any],
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
) -> tuple[list[Problem], list[Problem]]:
    """What transformers cannot load or generate with, in config and generation config.

    `needed` is the config without what is carried along: what only the carried keys can
    have spoiled is found by trying each with it. Both lists are empty where all is well.
    """
    if (whole := _failure(config, generation)) is None:
        return [], []
    carried = {k: v for k, v in config.items() if k not in needed}
    broken = _spoiling(carried, lambda some: _failure({**needed, **some}, {}))
    bad = _spoiling(generation, lambda some: _failure(needed, some))
    if not broken and not bad:  # config and generation config together
        bad = [_problem(GENERATION_CONFIG, "beside config.json", whole)]
    return broken, bad


def _spoiling(
    values: Mapping[str, Any], failure: Callable[[Mapping[str, Any]], str | None]
) -> list[Problem]:
    """Those of `values` that fail beside all before them that do not."""
    good: dict[str, Any] = {}
    problems = []
    # Others mean something only where these say so.
    first = {key: values[key] for key in _SWITCHES if key in values}
    for key, value in {**first, **values}.items():
        if (reason := failure({**good, key: value})) is None:
            good[key] = value
        else:
            problems.append(_problem(key, value, reason))
    return problems


def require_usable(
    hf_dir: Path, model: ModelSpec, rope: RopeSpec, context: int
) -> None:
    """Raise CheckpointError where an export could not be used for what it would carry of
    the config and generation config in `hf_dir`.
    """
    needed, config = _configs(
        load_json(hf_dir / CONFIG), model, rope, context, torch.float32
    )
    file = hf_dir / GENERATION_CONFIG
    generation: dict[str, Any] = {}
    if file.is_file():
        generation, _ = travelling_generation(
            load_json(file), context, model.vocab_size
        )
    # The ids are those of the tokenizer in the end.
    needed |= {name: config[name] for name in NAMES}
    broken, bad = unusable(needed, config, generation)
    if broken:
        raise refusal(hf_dir / CONFIG, broken)
    if bad:
        raise refusal(file, bad)


def travelling_config(
    base: Mapping[str, Any],
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    dtype: torch.dtype,
) -> tuple[dict[str, Any], list[Problem]]:
    """The config.json of an export, before the tokenizer is asked for its ids, and what
    of `base`, that of the base model, does not go into it.
    """
    needed, config = _configs(base, model, rope, context, dtype)
    # An import refuses it; a checkpoint of an earlier release may have it.
    broken, _ = unusable(needed, config, {})
    for problem in broken:
        del config[problem.key]
    return config, [*left_behind(base), *broken]


def _configs(
    base: Mapping[str, Any],
    model: ModelSpec,
    rope: RopeSpec,
    context: int,
    dtype: torch.dtype,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config.json of an export without what is carried along from `base`, and with it."""
    alone, config = (
        reconcile(
            write_config(model, rope, context, dtype, carried), {}, model.vocab_size
        )
        for carried in (None, base)
    )
    return alone, config


def travelling_generation(
    document: Mapping[str, Any], context: int, vocab_size: int
) -> tuple[dict[str, Any], list[str]]:
    """What of a generation config goes into an export of a model for `context` tokens
    with `vocab_size` rows, before the tokenizer is asked for its ids; and what does not.
    """
    lifted = lift_generation(document, context)
    kept, notes = without_foreign_ids(lifted, vocab_size)
    stated = {name for name in NAMES if name in kept}
    ids = reconcile(kept, {}, vocab_size)
    return {**kept, **{name: ids[name] for name in stated}}, notes


def _problem(key: str, value: Any, reason: str) -> Problem:
    rule = f"transformers cannot load the model, or generate, with it ({reason})"
    return Problem(key, repr(value)[:200], rule, _REMEDY)


def _failure(config: Mapping[str, Any], generation: Mapping[str, Any]) -> str | None:
    """What transformers says of a small model with these files, None where it works."""
    from transformers import AutoConfig, GenerationConfig
    from transformers import AutoModelForCausalLM as AutoModel

    build: Any = AutoModel
    small: dict[str, Any] = {**config, **_SMALL}
    if config.get("layer_types"):
        small["layer_types"] = config["layer_types"][:1]
    with TemporaryDirectory() as place, _quietly():
        write_json(Path(place, GENERATION_CONFIG), generation)
        try:
            # As it is first: some values are refused by the number of layers.
            for document in (config, small):
                write_json(Path(place, CONFIG), document)
                loaded = AutoConfig.from_pretrained(
                    place, trust_remote_code=False, local_files_only=True
                )
            model = build.from_config(loaded)
            settings = GenerationConfig.from_pretrained(place, local_files_only=True)
            for name in _ELSEWHERE:
                setattr(settings, name, None)
            tokens = torch.zeros((1, 2), dtype=torch.long)
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                generation_config=settings,
                max_new_tokens=2,
            )
        except Exception as error:  # whatever a value provokes
            return " ".join(str(error).split())[:300] or type(error).__name__
    return None


@contextmanager
def _quietly() -> Iterator[None]:
    """Nobody's random numbers move, and what is only advice stays unsaid."""
    from transformers.utils import logging as upstream

    logging: Any = upstream  # its functions have no types
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)
