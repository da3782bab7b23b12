"""Which tokens begin, end and pad a text: one answer in config, generation config and
tokenizer.

The tokenizer's is the one that counts: it is the one that the training text was made
with. It is asked through transformers, whose tokenizer classes have defaults of their
own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alia_ctx.errors import CheckpointError
from alia_ctx.files import checksum
from alia_ctx.hf.json_files import load_json
from alia_ctx.hf.upstream import load_config

NAMES = ("bos_token_id", "eos_token_id", "pad_token_id")
# Tokenizer classes differ in how they cut digits, spaces, letters and line ends.
_SAMPLE = (
    "El 2026, l'été: 1234567 años; 中文 عربي x_i+=1\n\n\tDon't   STOP word5 word9 🙂"
)


@dataclass(frozen=True)
class Tokenizer:
    """What transformers makes of a tokenizer directory: a class, its vocabulary, the
    special ids by `NAMES`, the ids of a sample text, and a checksum of how pieces are
    joined (merges, scores), None where it is written in Python.
    """

    directory: Path
    class_name: str
    vocabulary: Mapping[str, int]
    ids: Mapping[str, int | None]
    sample: tuple[int, ...]
    model: str | None = None

    @property
    def largest_id(self) -> int:
        return max(self.vocabulary.values(), default=-1)


def read_tokenizer(
    directory: Path, named: Path | None = None, model_type: str | None = None
) -> Tokenizer:
    """The tokenizer that `AutoTokenizer` makes of `directory`, called `named` in errors.

    `model_type`: of the model, for a directory whose config.json came as its publisher
    wrote it: transformers may refuse values there that an export writes otherwise.

    CheckpointError where it makes none, or where a special token is none of its tokens.
    """
    from transformers import AutoTokenizer

    named = named or directory
    try:
        options = _beside(directory, model_type) if model_type else {}
        loaded = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True, **options
        )
        vocabulary = dict(loaded.get_vocab())
        ids = {name: getattr(loaded, name) for name in NAMES}
        words = {name: getattr(loaded, name.removesuffix("_id")) for name in NAMES}
        loaded.model_max_length = 1 << 30  # or it warns of a sample beyond its length
        sample = tuple(loaded.encode(_SAMPLE, add_special_tokens=False))
    # whatever transformers, tokenizers or sentencepiece raise, by what is wrong
    except Exception as error:
        if (directory / "config.json").is_file():
            load_config(directory)  # perhaps it is that which does not load
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{named}: transformers cannot load this tokenizer ({reason}); use one "
            "that AutoTokenizer loads"
        ) from error
    for name, word in words.items():
        if word is not None and vocabulary.get(str(word), -1) != ids[name]:
            raise CheckpointError(
                f"{named}: {name.removesuffix('_id')} {str(word)!r} is none of the "
                "tokenizer's tokens; mend its tokenizer_config.json"
            )
    name = type(loaded).__name__
    return Tokenizer(directory, name, vocabulary, ids, sample, _model_of(loaded))


def _beside(directory: Path, model_type: str) -> dict[str, Any]:
    """The config to read a tokenizer with where its own config.json does not load."""
    from transformers import AutoConfig

    file = directory / "config.json"
    if not file.is_file():
        return {}
    try:
        AutoConfig.from_pretrained(directory, trust_remote_code=False)
        return {}
    except Exception:  # whatever a value provokes
        config = AutoConfig.for_model(model_type)
        # the other key of a config.json that chooses the class of a tokenizer
        if isinstance(name := load_json(file).get("tokenizer_class"), str):
            config.tokenizer_class = name
        return {"config": config}


def _model_of(loaded: Any) -> str | None:
    """Checksum of the model in a tokenizer of the `tokenizers` library."""
    try:
        model = json.loads(loaded.backend_tokenizer.to_str())["model"]
    except Exception:  # none of that library, or with a part written in Python
        return None
    return checksum(json.dumps(model, sort_keys=True).encode())


def differences(given: Tokenizer, training: Tokenizer) -> list[str]:
    """In what `given` turns text into other ids than the tokenizer of training."""
    problems = [
        f"{name} is {given.ids[name]} there and {training.ids[name]} in training"
        for name in NAMES
        if given.ids[name] != training.ids[name]
    ]
    theirs, ours = given.vocabulary, training.vocabulary
    apart = [word for word in {**theirs, **ours} if theirs.get(word) != ours.get(word)]
    if apart:
        word = min(apart)
        problems.append(
            f"{len(apart)} tokens have other ids, such as {word!r}: {theirs.get(word)} "
            f"there and {ours.get(word)} in training"
        )
    elif given.model != training.model and None not in (given.model, training.model):
        problems.append("the same tokens are joined otherwise (merges, scores) there")
    if given.sample != training.sample:
        problems.append(
            f"a sample text gives {_ids(given)} there and {_ids(training)} in training"
        )
    return problems


def moved_ids(given: Tokenizer, base: Tokenizer) -> list[str]:
    """In what `given` has other ids for what `base` has: as `differences`, but that `given`
    may have tokens more, and special tokens among them or that `base` had none for.
    """
    words = {w: i for w, i in given.vocabulary.items() if w in base.vocabulary}
    more = {*given.vocabulary.values()} - {*words.values()}
    ids = {
        name: base.ids[name] if base.ids[name] is None or i in more else i
        for name, i in given.ids.items()
    }
    # A token more may stand in the sample, and in the model that joins the pieces.
    sample = base.sample if more & {*given.sample} else given.sample
    model = None if more else given.model
    kept = replace(given, vocabulary=words, ids=ids, sample=sample, model=model)
    return differences(kept, base)


def _ids(tokenizer: Tokenizer) -> str:
    shown = " ".join(map(str, tokenizer.sample[:12]))
    return f"{len(tokenizer.sample)} tokens ({shown} ...) as {tokenizer.class_name}"


def reconcile(
    document: Mapping[str, Any], ids: Mapping[str, int | None], vocab_size: int
) -> dict[str, Any]:
    """`document` (config or generation config) with the tokenizer's special ids.

    An id that the tokenizer does not have stays as it was, so long as the model has a
    row for it, and is null else: an absent key would mean the default of the model's
    class. Of a list of stop tokens those without a row are dropped; one that holds the
    tokenizer's own stays a list.
    """
    reconciled = dict(document)
    for name in NAMES:
        stated, told = document.get(name), ids.get(name)
        is_list = isinstance(stated, list) and name == "eos_token_id"
        values = (stated or []) if is_list else [stated]
        usable = [v for v in values if type(v) is int and 0 <= v < vocab_size]
        kept = usable if is_list and usable else next(iter(usable), None)
        keeps = told is None or (is_list and told in usable)
        reconciled[name] = kept if keeps else told
    return reconciled


# Keys of generation configs that hold ids, or lists of them, and of sequences of them.
_HOLD_IDS = (
    *("suppress_tokens", "begin_suppress_tokens", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id"),
)
_HOLD_SEQUENCES = ("bad_words_ids", "force_words_ids", "sequence_bias")


def without_foreign_ids(
    document: Mapping[str, Any], vocab_size: int
) -> tuple[dict[str, Any], list[str]]:
    """A generation config without ids that the model has no row for, and what they were.

    What is no list of ids stays, to be refused by transformers.
    """
    kept, notes = dict(document), []
    for key in (*_HOLD_IDS, *_HOLD_SEQUENCES, "forced_decoder_ids"):
        value = document.get(key)
        entries = value if isinstance(value, list) else [value]
        known = [entry for entry in entries if _has_rows(key, entry, vocab_size)]
        if len(known) == len(entries):
            continue
        if isinstance(value, list) and known:
            kept[key] = known
        else:
            del kept[key]
        lost = [entry for entry in entries if entry not in known]
        notes.append(
            f"{key} of the base's generation_config.json named {str(lost[:5])[1:-1]}, "
            "for which the model has no row: left out"
        )
    return kept, notes


def _has_rows(key: str, entry: Any, vocab_size: int) -> bool:
    if key in _HOLD_SEQUENCES and isinstance(entry, list):
        ids = entry[0] if key == "sequence_bias" and entry else entry
    else:  # an id, or the [position, id] of forced_decoder_ids
        ids = entry[1:] if isinstance(entry, list) else [entry]
    numbers = [v for v in ids if type(v) is int] if isinstance(ids, list) else []
    return all(0 <= number < vocab_size for number in numbers)


def agree(
    config: Mapping[str, Any],
    generation: Mapping[str, Any],
    ids: Mapping[str, int | None],
    vocab_size: int,
) -> tuple[dict[str, Any], list[str]]:
    """`config` with one answer where the tokenizer has none: that of the generation
    config, which is the one that `generate` heeds. And what that changed, to be said.

    Stop tokens are no conflict where one side only has more of them.
    """
    agreed, notes = dict(config), []
    usable = reconcile(generation, {}, vocab_size)
    for name in NAMES:
        ours, theirs = config.get(name), usable[name]
        if ids.get(name) is not None or None in (ours, theirs):
            continue
        if not {*_several(ours)} & {*_several(theirs)}:
            agreed[name] = theirs
            notes.append(
                f"{name} was {ours} in config.json and {theirs} in generation_config.json, "
                "and the tokenizer names none: both say the latter now"
            )
    return agreed, notes


def _several(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
