"""The one table of weight rules: which rows of which Hugging Face tensors make up each
Megatron tensor.

Both directions derive from it. Every rule only deals rows: a Megatron tensor is its
sources' rows, laid one source after another, or group by group where `dealt_by` names a
number of groups. Megatron deals q, k and v by KV group, so that a tensor-parallel slice
of the rows is a slice of whole groups; the halves of the gated MLP are simply stacked.
Nothing is transposed or computed, so a conversion is a copy of byte ranges.

Names on the Megatron side are those of `GPTModel.sharded_state_dict` (megatron-core 0.19, local and
TransformerEngine specs alike), whose layers are stacked along a leading axis.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from alia_ctx.checkpoint.tensor_files import FLOATS, GlobalTensor, TensorPlace
from alia_ctx.errors import CheckpointError
from alia_ctx.spec.model import ModelSpec


@dataclass(frozen=True)
class Rule:
    """One Megatron tensor and its Hugging Face sources.

    `sources` map a name to the ModelSpec fields that are its shape. `{layer}` in names
    makes it a rule for each layer. `only_if` names a boolean field of ModelSpec ("!"
    before it negates).
    """

    megatron: str
    sources: Mapping[str, tuple[str, ...]]
    dealt_by: str | None = None
    only_if: str | None = None

    def applies(self, model: ModelSpec) -> bool:
        if self.only_if is None:
            return True
        return bool(
            getattr(model, self.only_if.removeprefix("!"))
        ) != self.only_if.startswith("!")

    @property
    def per_layer(self) -> bool:
        return any("{layer}" in name for name in self.sources)


_ATTENTION = "decoder.layers.self_attention."
_MLP = "decoder.layers.mlp."
_LAYER = "model.layers.{layer}."
_QKV = {
    _LAYER + "self_attn.q_proj.": "query_size",
    _LAYER + "self_attn.k_proj.": "key_value_size",
    _LAYER + "self_attn.v_proj.": "key_value_size",
}
EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"

RULES: tuple[Rule, ...] = (
    Rule(
        "embedding.word_embeddings.weight", {EMBEDDING: ("vocab_size", "hidden_size")}
    ),
    Rule(
        _ATTENTION + "linear_qkv.layer_norm_weight",
        {_LAYER + "input_layernorm.weight": ("hidden_size",)},
    ),
    Rule(
        _ATTENTION + "linear_qkv.weight",
        {name + "weight": (rows, "hidden_size") for name, rows in _QKV.items()},
        dealt_by="num_key_value_heads",
    ),
    Rule(
        _ATTENTION + "linear_qkv.bias",
        {name + "bias": (rows,) for name, rows in _QKV.items()},
        dealt_by="num_key_value_heads",
        only_if="attention_bias",
    ),
    Rule(
        _ATTENTION + "q_layernorm.weight",
        {_LAYER + "self_attn.q_norm.weight": ("head_dim",)},
        only_if="qk_norm",
    ),
    Rule(
        _ATTENTION + "k_layernorm.weight",
        {_LAYER + "self_attn.k_norm.weight": ("head_dim",)},
        only_if="qk_norm",
    ),
    Rule(
        _ATTENTION + "linear_proj.weight",
        {_LAYER + "self_attn.o_proj.weight": ("hidden_size", "query_size")},
    ),
    Rule(
        _MLP + "linear_fc1.layer_norm_weight",
        {_LAYER + "post_attention_layernorm.weight": ("hidden_size",)},
    ),
    Rule(
        _MLP + "linear_fc1.weight",
        {
            _LAYER + "mlp.gate_proj.weight": ("intermediate_size", "hidden_size"),
            _LAYER + "mlp.up_proj.weight": ("intermediate_size", "hidden_size"),
        },
    ),
    Rule(
        _MLP + "linear_fc2.weight",
        {_LAYER + "mlp.down_proj.weight": ("hidden_size", "intermediate_size")},
    ),
    Rule("decoder.final_layernorm.weight", {FINAL_NORM: ("hidden_size",)}),
    Rule(
        "output_layer.weight",
        {HEAD: ("vocab_size", "hidden_size")},
        only_if="!tie_word_embeddings",
    ),
)


@dataclass(frozen=True)
class Rows:
    """Rows [start, start + count) of tensor `name` (of its `layer`, where it stacks layers)."""

    name: str
    layer: int | None
    start: int
    count: int


class RowMap:
    """Where each row of one tensor comes from, as runs of rows of others."""

    def __init__(self, runs: list[Rows]) -> None:
        self.runs = runs

    @cached_property
    def _ends(self) -> list[int]:
        total, ends = 0, []
        for run in self.runs:
            total += run.count
            ends.append(total)
        return ends

    def between(self, start: int, stop: int) -> Iterator[Rows]:
        """The runs that make up rows [start, stop), in order."""
        index = bisect.bisect_right(self._ends, start)
        while start < stop:
            run, end = self.runs[index], self._ends[index]
            count = min(stop, end) - start
            yield Rows(
                run.name, run.layer, run.start + run.count - (end - start), count
            )
            start, index = start + count, index + 1


class WeightMap:
    """The rules applied to one model:

    the tensors of both sides, and which rows of one are which of the other.
    """

    def __init__(self, model: ModelSpec) -> None:
        self.model = model
        self.rules = {rule.megatron: rule for rule in RULES if rule.applies(model)}
        self._homes = {
            name: rule for rule in self.rules.values() for name in rule.sources
        }

    def huggingface_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every Hugging Face tensor of the model, in the order of the layers."""
        return {
            template.format(layer=layer): self._shape(template)
            for layer, templates in self._templates()
            for template in templates
        }

    def megatron_shapes(self) -> dict[str, tuple[tuple[int, ...], int | None]]:
        """Shape without the layer axis, and number of stacked layers or None, of every
        Megatron tensor.
        """
        shapes = {}
        for name, rule in self.rules.items():
            first, *others = (self._shape(template) for template in rule.sources)
            rows = first[0] + sum(other[0] for other in others)
            shapes[name] = (
                (rows, *first[1:]),
                self.model.num_hidden_layers if rule.per_layer else None,
            )
        return shapes

    def sources(self, megatron: str, layer: int | None) -> RowMap:
        """Where the rows of a Megatron tensor (of one layer) come from in Hugging Face's."""
        rule = self.rules[megatron]
        groups = self._groups(rule)
        blocks = [
            (template.format(layer=layer), self._shape(template)[0] // groups)
            for template in rule.sources
        ]
        return RowMap(
            [
                Rows(name, None, g * size, size)
                for g in range(groups)
                for name, size in blocks
            ]
        )

    def targets(self, template: str, layer: int | None) -> RowMap:
        """Where the rows of a Hugging Face tensor lie in Megatron's: `sources`, inverted."""
        rule = self._homes[template]
        groups = self._groups(rule)
        sizes = {name: self._shape(name)[0] // groups for name in rule.sources}
        before = sum(
            size for name, size in list(sizes.items())[: list(sizes).index(template)]
        )
        stride = sum(sizes.values())
        place = layer if rule.per_layer else None
        return RowMap(
            [
                Rows(rule.megatron, place, g * stride + before, sizes[template])
                for g in range(groups)
            ]
        )

    def huggingface_tensors(self) -> Iterator[tuple[str, tuple[int, ...], RowMap]]:
        """Name, shape and `targets` of every Hugging Face tensor, in the order of the layers."""
        for layer, templates in self._templates():
            for template in templates:
                yield (
                    template.format(layer=layer),
                    self._shape(template),
                    self.targets(template, layer),
                )

    def _templates(self) -> Iterator[tuple[int | None, list[str]]]:
        before: list[str] = []
        per_layer: list[str] = []
        after: list[str] = []
        for rule in self.rules.values():
            if rule.per_layer:
                per_layer += rule.sources
            elif per_layer:
                after += rule.sources
            else:
                before += rule.sources
        yield None, before
        for layer in range(self.model.num_hidden_layers):
            yield layer, per_layer
        yield None, after

    def _shape(self, template: str) -> tuple[int, ...]:
        return tuple(
            getattr(self.model, field)
            for field in self._homes[template].sources[template]
        )

    def _groups(self, rule: Rule) -> int:
        return 1 if rule.dealt_by is None else getattr(self.model, rule.dealt_by)


# Of whole numbers or wide floats; all others are what quantised weights are packed in.
_UNPACKED = (*FLOATS, torch.float64, torch.complex64, torch.int64, torch.bool)


def check_huggingface(
    weights: WeightMap, places: Mapping[str, TensorPlace], where: str
) -> None:
    """Raise CheckpointError unless `places` are exactly the model's tensors in supported dtypes."""
    packed = [name for name, place in places.items() if place.dtype not in _UNPACKED]
    if packed:
        raise CheckpointError(
            f"{where}: {packed[0]} is {places[packed[0]].dtype}, supported are "
            f"{', '.join(map(str, FLOATS))}; quantised weights are in such dtypes "
            f"({len(packed)} tensors here): use the model's unquantised ones"
        )
    expected = weights.huggingface_shapes()
    problems = [
        f"{name} is missing, expected shape {list(shape)}"
        for name, shape in expected.items()
        if name not in places
    ]
    problems += [
        f"{name} is surplus, shape {list(places[name].shape)}"
        for name in places
        if name not in expected
    ]
    for name in places.keys() & expected.keys():
        place = places[name]
        if place.shape != expected[name]:
            problems.append(
                f"{name} has shape {list(place.shape)}, config.json makes it {list(expected[name])}"
            )
        elif place.dtype not in FLOATS:
            problems.append(
                f"{name} is {place.dtype}, supported are {', '.join(map(str, FLOATS))}"
            )
    if problems:
        shown = [f"  {problem}" for problem in sorted(problems)[:10]]
        more = [f"  ... and {len(problems) - 10} more"] if len(problems) > 10 else []
        raise CheckpointError(
            "\n".join(
                [
                    f"{where}: the tensors are not those of its config.json "
                    f"({len(problems)} problems); use the "
                    "weights and the config.json of the same model",
                    *shown,
                    *more,
                ]
            )
        )


def megatron_tensors(
    weights: WeightMap,
    places: Mapping[str, TensorPlace],
    dtype: torch.dtype | None,
    where: str,
) -> list[GlobalTensor]:
    """The Megatron tensors to write, in `dtype` or that of their sources.

    Raises CheckpointError where the sources of one tensor (its layers included) differ in dtype.
    """
    dtypes: dict[str, dict[torch.dtype, str]] = {}
    for name, _, home in weights.huggingface_tensors():
        dtypes.setdefault(home.runs[0].name, {}).setdefault(places[name].dtype, name)
    tensors = []
    for name, (shape, layers) in weights.megatron_shapes().items():
        if dtype is None and len(dtypes[name]) > 1:
            mixed = ", ".join(
                f"{source} is {has}" for has, source in dtypes[name].items()
            )
            raise CheckpointError(
                f"{where}: {mixed}; Megatron keeps them in one tensor: ask for one dtype"
            )
        tensors.append(
            GlobalTensor(name, shape, dtype or next(iter(dtypes[name])), layers)
        )
    return tensors
