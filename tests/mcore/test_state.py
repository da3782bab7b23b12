"""What a load brings over: weights in the precision that they are kept in, moments,
constants of the configuration, on any layout and for any vocabulary.

Saved states are compared tensor by tensor through the checkpoint's own reader, in which
layouts no longer show.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.config.run import OptimizerConfig
from alia_ctx.data.packing import PackedRow
from alia_ctx.errors import CheckpointError
from alia_ctx.spec.layout import Layout
from tests import engine as small
from tests.distributed import run_distributed

MAIN = "optimizer.state.param."


def tensors(state: Path) -> dict[str, Tensor]:
    """Every tensor of a saved state, whole."""
    with open_state(state) as reader:
        whole = {}
        for key, (shape, dtype) in reader.tensors.items():
            whole[key] = torch.empty(shape, dtype=dtype)
            reader.read_box(key, (0,) * len(shape), whole[key])
        return whole


def resave(
    rank: int, folder: str, saved: dict[str, Any], loads: list[dict[str, Any]]
) -> list[bool]:
    """Train two updates and save to FOLDER/saved; load that into each of `loads`, save it
    again to FOLDER/NUMBER, and say whether the ranks that hold the same weights agree.
    """
    agreements = []
    with small.distributed():
        engine = small.make_engine(**saved)
        small.train(engine, range(2))
        small.save(engine, Path(folder) / "saved" / "state")
        for number, options in enumerate(loads):
            options = dict(options)
            keep = options.pop("keep")
            engine = small.make_engine(**options)
            engine.load(Path(folder) / "saved" / "state", with_optimizer=keep)
            weights = [p.detach().float().numpy() for p in engine.parameters()]
            place = (engine.groups.tp.rank(), engine.groups.pp.rank())
            ranks = engine.gather_objects((place, weights))
            agreements.append(
                all(
                    all((a == b).all() for a, b in zip(weights, other, strict=True))
                    for other_place, other in ranks
                    if other_place == place
                )
            )
            small.save(engine, Path(folder) / str(number) / "state")
    return agreements


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_main_weights_go_over_in_any_precision_and_layout(
    tmp_path: Path, precision: str
) -> None:
    """Kept or reset, nothing of the fp32 weights is lost, and ranks compute with the same."""
    other = {"bf16": "fp32", "fp32": "bf16"}[precision]
    loads = [
        {"layout": layout, "precision": new, "keep": keep}
        for layout, new, keep in [
            *itertools.product([Layout()], [precision, other], [True, False]),
            *itertools.product([Layout(tp=2), Layout(pp=2)], [other], [True]),
            *itertools.product([Layout(tp=2), Layout(pp=2)], [precision], [False]),
            (Layout(cp=2), other, False),
        ]
    ]
    saved = {"layout": Layout(), "precision": precision}
    for agreements in run_distributed(
        resave, 2, str(tmp_path), saved, loads, timeout=550
    ):
        assert all(agreements), list(zip(loads, agreements, strict=True))
    before = tensors(tmp_path / "saved" / "state")
    names = [key for key in before if not key.startswith("optimizer.")]
    assert any(
        not torch.equal(before[MAIN + n], before[MAIN + n].bfloat16().float())
        for n in names
    ), "the updates must show in fp32 alone"
    for number, load in enumerate(loads):
        after = tensors(tmp_path / str(number) / "state")
        dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[load["precision"]]
        for name in names:
            rows = real_rows(name, before[name], after[name])
            assert torch.equal(after[MAIN + name][rows], before[MAIN + name][rows])
            assert torch.equal(after[name][rows], before[MAIN + name][rows].to(dtype))
            for moment in ("exp_avg.", "exp_avg_sq."):
                key = f"optimizer.state.{moment}{name}"
                expected = (
                    before[key] if load["keep"] else torch.zeros_like(before[key])
                )
                assert torch.equal(after[key][rows], expected[rows]), (load, key)


def real_rows(name: str, one: Tensor, other: Tensor) -> slice:
    """Of vocabulary tables those rows that both hold; of other tensors all, of one shape."""
    if "word_embeddings" in name or "output_layer" in name:
        return slice(0, min(len(one), len(other)))
    assert one.shape == other.shape
    return slice(None)


def weights_for_evaluation(rank: int, folder: str) -> None:
    """An engine without optimizer computes with what a resumed bf16 one would compute with,
    in fp32 too: those weights are exported.
    """
    state = Path(folder) / "state"
    with small.distributed():
        engine = small.make_engine(Layout(), precision="bf16")
        small.train(engine, range(2))
        small.save(engine, state)
        for layout in (Layout(), Layout(tp=2), Layout(pp=2)):
            found = []
            for precision, train in (("bf16", True), ("bf16", False), ("fp32", False)):
                engine = small.make_engine(layout, precision=precision, train=train)
                engine.load(state, with_optimizer=train)
                assert {p.dtype for p in engine.parameters()} == {
                    {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
                }
                found.append([p.detach().float().clone() for p in engine.parameters()])
            for weights in zip(*found, strict=True):
                resumed, *evaluated = weights
                assert all(torch.equal(resumed, each) for each in evaluated), layout


def test_evaluation_computes_with_the_weights_that_are_exported(tmp_path: Path) -> None:
    run_distributed(weights_for_evaluation, 2, str(tmp_path))


def start_from_weights(rank: int, folder: str) -> None:
    """From a checkpoint of weights alone, as an import writes it, in fp32."""
    with small.distributed():
        engine = small.make_engine(Layout())
        small.train(engine, range(2))
        small.save(engine, Path(folder) / "saved" / "state", with_optimizer=False)
        engine = small.make_engine(Layout(tp=2), precision="bf16")
        engine.load(Path(folder) / "saved" / "state", with_optimizer=False)
        small.save(engine, Path(folder) / "loaded" / "state")


def test_bf16_training_starts_from_the_fp32_weights_of_an_import(
    tmp_path: Path,
) -> None:
    run_distributed(start_from_weights, 2, str(tmp_path))
    before = tensors(tmp_path / "saved" / "state")
    after = tensors(tmp_path / "loaded" / "state")
    assert any(not torch.equal(v, v.bfloat16().float()) for v in before.values())
    for name, value in before.items():
        rows = real_rows(name, value, after[name])
        assert value.dtype == torch.float32 and after[name].dtype == torch.bfloat16
        assert torch.equal(after[MAIN + name][rows], value[rows])
        assert torch.equal(after[name][rows], value[rows].bfloat16())


# ---- constants ----

CHANGED = [
    {"weight_decay": 0.9},
    {"beta1": 0.0},
    {"beta2": 0.5},
    {"epsilon": 1.0},
    {"clip_grad": 1e-3},
]


def steps_with(rank: int, folder: str) -> None:
    """Load into engines with other constants: the next step is torch's AdamW with them."""
    state = Path(folder) / "state"
    with small.distributed():
        engine = small.make_engine(Layout(), constants=OptimizerConfig())
        small.train(engine, range(2))
        small.save(engine, state)
        for changes, keep in itertools.product(CHANGED, (True, False)):
            constants = OptimizerConfig(**changes)
            engine = small.make_engine(Layout(), constants=constants)
            engine.load(state, with_optimizer=keep)
            compare_a_step(engine, constants, small.rows_of(2)[rank::2], 2 * keep)


