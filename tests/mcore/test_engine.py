"""The Megatron-Core engine: one model, one data order, any layout, the same losses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import CheckpointError, LayoutError
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

# fp32 sums in another order: each loss is a mean of about 300 fp32 terms after a
# forward of 4 layers, and the updates feed rounding back into the weights. 1e-5
# relative is what the product promises; 2e-6 is typical.
LOSS_TOLERANCE = 1e-5
NORM_TOLERANCE = 1e-4

TWO = [Layout(), Layout(cp=2), Layout(tp=2), Layout(pp=2)]
FOUR = [
    Layout(tp=2, cp=2),
    Layout(tp=2, pp=2),
    Layout(cp=2, pp=2),
    Layout(cp=4),
    Layout(cp=2),
    Layout(pp=4),
]
VARIANTS: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True},
    {"attention_bias": True, "architecture": "qwen2"},
    {"qk_norm": True, "architecture": "qwen3"},
    {"recompute": "full"},
    {"recompute": "selective"},
]


def train_layouts(
    rank: int, layouts: list[Layout], variants: list[dict[str, Any]]
) -> dict[str, Any]:
    losses = {}
    with small.distributed():
        for layout in layouts:
            for number, variant in enumerate(variants):
                losses[layout, number] = small.train(
                    small.make_engine(layout, **variant), range(3)
                )
    return losses


@pytest.fixture(scope="module")
def alone() -> list[list[tuple[float, float, int]]]:
    """Losses of one process: what every layout must reproduce."""
    results = run_distributed(train_layouts, 1, [Layout()], VARIANTS)[0]
    return [results[Layout(), number] for number in range(len(VARIANTS))]


@pytest.mark.parametrize(
    "world,layouts", [(2, TWO), (4, FOUR)], ids=["2 ranks", "4 ranks"]
)
def test_every_layout_trains_the_same_losses(
    world: int, layouts: list[Layout], alone: Any
) -> None:
    # On four ranks the plain model alone: what the variants change is covered by each
    # dimension on two.
    variants = VARIANTS if world == 2 else VARIANTS[:2]
    for results in run_distributed(
        train_layouts, world, layouts, variants, timeout=500
    ):
        for (layout, number), losses in results.items():
            for (loss, norm, tokens), (loss_1, norm_1, tokens_1) in zip(
                losses, alone[number], strict=True
            ):
                assert tokens == tokens_1
                assert loss == pytest.approx(loss_1, rel=LOSS_TOLERANCE), (
                    layout,
                    VARIANTS[number],
                )
                assert norm == pytest.approx(norm_1, rel=NORM_TOLERANCE), (
                    layout,
                    VARIANTS[number],
                )


def test_training_lowers_the_loss_and_recompute_changes_nothing(alone: Any) -> None:
    plain, full, selective = alone[0], alone[4], alone[5]
    assert plain[-1][0] < plain[0][0]
    assert full == plain and selective == plain, "recomputation must be bit-exact"


def reshard(
    rank: int, folder: str, saved: Layout, loaded: list[Layout]
) -> dict[Layout, list[Any]]:
    path = Path(folder) / "state"
    out = {}
    with small.distributed():
        engine = small.make_engine(saved)
        small.train(engine, range(2))
        small.save(engine, path)
        out[saved] = small.train(engine, (2, 3))
        for layout in loaded:
            other = small.make_engine(layout)
            other.load(path, with_optimizer=True)
            out[layout] = small.train(other, (2, 3))
    return out


def test_state_saved_on_one_layout_goes_on_on_any(tmp_path: Path) -> None:
    """Same layout bit for bit; others to fp32 rounding."""
    saved = Layout(tp=2)
    results = run_distributed(
        reshard,
        2,
        str(tmp_path),
        saved,
        [Layout(tp=2), Layout(pp=2), Layout(cp=2), Layout()],
    )
    for ranks in results:
        uninterrupted = ranks[saved]
        for layout, losses in ranks.items():
            for (loss, _, _), (expected, _, _) in zip(
                losses, uninterrupted, strict=True
            ):
                assert loss == pytest.approx(expected, rel=LOSS_TOLERANCE), layout


def resume_exactly(rank: int, folder: str) -> tuple[list[Any], list[Any]]:
    with small.distributed():
        engine = small.make_engine(Layout(cp=2))
        small.train(engine, range(2))
        path = Path(folder) / "state"
        small.save(engine, path)
        expected = small.train(engine, (2, 3, 4))
        other = small.make_engine(Layout(cp=2))
        other.load(path, with_optimizer=True)
        return expected, small.train(other, (2, 3, 4))


def train_offloaded(rank: int) -> tuple[Any, Any, int]:
    """Three updates with and without offloading, and how many activations went to host memory."""
    from alia_ctx.nn.activation_offload import offload_activations

    moved = []

    def all_sizes() -> Any:
        hooks = offload_activations(engine.parameters(), least_bytes=0)
        pack = hooks.pack_hook
        hooks.pack_hook = lambda tensor: moved.append(pack(tensor)) or moved[-1]
        return hooks

    with small.distributed():
        plain = small.train(small.make_engine(Layout(tp=2)), range(3))
        engine = small.make_engine(Layout(tp=2), offload=True)
        assert engine.passes.forward_context.func is offload_activations
        engine.passes.forward_context = all_sizes
        offloaded = small.train(engine, range(3))
    return plain, offloaded, sum(isinstance(packed, tuple) for packed in moved)


def test_offloaded_activations_change_nothing() -> None:
    """The first loss to the bit;

    a copy of a view is laid out anew, and matrix products may sum in another order.
    """
    for plain, offloaded, moved in run_distributed(train_offloaded, 2):
        assert offloaded[0][0] == plain[0][0]
        assert np.array(offloaded) == pytest.approx(np.array(plain), rel=1e-7)
        assert moved > 3 * 5 * 4 * 4, "at least four a layer, row and update"


def test_resume_on_the_same_layout_is_bit_exact(tmp_path: Path) -> None:
    for expected, resumed in run_distributed(resume_exactly, 2, str(tmp_path)):
        assert resumed == expected


def save_and_load_variants(rank: int, folder: str) -> list[tuple[Any, Any]]:
    """What two more updates give, before and after loading what was saved."""
    results = []
    with small.distributed():
        for number, variant in enumerate(VARIANTS[1:4]):
            engine = small.make_engine(Layout(tp=2, pp=2), **variant)
            small.train(engine, (0, 1))
            path = Path(folder) / str(number) / "state"
            small.save(engine, path)
            expected = small.train(engine, (2, 3))
            for parameter in engine.parameters():
                parameter.data.fill_(math.nan)
            engine.load(path, with_optimizer=True)
            results.append((small.train(engine, (2, 3)), expected))
    return results


def test_tied_embeddings_biases_and_query_norms_are_saved_whole(tmp_path: Path) -> None:
    for results in run_distributed(save_and_load_variants, 4, str(tmp_path)):
        for resumed, expected in results:
            assert resumed == expected


def losses_by_row(rank: int, layout: Layout) -> list[Any]:
    """Losses and hits of each row, and this rank's share of the logits."""
    with small.distributed():
        engine = small.make_engine(layout)
        small.train(engine, [0] * 12, rate=3e-2)  # until some tokens are hits
        rows = small.rows_of(0)
        found = [
            (row.row.index, row.ranges, row.as_row(), row.hits_as_row())
            for row in engine.row_losses(rows)
        ]
        logits = [None if layout.pp > 1 else engine.logits(row).numpy() for row in rows]
        return [(*row, logits[row[0]]) for row in found]


