"""What a cluster's GPU cannot compute is refused before any work, with a remedy that passes."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from alia_ctx.config.load import load_plan, load_run, read_config
from alia_ctx.errors import ConfigError
from alia_ctx.planner import plan_stage
from alia_ctx.spec.cluster import ClusterSpec
from alia_ctx.spec.compute_capability import FASTEST_KERNELS, capability_problems
from alia_ctx.spec.machines import MACHINES
from alia_ctx.workflow import doctor, gpu_notes
from alia_ctx.workflow.plan_question import PlanQuestion, plan_remarks
from tests.paths import ROOT
from tests.planner.test_kernels import SIZES
from tests.small_run import write_run

ALIA = ROOT / "configs" / "alia-40b.yaml"
GPU = ["engine.device=cuda", "engine.precision=bf16"]
FP8 = [*GPU, "engine.layers=te", "engine.fp8=current", "engine.fp8_bf16_layers=0"]
# Of NVIDIA's list of GPUs by compute capability.
CARDS = {"marenostrum5": 9.0, "h100-80": 9.0, "h200": 9.0, "a100-80": 8.0}


def test_every_machine_has_its_compute_capability() -> None:
    shown = {name: spec.compute_capability for name, spec in MACHINES.items()}
    assert shown == {**CARDS, "laptop": None}
    files = {
        path.stem: cluster.get("compute_capability")
        for path in (ROOT / "configs" / "clusters").glob("*.yaml")
        if (cluster := read_config(path).get("cluster"))
    }
    assert files == shown
    for spec in MACHINES.values():
        by_peaks = replace(spec, compute_capability=None).capability
        assert by_peaks == spec.compute_capability, "the peaks say the same"


@pytest.mark.parametrize(
    ("capability", "fp8", "attention", "named"),
    [
        # FP8 as TransformerEngine 2.12 has it (transformer_engine.pytorch.quantization).
        (8.0, "current", "auto", ["engine.fp8=current", "fp8=off"]),
        (8.0, "blockwise", "auto", ["engine.fp8=blockwise", "fp8=off"]),
        (8.9, "blockwise", "auto", ["engine.fp8=blockwise", "fp8=current"]),
        (8.9, "current", "auto", []),
        *((at, kind, "auto", []) for at in (9.0, 10.0) for kind in ("blockwise",)),
        # FlashAttention 3 has code of sm_80 and sm_90a, 4 takes 8.x to 12.x.
        (10.0, "off", "flash3", ["engine.attention=flash3", "attention=auto"]),
        (12.0, "off", "flash3", ["engine.attention=flash3", "attention=auto"]),
        (13.0, "off", "flash4", ["engine.attention=flash4", "attention=auto"]),
        *((at, "off", "flash4", []) for at in (8.0, 9.0, 10.3, 11.0, 12.1)),
        *((at, "off", "flash3", []) for at in (8.0, 9.0)),
        *((at, "off", "torch_varlen", []) for at in (8.0, 12.0)),
        (7.5, "off", "flash2", ["engine.attention=flash2", "attention=reference"]),
        (7.5, "off", "auto", ["engine.attention=auto", "attention=reference"]),
    ],
)
def test_what_a_gpu_lacks_is_refused_with_what_it_has(
    capability: float, fp8: str, attention: str, named: list[str], tmp_path: Path
) -> None:
    path, layers = write_run(tmp_path), "te" if fp8 != "off" else "local"
    settings = [*GPU, f"engine.fp8={fp8}", f"engine.attention={attention}"]
    settings += [f"engine.layers={layers}", "engine.fp8_bf16_layers=0"]
    settings += ["cluster.peak_tflops=500", "cluster.peak_fp32_tflops=50"]
    settings += [f"cluster.compute_capability={capability}"]
    for load in (load_run, load_plan):
        if not named:
            load(path, settings)
            continue
        with pytest.raises(ConfigError) as caught:
            load(path, settings)
        (problem,) = caught.value.problems
        assert all(part in str(problem) for part in named)
        assert f"is {capability}" in str(problem) or f"{capability};" in str(problem)
        found = re.search(r"set (\S+?)(,|$)", problem.remedy)
        assert found is not None
        load(path, [*settings, found[1]])


@pytest.mark.parametrize("written", ["off", "'off'", '"off"'])
def test_off_is_a_word_where_one_is_chosen(written: str, tmp_path: Path) -> None:
    """YAML 1.1 takes it for false; a file and the command line may have it."""
    path = write_run(tmp_path)
    assert load_run(path, [*FP8, f"engine.fp8={written}"]).engine.fp8 == "off"
    text = f"include: run\nengine: {{fp8: {written}, deterministic: off}}\n"
    (tmp_path / "own.yaml").write_text(text)
    engine = load_run(tmp_path / "own.yaml").engine
    assert (engine.fp8, engine.deterministic) == ("off", False)


def test_te_in_bf16_is_for_ampere_and_later(tmp_path: Path) -> None:
    old = [*GPU, "engine.attention=reference", "cluster.compute_capability=7.0"]
    old += ["cluster.peak_tflops=125"]
    with pytest.raises(ConfigError, match=r"engine\.layers=te: .* set engine.layers"):
        load_run(write_run(tmp_path), [*old, "engine.layers=te"])
    load_run(tmp_path / "run.yaml", old)


def test_a_machine_by_name_and_by_its_peaks() -> None:
    fp8 = ["engine.layers=te", "engine.fp8=current"]
    with pytest.raises(ConfigError, match=r"engine\.fp8=current: .* engine\.fp8=off"):
        load_plan(ALIA, fp8, machine="a100-80")
    load_plan(ALIA, fp8, machine="h200")
    peaks = ["cluster.peak_tflops=312", "cluster.peak_fp32_tflops=19.5"]
    with pytest.raises(ConfigError) as caught:
        load_plan(ALIA, [*fp8, *peaks])
    [told] = [p for p in caught.value.problems if "peaks of 312" in p.rule]
    assert "set cluster.compute_capability=8.0" in told.remedy
    load_plan(ALIA, [*peaks, "cluster.compute_capability=8.0"])
    # A processor has none of it either.
    with pytest.raises(ConfigError) as caught:
        load_plan(ALIA, [*fp8, "engine.attention=flash3"], machine="laptop")
    assert {p.key for p in caught.value.problems} == {
        *("engine.fp8", "engine.layers", "engine.attention")
    }


@pytest.mark.parametrize("value", ["0", "-9", "8.95", "900", ".nan", "sm_90"])
def test_what_is_no_compute_capability(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cluster\.compute_capability"):
        load_run(write_run(tmp_path), [f"cluster.compute_capability={value}"])


def test_the_planner_itself_gives_no_card_a_speed_that_it_lacks() -> None:
    with pytest.raises(ConfigError, match=r"engine\.fp8=current"):
        plan_stage(*SIZES, cluster=MACHINES["a100-80"], fp8="current", layers="te")
    faster = plan_stage(*SIZES, cluster=MACHINES["h200"], fp8="current", layers="te")
    plain = plan_stage(*SIZES, cluster=MACHINES["h200"], layers="te")
    assert faster.timing.total < plain.timing.total


def test_what_nobody_knows_or_is_slower_is_said(tmp_path: Path) -> None:
    path, other = write_run(tmp_path), "cluster.peak_tflops=362"

    def said(*settings: str) -> str:
        run = load_run(path, list(settings))
        planned = list(plan_remarks(run, PlanQuestion()))
        noted = [n for n in gpu_notes(run) if "not looked at" not in n]
        assert planned == noted
        return " ".join(planned)

    unknown = said(*FP8, other, "engine.attention=flash3")
    assert "engine.fp8=current and engine.attention=flash3 is not known" in unknown
    assert "set cluster.compute_capability" in unknown
    assert said(*FP8, other, "cluster.compute_capability=8.9") == ""
    a100 = "cluster.compute_capability=8.0"
    slower = said(*GPU, other, "engine.attention=flash3", a100)
    assert "attention=flash3 is not the fastest" in slower and "flash2 or" in slower
    assert said(*GPU, "engine.attention=flash4") == ""
    assert said(*GPU, other) == "", "nothing is asked of it"


def test_one_table_is_the_engines_and_the_planners() -> None:
    """A kernel that the engine takes first on a GPU is none that is refused there."""
    for major, kernels in FASTEST_KERNELS.items():
        there = ClusterSpec(peak_tflops=2250, compute_capability=float(major))
        for kernel in kernels:
            assert not capability_problems(there, "off", kernel, "local")


def test_doctor_tells_another_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = load_run(write_run(tmp_path))
    for there, status in (((9, 0), "ok"), ((8, 0), "weak")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at=there: at)
        found = doctor._capability(run)
        assert (found.remedy == "") == (status == "ok")
        assert f"capability {there[0]}.0" in found.words


@pytest.mark.parametrize(
    ("cluster", "named"),
    [
        ([1, 2], ["cluster=[1, 2]", "mapping"]),
        ("many", ["cluster=many", "mapping"]),
        (None, ["cluster", "mapping"]),
        (
            {"peak_tflops": float("nan"), "foo": 3},
            ["cluster.peak_tflops=nan", "cluster.foo=3"],
        ),
        ({"memory_gib": 0}, ["cluster.memory_gib=0"]),
        ({"efficiency": 2}, ["cluster.efficiency=2"]),
    ],
)
def test_a_named_machine_hides_no_mistake_of_the_file(
    cluster: object, named: list[str], tmp_path: Path
) -> None:
    document = yaml.safe_load(write_run(tmp_path).read_text())
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(document | {"cluster": cluster}))
    for machine in (None, "h200"):
        with pytest.raises(ConfigError) as caught:
            load_plan(path, machine=machine)
        assert all(part in str(caught.value) for part in named), machine


def test_what_is_left_open_is_no_mistake_under_a_named_machine(tmp_path: Path) -> None:
    document = yaml.safe_load(write_run(tmp_path).read_text())
    path = tmp_path / "open.yaml"
    own = {"nodes": 2, "memory_gib": "???", "node_gb_per_s": "${cluster.nodes}"}
    path.write_text(yaml.safe_dump(document | {"cluster": own}))
    run, _ = load_plan(path, machine="h200")
    assert run.cluster == replace(MACHINES["h200"], nodes=2)