def compare_a_step(
    engine: Any, constants: OptimizerConfig, rows: list[PackedRow], steps: int
) -> None:
    """This rank's ranges after one update, against torch.optim.AdamW after `steps`."""
    rate = 1e-2
    before = [copy.deepcopy(states) for _, states in engine.optimizer.states()]
    loss, _ = engine.reduce_losses(engine.accumulate_gradients(rows))
    ranges = engine.optimizer.owned.ranges()
    gradients = [p.main_grad.view(-1)[r].clone() for p, r in ranges.items()]
    norm = engine.optimizer.step_if_finite(loss, rate)
    clip = min(1.0, constants.clip_grad / (norm + 1e-6))
    after = list(engine.optimizer.states())
    for states, gradient, (parameter, new) in zip(
        before, gradients, after, strict=True
    ):
        main = states["param"].requires_grad_()
        main.grad = gradient * clip
        adam = torch.optim.AdamW(
            [main],
            lr=rate,
            betas=(constants.beta1, constants.beta2),
            eps=constants.epsilon,
            weight_decay=constants.weight_decay if parameter.ndim > 1 else 0.0,
        )
        adam.state[main] = {
            "step": torch.tensor(float(steps)),
            "exp_avg": states["exp_avg"],
            "exp_avg_sq": states["exp_avg_sq"],
        }
        adam.step()
        # fp32, in another order of operations
        torch.testing.assert_close(new["param"], main.detach(), rtol=2e-6, atol=2e-7)


