"""The optimizer's constants are a stage's own: those that its origin was trained with
refuse nothing and decide nothing, `optimizer_state: keep` or not; and a change of them at a
resume holds from there on, however often.

The oracle is AdamW's own formula: decoupled weight decay moves a weight by
-rate * decay * weight, whatever else the update does to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alia_ctx import checkpoint
from alia_ctx.checkpoint.dcp_store import open_state
from alia_ctx.workflow.chain import run_directory
from tests.workflow.scenarios import Run

RATE, DECAY = 0.003, 50.0
MAIN = "optimizer.state.param."
KEEP = (
    "stages.long.optimizer_state=keep",
    "stages.long.tokens=768",  # one update
    f"stages.long.learning_rate={RATE}",
)


def last(run: Run, stage: str) -> Path:
    path = checkpoint.latest(run_directory(run.config()).checkpoints(stage))
    assert path is not None
    return path


def weights(path: Path) -> dict[str, Tensor]:
    """The fp32 weights that are stepped, by name."""
    with open_state(path / "state") as reader:
        whole = {}
        for key, (shape, dtype) in reader.tensors.items():
            if key.startswith(MAIN):
                whole[key] = torch.empty(shape, dtype=dtype)
                reader.read_box(key, (0,) * len(shape), whole[key])
        return whole


def scenarios(rank: int, folder: str) -> dict[str, Any]:
    from alia_ctx import workflow

    first = Run(Path(folder, "run.yaml"), Path(folder, "first"))
    workflow.pack(first.config(), "short")
    seen: dict[str, Any] = {"short": first.train("short")}
    workflow.pack(first.config(*KEEP), "long")
    start = weights(last(first, "short"))
    after = {}
    for decay in (0.0, DECAY):
        run = Run(first.path, Path(folder, f"decay {decay}"), like=first)
        settings = (f"optimizer.weight_decay={decay}", *KEEP)
        seen[f"long {decay}"] = run.train("long", *settings)
        after[decay] = weights(last(run, "long"))
        recorded = checkpoint.read_manifest(last(run, "long")).config
        seen[f"recorded {decay}"] = recorded["optimizer"]["weight_decay"]
    seen["norms"] = {
        key: float((after[0.0][key] - after[DECAY][key]).abs().max())
        for key in start
        if start[key].dim() == 1 and start[key].numel() == 32
    }
    # relative to the largest decay of the tensor
    seen["matrices"] = {
        key: float((left - RATE * DECAY * start[key]).abs().max() / left.abs().max())
        for key in start
        if (left := after[0.0][key] - after[DECAY][key]).abs().max() > 0
    }

    twice = Run(first.path, Path(folder, "twice"))
    workflow.pack(twice.config(), "short")
    seen["twice"] = [
        twice.train("short", exit_before=0.0),
        twice.train("short", "optimizer.beta2=0.5", exit_before=0.0),
        twice.train("short", "optimizer.beta2=0.7", "optimizer.epsilon=1e-3"),
    ]
    seen["changes"] = checkpoint.read_manifest(last(twice, "short")).extra["changes"]
    seen["finished"] = (
        twice.train("short", "optimizer.beta2=0.7", "optimizer.epsilon=1e-3"),
        twice.train("short"),
    )
    return seen


def test_an_origin_with_other_constants_is_no_obstacle(seen: dict[str, Any]) -> None:
    assert [seen["short"], seen["long 0.0"], seen[f"long {DECAY}"]] == ["", "", ""]
    assert (seen["recorded 0.0"], seen[f"recorded {DECAY}"]) == (0.0, DECAY)


def test_kept_moments_are_stepped_with_the_constants_of_the_stage(
    seen: dict[str, Any],
) -> None:
    """Differences of fp32 weights near 0.1, of which the decay moves 15%: 1e-4 of it."""
    assert len(seen["matrices"]) == 6, "table, head, and four of the stacked layers"
    assert max(seen["matrices"].values()) < 1e-4
    assert seen["norms"] and set(seen["norms"].values()) == {0.0}


def test_each_change_at_a_resume_is_recorded_with_its_update(
    seen: dict[str, Any],
) -> None:
    assert [said.partition(":")[0] for said in seen["twice"]] == [
        "RequeueError",
        "RequeueError",
        "",
    ]
    assert seen["changes"] == [
        {"after_update": 1, "settings": ["optimizer.beta2: 0.95 there, 0.5 now"]},
        {
            "after_update": 2,
            "settings": [
                "optimizer.beta2: 0.5 there, 0.7 now",
                "optimizer.epsilon: 1e-08 there, 0.001 now",
            ],
        },
    ]


def test_a_finished_stage_has_the_constants_that_it_ended_with(
    seen: dict[str, Any],
) -> None:
    as_ended, as_begun = seen["finished"]
    assert as_ended == ""
    assert "optimizer.beta2: 0.7 there, 0.95 now" in as_begun
