"""Stages of conversations: the loss that transformers has, each conversation once an epoch
through kills and extensions, rates where they belong.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from alia_ctx import checkpoint, workflow
from alia_ctx.config.load import load_run
from alia_ctx.data.tokens import write_store
from alia_ctx.errors import ConfigError
from alia_ctx.hf.convert import import_hf
from alia_ctx.train.schedule import stage_schedule
from tests import hf_models
from tests.distributed import run_distributed
from tests.small_run import VOCABULARY, metrics, write_run
from tests.train.runs import last, start, train

# Both sum fp32 losses in another order, after a forward of four layers; 1e-5 is what the
# product promises.
LOSS_TOLERANCE = 1e-5
CONVERSATIONS = 300
SCHEDULE = {"type": "cosine", "warmup": 0.1, "min_learning_rate": 1e-4}


def write_conversations(
    prefix: Path, count: int, vocabulary: int = VOCABULARY, longest: int = 60
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Conversations of two turns, of which the answers are trained."""
    generator = np.random.default_rng(3)
    pairs = []
    for length in generator.integers(8, longest, count).tolist():
        start = generator.integers(4, vocabulary)
        tokens = 4 + (start + np.arange(length)) % (vocabulary - 4)
        place = np.arange(length) * 4 // length
        pairs.append((tokens, (place == 1) | (place == 3)))
    tokens, weights = zip(*pairs, strict=True)
    write_store(prefix, tokens, vocabulary, weights)
    return pairs


def write_talk(folder: Path, **stage: Any) -> Path:
    """A run whose stage `short` is of conversations, in updates of 128."""
    path = write_run(folder)
    write_conversations(folder / "talk", CONVERSATIONS)
    config = yaml.safe_load(path.read_text())
    config["data"]["sources"] = {"talk": {"store": str(folder / "talk")}}
    short = {
        "init_from": "random",
        "context": 256,
        "rope": {"type": "default", "theta": 10000},
        "epochs": 3,
        "update_instances": 128,
        "learning_rate": 0.003,
        "schedule": SCHEDULE,
        "pack": {"policy": "best_fit", "long_docs": "drop", "min_rows": 4},
        **stage,
    }
    config["stages"] = {"short": short}
    config["checkpoint"] = {"every_updates": 2, "keep_last": 20}
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


class KillAfter:
    """Kills rank 0 with SIGKILL in the nth update of the process."""

    def __init__(self, updates: int) -> None:
        self.updates = updates

    def __call__(self, rank: int) -> None:
        from alia_ctx.mcore.engine import MegatronEngine

        original, calls = MegatronEngine.train_update, [0]

        def deadly(engine: Any, *args: Any) -> Any:
            calls[0] += 1
            if calls[0] == self.updates and rank == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(engine, *args)

        MegatronEngine.train_update = deadly  # type: ignore[method-assign]


def trained(path: Path, lines: list[dict[str, Any]]) -> list[list[int]]:
    """The conversations of each line of the log, by the rows that it names."""
    plan = workflow.open_plan(load_run(path), "short")
    found = []
    for line in lines:
        rows = [plan.row(i) for i in range(*line["rows"])]
        found.append([int(n) for row in rows for n in row.doc_ids])
        assert line["documents"] == len(found[-1])
        assert line["predicted_tokens"] == sum(row.predicted for row in rows)
    return found