@pytest.mark.parametrize("layout", [Layout(cp=2), Layout(tp=2), Layout(pp=2)])
def test_row_losses_cover_each_predicted_token_once(layout: Layout) -> None:
    rows = {row.index: row for row in small.rows_of(0)}
    seen = {index: np.zeros(small.CONTEXT, dtype=int) for index in rows}
    hits = 0
    for ranks in run_distributed(losses_by_row, 2, layout):
        for index, ranges, losses, hits_of_row, logits in ranks:
            seen[index] += np.isfinite(losses)
            assert not hits_of_row[np.isnan(losses)].any()
            hits += int(hits_of_row.sum())
            if logits is None:
                continue
            targets = rows[index].targets()
            local = np.concatenate([np.arange(a, b) for a, b in ranges])
            expected = logits.argmax(-1) == targets[local]
            np.testing.assert_array_equal(hits_of_row[local], expected)
    assert hits > 20
    for index, row in rows.items():
        np.testing.assert_array_equal(seen[index], (row.targets() >= 0).astype(int))


def skip_broken_update(rank: int) -> tuple[list[Any], bool, bool]:
    with small.distributed():
        engine = small.make_engine(Layout())
        before = [p.detach().clone() for p in engine.parameters()]
        with_nan = next(engine.parameters())
        kept = with_nan.data.clone()
        with_nan.data.fill_(math.nan)
        result = engine.train_update(small.rows_of(0)[rank::2], 1e-2)
        with_nan.data.copy_(kept)
        same = all(
            (a == b).all() for a, b in zip(before, engine.parameters(), strict=True)
        )
        return [result.loss], result.applied, bool(same)


