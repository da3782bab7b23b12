"""What `check` says of the machine that it runs on."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from alia_ctx.cluster import software
from alia_ctx.config.load import load_run
from alia_ctx.nn import attention_kernels
from alia_ctx.train.schedule import stage_schedule
from alia_ctx.workflow import gpu_notes, warmup_notes
from alia_ctx.workflow.idle_settings import idle_settings
from alia_ctx.workflow.planned import planned_stage, room_on_a_gpu
from tests.small_run import write_run


def test_a_machine_without_gpus_needs_no_kernel(tmp_path: Path) -> None:
    assert gpu_notes(load_run(write_run(tmp_path))) == []


@pytest.mark.parametrize("driver", [False, True])
def test_what_a_host_cannot_look_at_is_said(
    driver: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a run that wants GPUs, with and without a driver's tools; once."""
    which = (lambda name: f"/usr/bin/{name}") if driver else (lambda name: None)
    monkeypatch.setattr(shutil, "which", which)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = write_run(tmp_path)
    (note,) = gpu_notes(load_run(path, ["engine.device=cuda", "engine.precision=bf16"]))
    assert note.startswith("not looked at, as no GPU is here: attention by auto, and")
    te = ["engine.device=cuda", "engine.precision=bf16", "engine.layers=te"]
    (note,) = gpu_notes(load_run(path, [*te, "engine.attention=flash3"]))
    assert "attention by flash3, layers by TransformerEngine, and" in note
    slow, note = gpu_notes(load_run(path, ["engine.device=cuda"]))
    assert slow.startswith("attention: reference, many times slower than the best on a")
    assert "attention by reference, and" in note
    assert gpu_notes(load_run(path, ["engine.device=cpu"])) == []


