"""All files of an export but its weights, made before the first weight is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alia_ctx.checkpoint.directory import ASSETS
from alia_ctx.checkpoint.manifest import Manifest
from alia_ctx.data.documents.chat_spec import CHAT_TEMPLATE
from alia_ctx.data.tokens.tokenizer_files import (
    CONFIGURED,
    backend_files,
    has_vocabulary,
    known_tokenizer,
)
from alia_ctx.hf import assets, limits, serving, special_ids, trial
from alia_ctx.hf.assets import CARD, GENERATION_CONFIG, ORIGIN
from alia_ctx.hf.config import CONFIG
from alia_ctx.hf.export_tokenizer import export_tokenizer
from alia_ctx.hf.json_files import load_json, refusal, write_json
from alia_ctx.hf.model_card import model_card
from alia_ctx.hf.rope_config import dynamic_note, least_version, stated_length
from alia_ctx.hf.server_rope import other_ropes
from alia_ctx.hf.serving_commands import serving_lines
from alia_ctx.hf.special_ids import Tokenizer

NO_TOKENIZER = (
    "the export has NO TOKENIZER: neither the checkpoint nor its run has one; text that "
    "was made with another is noise to it. Give its own with --tokenizer DIR"
)
NOT_STATED = (
    "the checkpoint does not say which tokenizer it was trained with, as those of "
    "earlier releases: the files were taken as they are now"
)

NOT_OF_TEXT = (
    "the text that the checkpoint was trained on does not say which tokenizer made it, as "
    "token stores made elsewhere: that of the configuration was taken"
)


@dataclass(frozen=True)
class ExportAssets:
    """What goes with the weights of one checkpoint.

    Args:
        ckpt_dir: the checkpoint; its assets are those of the model that was imported.
        manifest: its manifest.
        tokenizer: a directory to take the tokenizer from instead of the one that the run
            was trained with.
        dtypes: of the exported tensors.
        weight_bytes: of all exported tensors together.
        evaluation: what was measured of the checkpoint, as Markdown for the card.
    """

    ckpt_dir: Path
    manifest: Manifest
    tokenizer: Path | None
    dtypes: tuple[torch.dtype, ...]
    weight_bytes: int
    evaluation: str = ""

    def write(self, directory: Path) -> list[str]:
        """Write every file into the empty `directory`; returns what a person should hear.

        Raises CheckpointError: a tokenizer that is not that of training, that does not
        load, or that has ids beyond the model's; links out of a directory.
        """
        manifest, carried = self.manifest, self.ckpt_dir / ASSETS
        source = export_tokenizer(self.ckpt_dir, manifest, self.tokenizer)
        legal = assets.legal_files(carried)
        assets.copy_assets(carried, directory, [GENERATION_CONFIG, *legal])
        assets.copy_assets(source, directory, assets.tokenizer_assets(source))
        assets.check_tokenizer(directory, manifest.model)
        template = manifest.extra.get(CHAT_TEMPLATE)
        notes = serving.write_chat_template(directory, template) if template else []
        self._lift_limits(directory)
        original = carried / CONFIG
        config, left_out = trial.travelling_config(
            load_json(original) if original.is_file() else {},
            manifest.model,
            manifest.rope,
            manifest.context,
            self._dtype(),
        )
        notes += [f"{CONFIG} of the base: left out {problem}" for problem in left_out]
        notes += self._reconcile(directory, config, source)
        notes += self._leave_out_unusable(directory)
        chat, more = serving.complete(directory, template, manifest.model.vocab_size)
        notes += more
        if not manifest.is_import and known_tokenizer(manifest.extra) is None:
            notes.append(NOT_STATED)
        if CONFIGURED in self.manifest.extra:
            notes.append(NOT_OF_TEXT)
        notes += self._rope_notes()
        file = carried / ORIGIN
        origin = load_json(file) if file.is_file() else dict(manifest.extra)
        if resized := origin.get("resized_embeddings"):
            notes.append(
                f"the embedding was resized at import, from {resized['from']} to "
                f"{resized['to']} rows; new ones began as the mean of the others"
            )
        card = carried / CARD
        text = model_card(
            manifest,
            dtype_names(self.dtypes),
            base=origin.get("source"),
            base_card=card.read_text("utf-8", "replace") if card.is_file() else "",
            legal=tuple(legal),
            notes=tuple(notes),
            evaluation=self.evaluation,
            serving=serving_lines(
                manifest,
                self.weight_bytes,
                self._dtype().itemsize,
                has_template=chat is not None,
                has_calls=chat is not None and chat.has_calls,
            ),
        )
        (directory / CARD).write_text(text, encoding="utf-8")
        return notes

    def _dtype(self) -> torch.dtype:
        """What config.json states, and servers compute in: that of most tensors."""
        return max(self.dtypes, key=self.dtypes.count)

    def _lift_limits(self, directory: Path) -> None:
        context = self.manifest.context
        for name, lift in {
            "tokenizer_config.json": lambda d: limits.lift_tokenizer_config(d, context),
            **dict.fromkeys(backend_files(directory), limits.lift_tokenizer),
        }.items():
            file = directory / name
            if file.is_file():
                document = load_json(file)
                lifted = lift(document)
                if lifted != document:
                    write_json(file, lifted)

    def _reconcile(
        self, directory: Path, config: Mapping[str, Any], source: Path
    ) -> list[str]:
        """Write config and generation config with the special ids of the tokenizer that
        came from `source`; returns what is missing.
        """
        manifest, vocab_size = self.manifest, self.manifest.model.vocab_size
        notes: list[str] = []
        config = special_ids.reconcile(config, {}, vocab_size)
        write_json(directory / CONFIG, config)
        ids: Mapping[str, int | None] = {}
        if has_vocabulary(directory):
            tokenizer = special_ids.read_tokenizer(directory, source)
            ids = {
                name: value
                for name, value in tokenizer.ids.items()
                if value is None or value < vocab_size
            }
            notes += self._reading_notes(tokenizer, source)
        else:
            notes.append(NO_TOKENIZER)
        config = special_ids.reconcile(config, ids, vocab_size)
        write_json(directory / CONFIG, config)
        file = directory / GENERATION_CONFIG
        generation, foreign = trial.travelling_generation(
            load_json(file) if file.is_file() else {}, manifest.context, vocab_size
        )
        notes += foreign
        config, agreed = special_ids.agree(config, generation, ids, vocab_size)
        notes += agreed
        write_json(directory / CONFIG, config)
        stated = {name: config[name] for name in special_ids.NAMES}
        generation = special_ids.reconcile({**stated, **generation}, ids, vocab_size)
        for name in special_ids.NAMES:  # what one of the two cannot say, the other does
            if generation[name] is None:
                generation[name] = config[name]
        write_json(file, generation)
        if generation["eos_token_id"] is None:
            notes.append(
                "neither tokenizer nor configuration names a token that ends a text: "
                "generation will not stop by itself"
            )
        return notes

    def _leave_out_unusable(self, directory: Path) -> Iterator[str]:
        """Take out of the generation config what stops transformers; says what that was.

        An import refuses it; a checkpoint of an earlier release may have it.
        """
        config, generation = (
            load_json(directory / name) for name in (CONFIG, GENERATION_CONFIG)
        )
        _, problems = trial.unusable(config, config, generation)
        for problem in problems:
            if problem.key not in generation:
                raise refusal(self.ckpt_dir / ASSETS / GENERATION_CONFIG, problems)
            yield f"{GENERATION_CONFIG} of the base: left out {problem}"
            del generation[problem.key]
        write_json(directory / GENERATION_CONFIG, generation)

    def _reading_notes(self, exported: Tokenizer, source: Path) -> Iterator[str]:
        """What changes where transformers loads the tokenizer beside this config.json: for
        some architectures it takes a class of its own, whatever the files say.
        """
        if exported.largest_id >= self.manifest.model.vocab_size:
            yield (
                f"transformers reads the tokenizer as {exported.class_name}, with ids up "
                f"to {exported.largest_id}; the model has "
                f"{self.manifest.model.vocab_size} rows"
            )
        if source == self.ckpt_dir / ASSETS:
            return  # it stood beside the same config.json there
        apart = special_ids.differences(exported, special_ids.read_tokenizer(source))
        if apart:
            yield (
                "transformers reads the tokenizer otherwise than the training did: "
                f"{'; '.join(apart)}"
            )

    def _rope_notes(self) -> list[str]:
        rope, context = self.manifest.rope, self.manifest.context
        notes, stated = [], stated_length(rope, context)
        if note := dynamic_note(rope, context):
            notes.append(note)
        if least := least_version(rope, context):
            notes.append(
                f"this RoPE needs transformers {least} or later: earlier ones compute "
                "another one from the same config.json"
            )
        if rope.type != "dynamic":  # its note says what servers make of it
            others = other_ropes(self.manifest.model.architecture, rope, context)
            notes += [
                f"{server} computes another RoPE than was trained: {why}"
                for server, why in others.items()
            ]
        if stated > context:
            notes.append(
                f"config.json states max_position_embeddings {stated:,}, the reach of its "
                f"YaRN, so that every transformers reads factor {rope.factor:g}; the "
                f"model was trained at {context:,} tokens"
            )
        return notes


def dtype_names(dtypes: tuple[torch.dtype, ...]) -> str:
    """The dtypes by name, each once."""
    return ", ".join(sorted({str(dtype).removeprefix("torch.") for dtype in dtypes}))