def test_update_with_nan_loss_is_skipped() -> None:
    for (loss,), applied, same in run_distributed(skip_broken_update, 2):
        assert math.isnan(loss) and not applied and same


def refuse(rank: int, layout: Layout) -> str:
    with small.distributed():
        try:
            small.make_engine(layout)
        except LayoutError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    "layout,expected",
    [(Layout(cp=3), "2*cp=6"), (Layout(tp=8), "num_key_value_heads=4")],
)
def test_layout_that_does_not_fit_is_refused(layout: Layout, expected: str) -> None:
    assert expected in run_distributed(refuse, 1, layout)[0]


def refuse_other_model(rank: int, folder: str) -> str:
    with small.distributed():
        path = Path(folder) / "state"
        small.save(small.make_engine(Layout()), path)
        try:
            small.make_engine(Layout(), hidden_size=64).load(path, with_optimizer=False)
        except CheckpointError as error:
            return str(error)
    return ""


def test_state_of_another_model_is_refused(tmp_path: Path) -> None:
    assert (
        "does not load into this model"
        in run_distributed(refuse_other_model, 1, str(tmp_path))[0]
    )


def blank_rank(rank: int, layouts: list[Layout]) -> list[list[Any]]:
    """Several data-parallel ranks, one row: all but the first bring nothing."""
    found = []
    with small.distributed():
        for layout in layouts:
            engine = small.make_engine(layout)
            passed = small.tokens_passing(engine)
            is_first = engine.data_parallel_rank == 0
            rows: list[PackedRow] = small.rows_of(0)[:1] if is_first else []
            result = engine.train_update(rows, 1e-2)
            found.append([
                *(result.loss, result.gradient_norm, result.predicted_tokens),
                (is_first, {tokens * layout.tp * layout.cp for tokens in passed}),
            ])  # fmt: skip
    return found


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, [Layout()]),
        (4, [Layout(), Layout(cp=2), Layout(tp=2), Layout(pp=2)]),
    ],
)
def test_rank_without_rows_adds_nothing_and_computes_little(
    ranks: int, layouts: list[Layout]
) -> None:
    single = run_distributed(blank_rank, 1, [Layout()])[0][0][:3]
    for of_rank in run_distributed(blank_rank, ranks, layouts):
        for layout, (*values, (is_first, tokens)) in zip(layouts, of_rank, strict=True):
            assert values == pytest.approx(single, rel=LOSS_TOLERANCE), layout
            # Of a blank row 16 tokens for each part that it is cut into.
            blank = {Layout(): 16, Layout(cp=2): 64, Layout(tp=2): 32, Layout(pp=2): 16}
            assert tokens == {small.CONTEXT if is_first else blank[layout]}, layout