@pytest.mark.parametrize(
    "asked, precision, said",
    [
        (
            "auto",
            "bf16",
            "attention: torch_varlen, about half as fast as the best here: .*flash4 needs",
        ),
        (
            "torch_varlen",
            "bf16",
            "torch_varlen, about half .*: engine.attention=torch_v",
        ),
        ("flash4", "bf16", "engine.attention=flash4: .*install flash-attn-4"),
        ("auto", "fp32", "attention: reference, many times slower .*precision=bf16"),
    ],
)
def test_a_slower_kernel_is_said_before_the_queue(
    asked: str,
    precision: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import re

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(attention_kernels, "try_kernel", lambda *_: None)
    monkeypatch.setattr(software, "packages", lambda: [])
    for module in ("flash_attn_interface", "flash_attn", "flash_attn.cute"):
        monkeypatch.setitem(sys.modules, module, None)
    run: Any = load_run(
        write_run(tmp_path),
        [f"engine.attention={asked}", f"engine.precision={precision}"],
    )
    assert re.search(said, " | ".join(gpu_notes(run)))


@pytest.mark.parametrize(
    "memory_gib, said",
    [
        (40.0, None),
        # All that is counted takes next to nothing, and the guess 5 GiB.
        (
            1.0,
            r"stage .*: may fit: .* of 1 GiB .*, are a guess .*(recompute=|GPUs)",
        ),
        (1e-4, r"stage .*: does not fit: .* of 0 GiB .*(recompute=|GPUs)"),
    ],
)
def test_a_stage_without_room_on_this_gpu_is_said_before_it_trains(
    memory_gib: float, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(software, "gpu_memory_gib", lambda: memory_gib)
    monkeypatch.setattr(software, "gpu_notes", lambda *_: [])
    run: Any = load_run(write_run(tmp_path))
    notes = gpu_notes(run)
    if said is None:
        assert notes == []
    else:
        assert len(notes) == len(run.stages)
        assert all(re.search(said, note) for note in notes)


def test_a_host_without_the_memory_for_offloading_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, asked = write_run(tmp_path), ["engine.offload_activations=true"]
    full = [*asked, *(f"stages.{s}.recompute=full" for s in load_run(path).stages)]
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(software, "gpu_memory_gib", lambda: 40.0)
    monkeypatch.setattr(software, "gpu_notes", lambda *_: [])
    assert gpu_notes(load_run(path, full)) == [], "there is room"
    monkeypatch.setattr(software, "host_memory_gib", lambda: 0.0)
    notes = gpu_notes(load_run(path, full))
    assert len(notes) == len(load_run(path).stages)
    assert all("of a node's host memory, and 0 are available" in note for note in notes)
    assert gpu_notes(load_run(path)) == [], "nothing is offloaded"


def test_chunks_of_a_stage_that_has_none_are_said_on_any_machine(
    tmp_path: Path,
) -> None:
    path = write_run(tmp_path)
    asked = ["engine.mlp_chunk_tokens=8", "engine.layers=local"]
    first, *others = load_run(path).stages
    run = load_run(path, [*asked, f"stages.{first}.recompute=full"])
    assert idle_settings(run, [first]) == []
    notes = gpu_notes(run)
    assert len(notes) == len(others) > 0
    for name, note in zip(others, notes, strict=True):
        assert note == (
            f"stage {name}: engine.mlp_chunk_tokens=8 does nothing with recompute="
            f"{run.stage(name).recompute}; set stages.{name}.recompute=full, or leave it out"
        )
    assert gpu_notes(run, [first]) == []


def test_what_makes_room_is_tried_in_turn_and_gives_what_it_says(
    tmp_path: Path,
) -> None:
    """The remedy's settings, loaded, are planned to take what it says, in the room there."""
    path = write_run(tmp_path)
    name = next(iter(load_run(path).stages))
    base = [
        *("model.num_hidden_layers=8", "engine.layers=local"),
        "cluster.host_overhead_gib=1",
    ]
    run = load_run(path, base)
    sizes = [planned_stage(run, name).fullest.total]
    for more in (
        [f"stages.{name}.recompute=selective"],
        [f"stages.{name}.recompute=full"],
        [f"stages.{name}.recompute=full", "engine.offload_activations=true"],
    ):
        other = load_run(path, [*base, *more])
        sizes.append(planned_stage(other, name).fullest.total)
        if sizes[-1] < min(sizes[:-1]):
            _, (remedy,) = room_on_a_gpu(run, name, sizes[-1])
            assert remedy.startswith(" ".join(more) + " takes")
    assert len(set(sizes)) > 1, "nothing was tried"
    assert room_on_a_gpu(run, name, sizes[0])[1] == []
    _, (remedy,) = room_on_a_gpu(run, name, min(sizes) * 0.01)
    assert "raise tp" not in remedy, "nothing to raise on one rank"
    assert "take 2 GPUs (set cluster.nodes=2 stages.short.layout=auto)" in remedy


def test_one_doubt_has_one_wording(tmp_path: Path) -> None:
    """`plan` on a GPU of so much memory, and `check` on a machine with one."""
    path = write_run(tmp_path)
    run = load_run(path)
    name = next(iter(run.stages))
    rank = planned_stage(run, name).fullest
    assert rank.without_guesses < 4 < rank.total
    for there, word in ((rank.total + 1, "fits"), (4.0, "may fit"), (1e-4, "does not")):
        own = load_run(path, [f"cluster.memory_gib={there}"])
        words, remedies = room_on_a_gpu(run, name, there)
        assert words == f"{planned_stage(own, name).verdict} (by the planner)"
        assert words.startswith(word) and bool(remedies) == (word != "fits")


@pytest.mark.parametrize(
    ("warmup", "updates", "said"),
    [(0.2, 6, True), (1, 50, True), (0.2, 51, False), (0, 6, False)],
)
def test_a_first_update_that_trains_nothing_is_said_of_short_stages(
    warmup: float, updates: int, said: bool, tmp_path: Path
) -> None:
    """By transformers' schedule, whose step 0 is the first update."""
    schedule = {"type": "linear", "warmup": warmup}
    path = write_run(tmp_path, schedule=schedule, tokens=512 * updates)
    run = load_run(path, ["stages.long.schedule.warmup=0"])
    notes = warmup_notes(run)
    assert [f"first of its {updates} updates" in note for note in notes] == [
        True
    ] * said
    if said:
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.AdamW([weight], lr=run.stage("short").learning_rate)
        upstream = get_linear_schedule_with_warmup(
            optimizer, run.stage("short").schedule.warmup_updates(updates), updates
        )
        assert upstream.get_last_lr() == [0.0]
        assert stage_schedule(run.stage("short")).rate(0) == 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["engine.tp_overlap_chunks=4", "engine.layers=local"],
            "tp_overlap_chunks=4 does",
        ),
        (
            ["engine.fp8_bf16_layers=30"],
            "fp8_bf16_layers=30 does nothing with .*fp8=off",
        ),
        (
            ["engine.context_split=zigzag"],
            "context_split=zigzag does nothing with cp=1",
        ),
        (["engine.overlap_communication=false"], "go to no other rank"),
        (["engine.layers=auto", "engine.device=cpu"], "layers=auto does .*device=cpu"),
        (
            ["engine.layers=auto", "engine.precision=fp32"],
            "layers=auto .*precision=fp32",
        ),
        (["engine.offload_activations=true", "engine.device=cpu"], "brings nothing"),
        (
            [
                "engine.mlp_chunk_tokens=1000000",
                "engine.layers=local",
                "{recompute}=full",
            ],
            "mlp_chunk_tokens=1000000 does nothing, as a rank has",
        ),
        ([], None),
    ],
)
def test_settings_of_the_engine_without_effect_are_said(
    settings: list[str], said: str | None, tmp_path: Path
) -> None:
    import re

    path = write_run(tmp_path)
    first = next(iter(load_run(path).stages))
    base = ["cluster.ranks_per_node=1", "cluster.nodes=1"]
    asked = [s.format(recompute=f"stages.{first}.recompute") for s in settings]
    notes = idle_settings(load_run(path, [*base, *asked]), [first])
    if said is None:
        assert notes == []
    else:
        [note] = notes
        assert re.search(said, note)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            "optimizer_state=keep",
            ["optimizer_state=keep does nothing with init_from=random"],
        ),
        (
            "rope.mscale=2",
            ["rope.mscale=2 does nothing unless mscale and mscale_all_dim"],
        ),
        ("rope.mscale_all_dim=0.7", ["rope.mscale_all_dim=0.7 does nothing unless"]),
        (
            "rope.mscale=1 rope.mscale_all_dim=0",
            ["rope.mscale=1 does nothing", "rope.mscale_all_dim=0 does nothing"],
        ),
        (
            "rope.attention_factor=1.5 rope.mscale=2",
            [
                "rope.mscale=2 does nothing beside attention_factor; leave one of them out"
            ],
        ),
        ("rope.mscale=2 rope.mscale_all_dim=1", []),
    ],
)
def test_settings_of_a_stage_without_effect_are_said(
    settings: str, said: list[str], tmp_path: Path
) -> None:
    yarn = "{type: yarn, theta: 10000, factor: 4, original_max_position_embeddings: 64}"
    given = ["rope=" + yarn, *settings.split()]
    run = load_run(write_run(tmp_path), [f"stages.short.{each}" for each in given])
    notes = idle_settings(run, ["short"])
    assert len(notes) == len(said)
    for note, start in zip(notes, said, strict=True):
        assert note.startswith(f"stage short: {start}")


def test_chunks_below_a_tile_are_said(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first = next(iter(load_run(path).stages))
    asked = ["engine.tp_overlap_chunks=1000000", "engine.layers=local"]
    asked += ["cluster.ranks_per_node=2", f"stages.{first}.layout.tp=2"]
    [note] = idle_settings(load_run(path, asked), [first])
    assert "chunks of 1 of a rank's" in note and "2 to 8 chunks are meant" in note


def test_tensor_parallelism_over_nodes_is_said(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    first = next(iter(load_run(path).stages))
    asked = ["cluster.nodes=2", "cluster.ranks_per_node=1", "engine.device=cuda"]
    asked += [f"stages.{first}.layout.tp=2"]
    [note] = idle_settings(load_run(path, asked), [first])
    assert f"stage {first}: layout.tp=2 leaves the node of 1 GPUs" in note
    assert not idle_settings(load_run(path, [*asked, "engine.device=cpu"]), [first])
