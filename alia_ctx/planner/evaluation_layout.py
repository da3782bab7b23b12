"""A layout for evaluation on the ranks that are there: nothing but weights, one layer's
activations and the keys and values of a row has to fit.
"""

from __future__ import annotations

from collections.abc import Iterator

from alia_ctx.errors import LayoutError, Problem
from alia_ctx.spec.layout import Layout
from alia_ctx.spec.model import ModelSpec

# From this context on a row goes over all ranks (context parallelism first); below it
# rows go to ranks whole, which needs no messages.
LONG = 32_768
_MOST_RANKS = 4096
# Room that the runtime, kernels' workspaces and fragmentation take beside the tensors.
_USABLE = 0.8


def evaluation_layout(
    model: ModelSpec,
    context: int,
    world_size: int,
    *,
    weight_bytes: int,
    memory_bytes: int,
    loss_chunk_tokens: int,
) -> Layout:
    """The layout in which `model` reads rows of `context` tokens on `world_size` ranks of
    `memory_bytes` each.

    Weights (`weight_bytes` a parameter) are cut over as few ranks as they fit on, by
    tensor parallelism before pipelines; of what is left a long row takes all that divide
    it. LayoutError names how many ranks would be enough where these are not, and what
    the context or the model does not divide by where that alone is in the way.
    """

    def fits(layout: Layout) -> bool:
        needed = evaluation_bytes(
            model, context, layout, weight_bytes, loss_chunk_tokens
        )
        return needed <= _USABLE * memory_bytes

    def cost(layout: Layout) -> tuple[int, int, int]:
        cp = -layout.cp if context >= LONG else layout.cp
        return layout.tp * layout.pp, layout.pp, cp

    def best(world: int) -> Layout | None:
        layouts = filter(fits, _layouts(model, context, world))
        return min(layouts, key=cost, default=None)

    layout = best(world_size)
    if layout is not None:
        return layout
    enough = next((2**n for n in range(13) if 2**n > world_size and best(2**n)), None)
    advice = (
        f"start {enough} ranks: `torchrun --nproc-per-node={enough} -m alia_ctx.cli "
        "evaluate ...` (or as many over several nodes)"
        if enough
        else "evaluate a shorter context, or on ranks with more memory"
    )
    undivided = [
        (found, problems)
        for found, problems in _judged(model, context, world_size)
        if problems and fits(found)
    ]
    if undivided:
        found, problems = min(undivided, key=lambda pair: cost(pair[0]))
        raise LayoutError(
            _undivided(model, context, world_size, found, problems, advice)
        )
    raise LayoutError(
        f"{model.parameters():,} parameters and rows of {context:,} tokens do not fit on "
        f"{world_size} ranks of {memory_bytes / 2**30:.1f} GiB; {advice}"
    )


def _undivided(
    model: ModelSpec,
    context: int,
    world_size: int,
    layout: Layout,
    problems: list[Problem],
    advice: str,
) -> str:
    """That ranks have the memory, and only what they would hold cannot be cut so."""
    sizes = f"tp={layout.tp},cp={layout.cp},pp={layout.pp}"
    broken = "; ".join(f"{p.value} {p.rule}" for p in problems)
    step = 2 * layout.cp * layout.tp
    near = -(-context // step) * step
    if not layout.problems("layout", model, near, world_size):
        what, advice = f"rows of {context:,} tokens", f"evaluate {near:,}, or {advice}"
    else:
        what = "the model"
    return (
        f"{model.parameters():,} parameters need layouts of {world_size} ranks that do "
        f"not divide {what} ({sizes}: {broken}); {advice}"
    )


def evaluation_bytes(
    model: ModelSpec,
    context: int,
    layout: Layout,
    weight_bytes: int,
    loss_chunk_tokens: int,
) -> int:
    """Bytes of a rank that only evaluates: its weights, the activations of one layer, the
    keys and values that its queries see, and a chunk of logits in fp32, twice.
    """
    tokens = context // layout.cp
    heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    width = (
        6 * model.hidden_size + (2 * heads + 3 * model.intermediate_size) // layout.tp
    )
    collected = 2 * context * model.num_key_value_heads * model.head_dim // layout.tp
    logits = 8 * min(tokens, loss_chunk_tokens) * model.vocab_size // layout.tp
    weights = model.parameters() * weight_bytes // (layout.tp * layout.pp)
    return weights + weight_bytes * (tokens * width + collected) + logits


def _layouts(model: ModelSpec, context: int, world: int) -> Iterator[Layout]:
    return (layout for layout, broken in _judged(model, context, world) if not broken)


def _judged(
    model: ModelSpec, context: int, world: int
) -> Iterator[tuple[Layout, list[Problem]]]:
    """Every layout whose ranks divide those that there are, with the rules it breaks."""
    divisors = [n for n in range(1, min(world, _MOST_RANKS) + 1) if world % n == 0]
    for tp in divisors:
        for pp in divisors:
            for cp in divisors:
                layout = Layout(tp, cp, pp)
                if world % layout.model_ranks == 0:
                    yield layout, layout.problems("layout", model, context, world)