def kept(lines: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    keys = ("update", "rows", "tokens", "documents", "predicted_tokens")
    return [tuple(map(str, (line[k] for k in keys))) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs on one rank, never stopped."""
    folder = tmp_path_factory.mktemp("alone")
    assert start(write_talk(folder)) == ""
    return folder


def test_each_conversation_once_an_epoch_and_rates_as_scheduled(alone: Path) -> None:
    path, lines = alone / "run.yaml", metrics(alone)
    updates = trained(path, lines)
    assert [len(u) for u in updates] == [128, 128, 44] * 3
    everything = Counter(range(CONVERSATIONS))
    for epoch in range(3):
        own = updates[3 * epoch : 3 * epoch + 3]
        assert Counter(n for update in own for n in update) == everything
    schedule = stage_schedule(load_run(path).stage("short"), 9)
    assert [line["learning_rate"] for line in lines] == [
        schedule.rate(update) for update in range(9)
    ]
    assert lines[0]["learning_rate"] == 0 and lines[1]["learning_rate"] == 0.003
    assert lines[-1]["loss"] < lines[0]["loss"]
    manifest = checkpoint.read_manifest(last(alone))
    assert manifest.extra["schedule"]["type"] == "cosine"
    assert manifest.extra["planned"] == {"updates": 9, "epochs": 3}
    assert manifest.ledger[-1].rows == lines[-1]["rows"][1]


def test_killed_resumed_on_two_ranks_and_extended(tmp_path: Path, alone: Path) -> None:
    """dp1 for one epoch, then dp2 through a kill -9 to the end of three: the updates of a
    run that was never stopped.
    """
    path = write_talk(tmp_path)
    two = "cluster.ranks_per_node=2"
    assert start(path, "stages.short.epochs=1") == ""
    first = metrics(tmp_path)
    assert [line["update"] for line in first] == [1, 2, 3]
    message = start(path, two, ranks=2)
    assert "has no plan of 3 epochs" in message and "pack CONFIG" in message
    workflow.pack(load_run(path), "short")
    with pytest.raises(AssertionError, match="ended with status -9"):
        start(path, two, ranks=2, sabotage=KillAfter(4))
    assert start(path, two, ranks=2) == ""
    lines, whole = metrics(tmp_path), metrics(alone)
    assert lines[:3] == first, "what was done stays as it was"
    assert kept(lines) == kept(whole)
    assert trained(path, lines) == trained(alone / "run.yaml", whole)
    # From the extension on the rates are those of the longer stage, and it says so.
    for ours, theirs in zip(lines[3:], whole[3:], strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
    changes = checkpoint.read_manifest(last(tmp_path)).extra["changes"]
    assert [change["after_update"] for change in changes] == [3]
    assert "schedule.updates: 3 there, 9 now" in changes[0]["settings"]
    other = start(path, two, "stages.short.schedule.type=linear", ranks=2)
    assert "schedule.type: cosine there, linear now" in other


def recompute(rank: int, path: str, update: int) -> Any:
    return workflow.recompute(load_run(path), "short", update)


def test_a_logged_loss_is_computed_again(alone: Path) -> None:
    result = run_distributed(recompute, 2, str(alone / "run.yaml"), 5)[0]
    assert result.logged == metrics(alone)[4]["loss"]
    assert result.loss == pytest.approx(result.logged, rel=1e-6)


# -- transformers ----------------------------------------------------------------------

LAYOUTS = ["{}", "{cp: 2}", "{tp: 2}", "{pp: 2}"]


def train_layouts(rank: int, path: str, weightings: list[str]) -> list[str]:
    """One update on each layout, to an output of its own."""
    told = []
    for weighting in weightings:
        for number, layout in enumerate(LAYOUTS):
            overrides = [
                f"stages.short.layout={layout}",
                f"output={Path(path).parent}/{weighting}-{number}",
                f"stages.short.loss_weighting={weighting}",
                "cluster.ranks_per_node=2",
            ]
            if rank == 0:
                workflow.pack(load_run(path, overrides), "short")
            torch.distributed.barrier()
            told.append(train(rank, path, overrides))
    return told


def test_the_loss_of_an_update_is_that_of_transformers_on_every_layout(
    tmp_path: Path,
) -> None:
    """Per token and per conversation, on dp2, cp2, tp2 and pp2; gradients by their norm."""
    vocabulary = hf_models.SIZES["vocab_size"]
    model = hf_models.save_model(
        tmp_path / "hf", "llama", "llama3", dtype=torch.float32
    )
    import_hf(tmp_path / "hf", tmp_path / "base")
    path = write_talk(tmp_path)
    pairs = write_conversations(tmp_path / "talk", 40, vocabulary, 100)
    config = yaml.safe_load(path.read_text())
    config["model"] = "from_checkpoint"
    config["optimizer"] = {"clip_grad": 1e9}
    del config["evaluation"]
    rope = dict(hf_models.ROPES["llama3"])
    config["stages"]["short"] |= {
        "init_from": str(tmp_path / "base"),
        "context": 128,
        "rope": {
            "type": rope.pop("rope_type"),
            "theta": rope.pop("rope_theta"),
            **rope,
        },
        "epochs": 1,
        "update_instances": 40,
        "schedule": {"type": "constant"},
    }
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    weightings = ["token", "conversation"]
    for told in run_distributed(train_layouts, 2, str(path), weightings, timeout=400):
        assert told == [""] * 8
    for weighting in weightings:
        loss, norm = by_transformers(model, pairs, weighting)
        for number, layout in enumerate(LAYOUTS):
            log = tmp_path / f"{weighting}-{number}/stages/short/metrics.jsonl"
            (line,) = (yaml.safe_load(text) for text in log.read_text().splitlines())
            assert line["documents"] == 40
            assert line["loss"] == pytest.approx(loss, rel=LOSS_TOLERANCE), layout
            # of fp32 gradients through four layers, as in test_engine
            assert line["gradient_norm"] == pytest.approx(norm, rel=1e-4), layout


def by_transformers(
    model: Any, pairs: list[tuple[np.ndarray, np.ndarray]], weighting: str
) -> tuple[float, float]:
    """Loss and gradient norm of an update: transformers' own loss of each conversation,
    with the labels that the weights stand for.
    """
    model.zero_grad()
    losses, counts = [], []
    for tokens, weights in pairs:
        ids = torch.from_numpy(tokens).long()[None]
        labels = ids.masked_fill(~torch.from_numpy(weights)[None], -100)
        losses.append(model(input_ids=ids, labels=labels).loss)
        counts.append(float((labels[:, 1:] >= 0).sum()))
    shares = torch.tensor(counts if weighting == "token" else [1.0] * len(counts))
    loss = (torch.stack(losses) * shares).sum() / shares.sum()
    loss.backward()
    squares = [float(p.grad.double().square().sum()) for p in model.parameters()]
    return float(loss.detach()), float(np.sqrt(sum(squares)))


# -- what is refused -------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides,told",
    [
        (["update_tokens=512"], "both are given"),
        (["update_instances=null"], "neither is given"),
        (["tokens=4096"], "tokens=4096: does not go with update_instances"),
        (["epochs=null"], "epochs=None: is needed with update_instances"),
        (["epochs=0"], "epochs=0: must be above 0"),
        (["epochs=1.5"], "epochs"),
        (["update_instances=-1"], "update_instances=-1: must be above 0"),
        (["update_instances=null", "update_tokens=512"], "tokens=None: is needed"),
        (["loss_weighting=document"], "loss_weighting"),
        (["pack.policy=concat"], "cuts conversations"),
        (["pack.weights.talk=1"], "sampling says"),
        (["pack.sources=[chat]"], "no such source"),
        (["pack.sampling.chat=2"], "no such source"),
        (["pack.held_out_instances=-1"], "held_out_instances=-1"),
        (["layout={cp: 64}", "cluster.ranks_per_node=64"], "rows of conversations"),
    ],
)
def test_settings_that_do_not_go_together(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    path = write_talk(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_run(
            path, [f"stages.short.{o}" if "cluster" not in o else o for o in overrides]
        )
    assert told in str(caught.value)


def test_settings_of_conversations_in_a_stage_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="this stage counts tokens"):
        load_run(write_run(tmp_path), ["stages.short.pack.held_out_instances=3"])