def test_constants_of_the_configuration_hold_after_a_load(tmp_path: Path) -> None:
    run_distributed(steps_with, 2, str(tmp_path), timeout=550)


# ---- an update in which nothing is predicted ----


def predict_nothing(rank: int, folder: str, layout: Layout) -> tuple[Any, Any, Any]:
    """The state before and after it, and what the update after it does with and without."""
    with small.distributed():
        engine = small.make_engine(layout, constants=OptimizerConfig(weight_decay=0.5))
        small.train(engine, range(2))
        small.save(engine, Path(folder) / "before" / "state")
        expected = small.train(engine, [2])
        engine.load(Path(folder) / "before" / "state", with_optimizer=True)
        documents = [torch.tensor([i]).numpy() for i in range(small.CONTEXT)]
        row = PackedRow.from_documents(documents, small.CONTEXT)
        result = engine.train_update([row], 0.1)
        small.save(engine, Path(folder) / "after" / "state")
        return result, small.train(engine, [2]), expected


@pytest.mark.parametrize("layout", [Layout(), Layout(tp=2), Layout(pp=2), Layout(cp=2)])
def test_an_update_that_predicts_nothing_changes_nothing(
    tmp_path: Path, layout: Layout
) -> None:
    for result, then, expected in run_distributed(
        predict_nothing, 2, str(tmp_path), layout
    ):
        assert not result.applied and result.predicted_tokens == 0
        assert result.loss == 0.0 and result.gradient_norm == 0.0
        assert then == expected
    before = tensors(tmp_path / "before" / "state")
    after = tensors(tmp_path / "after" / "state")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


# ---- a vocabulary that tensor parallelism does not divide ----


def change_layout(
    rank: int, folder: str, saved: Layout, loaded: list[Layout], tied: bool
) -> list[tuple[Any, Any]]:
    model = {"vocab_size": 97, "tie_word_embeddings": tied}
    with small.distributed():
        engine = small.make_engine(saved, **model)
        small.train(engine, range(2))
        small.save(engine, Path(folder) / "saved" / "state")
        expected = small.train(engine, (2, 3))
        results = []
        for number, layout in enumerate(loaded):
            engine = small.make_engine(layout, **model)
            engine.load(Path(folder) / "saved" / "state", with_optimizer=True)
            small.save(engine, Path(folder) / str(number) / "state")
            results.append((small.train(engine, (2, 3)), expected))
        return results


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("saved", [Layout(tp=2), Layout(pp=2)])
def test_a_vocabulary_that_tp_does_not_divide_goes_over_to_any_layout(
    tmp_path: Path, saved: Layout, tied: bool
) -> None:
    """97 rows are 98 over two and 100 over four ranks, of which 97 are real."""
    layouts = [Layout(tp=4), Layout(pp=2), Layout(tp=2, pp=2), Layout()]
    for results in run_distributed(
        change_layout, 4, str(tmp_path), saved, layouts, tied, timeout=550
    ):
        for losses, expected in results:
            for one, other in zip(losses, expected, strict=True):
                assert one == pytest.approx(other, rel=1e-5)
    before = tensors(tmp_path / "saved" / "state")
    for number in range(len(layouts)):
        after = tensors(tmp_path / str(number) / "state")
        assert before.keys() == after.keys()
        for key in before:
            table = "word_embeddings" in key or "output_layer" in key
            rows = slice(0, 97) if table else slice(None)
            assert torch.equal(before[key][rows], after[key][rows]), key
            if table:
                assert not after[key][97:].any(), "padding is zero"


def refuse_vocabulary(rank: int, folder: str, layout: Layout, keep: bool) -> str:
    with small.distributed():
        state = Path(folder) / "state"
        small.save(small.make_engine(Layout(tp=2), vocab_size=97), state)
        try:
            small.make_engine(layout, vocab_size=100).load(state, with_optimizer=keep)
        except CheckpointError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("layout,keep", [(Layout(), True), (Layout(pp=4), False)])
def test_a_smaller_vocabulary_is_refused(
    tmp_path: Path, layout: Layout, keep: bool
) -> None:
    """On ranks without a table too, which would otherwise wait for the others."""
    for text in run_distributed(refuse_vocabulary, 4, str(tmp_path), layout, keep):
        assert "98 rows" in text and "vocabulary of 100" in text
