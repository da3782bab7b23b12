"""What a user sees of the configuration:

everything wrong at once, each with key, rule and remedy, exit status 2.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alia_ctx.config.load import load_run
from alia_ctx.errors import ConfigError
from tests.paths import ROOT

ALIA = ROOT / "configs" / "alia-40b.yaml"

# override(s) -> what the message must hold
BROKEN = {
    "unknown key": (
        ["stages.32k.layout.cpp=8"],
        ["stages.32k.layout.cpp=8", "unknown key", "did you mean"],
    ),
    "unknown top key": (
        ["modle.hidden_size=1"],
        ["modle", "unknown key", "did you mean model?"],
    ),
    "wrong type": (
        ["stages.32k.context=long"],
        ["stages.32k.context=long", "a whole number"],
    ),
    "list for number": (
        ["model.hidden_size=[1,2]"],
        ["model.hidden_size", "a whole number", "list"],
    ),
    "fraction for whole": (
        ["stages.32k.tokens=1.5"],
        ["stages.32k.tokens=1.5", "a whole number"],
    ),
    "cp does not divide": (
        ["stages.160k.layout.cp=24"],
        ["stages.160k.layout.cp=24", "2*cp=48", "20 or 32 fit"],
    ),
    "tp above kv heads": (
        ["stages.32k.layout.tp=16"],
        ["stages.32k.layout.tp=16", "num_key_value_heads=8"],
    ),
    "tp does not divide": (
        ["stages.32k.layout.tp=3"],
        ["stages.32k.layout.tp=3", "does not divide"],
    ),
    "tp that heads and FFN are cut by": (
        # 7 divides the FFN alone: it is no remedy.
        ["model.intermediate_size=24_570", "stages.32k.layout.tp=4"],
        ["does not divide intermediate_size=24570", "layout.tp=4", "2 fit"],
    ),
    "pp does not divide": (
        ["stages.32k.layout.pp=5"],
        ["stages.32k.layout.pp=5", "48 layers", "4 or 6 fit"],
    ),
    "world": (["cluster.nodes=10"], ["stages.160k.layout", "does not divide 40 ranks"]),
    "missing rope": (
        ["stages.32k.rope=null"],
        ["stages.32k.rope", "must be a mapping"],
    ),
    "rope without factor": (
        ["stages.32k.rope.factor=null"],
        ["stages.32k.rope.factor", "llama3 needs it"],
    ),
    "rope with surplus": (
        ["stages.32k.rope.beta_fast=32"],
        ["stages.32k.rope.beta_fast=32", "ignores it", "remove it"],
    ),
    "rope too short": (
        ["stages.160k.rope.factor=8"],
        ["stages.160k.rope.factor=8", "reaches 32768", "40 or more"],
    ),
    "rope unknown": (
        ["stages.32k.rope.type=ntk"],
        ["stages.32k.rope.type=ntk", "default, linear, dynamic, yarn, llama3"],
    ),
    "missing data": (
        ["data.sources.long.inputs=[/no/such/file.jsonl]"],
        ["data.sources.long.inputs", "/no/such/file"],
    ),
    "no data": (["data.sources.long.inputs=[]"], ["data.sources.long"]),
    "budget below one update": (
        ["stages.160k.tokens=1000000"],
        ["stages.160k.tokens=1000000", "4096000"],
    ),
    "update below one row": (
        ["stages.160k.update_tokens=100000"],
        ["stages.160k.update_tokens=100000", "163840"],
    ),
    "negative rate": (
        ["stages.32k.learning_rate=-1"],
        ["stages.32k.learning_rate=-1", "above 0"],
    ),
    "unknown stage": (
        ["stages.160k.init_from=16k"],
        ["stages.160k.init_from=16k", "neither a stage"],
    ),
    "circle": (["stages.32k.init_from=160k"], ["goes in a circle"]),
    "weights": (
        ["stages.32k.pack.weights.long=0.9"],
        ["stages.32k.pack.weights", "1.3"],
    ),
    "long documents unsaid": (
        ["stages.32k.pack.long_docs=null"],
        ["stages.32k.pack.long_docs", "split, drop"],
    ),
    "heads": (
        ["model.num_key_value_heads=7"],
        ["model.num_key_value_heads=7", "num_attention_heads=64"],
    ),
    "precision": (["engine.precision=fp8"], ["engine.precision=fp8", "fp32, bf16"]),
    "fp8 without the layers that have it": (
        ["engine.fp8=current"],
        ["engine.fp8=current", "have no FP8", "set engine.layers=te"],
    ),
    "fp8 in fp32": (
        ["engine.layers=te", "engine.fp8=blockwise", "engine.precision=fp32"],
        ["engine.fp8=blockwise", "bf16 alone", "leave engine.fp8 out"],
    ),
    "layers of a GPU on a host": (
        ["engine.layers=te", "engine.device=cpu"],
        ["engine.layers=te", "needs a GPU", "leave engine.layers out"],
    ),
    "no layer left for fp8": (
        ["engine.layers=auto", "engine.fp8=current", "engine.fp8_bf16_layers=24"],
        ["stage 32k: the first and last 24 of 48 layers", "engine.fp8_bf16_layers=0"],
    ),
    "fewer layers than none": (
        ["engine.layers=auto", "engine.fp8=current", "engine.fp8_bf16_layers=-1"],
        ["engine.fp8_bf16_layers=-1: is no number of layers"],
    ),
    "widths for fp8": (
        ["engine.layers=te", "engine.fp8=current", "model.intermediate_size=24_544"],
        [
            "stage 32k: widths on tp=4",
            "16: intermediate_size 6136",
            "use tp=2, or engine.fp8=off",
        ],
    ),
    "widths for fp8 on no ranks": (
        ["engine.layers=te", "engine.fp8=current", "model.intermediate_size=24_552"],
        ["widths on tp=4", "16: intermediate_size 6138", "engine.fp8=off", "on no tp"],
    ),
    "an mlp in chunks of other layers": (
        ["engine.layers=te", "engine.mlp_chunk_tokens=8192"],
        ["engine.mlp_chunk_tokens=8192", "not cut into chunks", "engine.layers=local"],
    ),
    "overlap of other layers": (
        ["engine.layers=te", "engine.tp_overlap_chunks=4"],
        ["engine.tp_overlap_chunks=4", "not cut into chunks", "engine.layers=local"],
    ),
    "no chunk": (["engine.tp_overlap_chunks=0"], ["engine.tp_overlap_chunks=0"]),
    "fewer chunks than none": (
        ["engine.tp_overlap_chunks=-2"],
        ["engine.tp_overlap_chunks=-2", "above 0"],
    ),
    "more chunks than tiles": (
        ["engine.tp_overlap_chunks=100000", "engine.layers=local"],
        [
            "engine.tp_overlap_chunks=100000: stage 32k: a rank has 1,024 tokens of a row, "
            "8 tiles of the 128",
            "set 2 to 8, 8 at most",
        ],
    ),
    "chunks of nothing": (
        ["engine.mlp_chunk_tokens=0"],
        ["engine.mlp_chunk_tokens=0"],
    ),
    "layers": (["engine.layers=apex"], ["engine.layers=apex", "auto, te, local"]),
    "tokenizer": (
        ["tokenizer=/no/tokenizer"],
        ["tokenizer=/no/tokenizer", "tokenizer.json"],
    ),
    "a rate in percent": (["stages.32k.learning_rate=101"], ["learning_rate=101"]),
    "nan": (["stages.32k.learning_rate=.nan"], ["stages.32k.learning_rate=nan"]),
    "interpolation": (["output=${nowhere}"], ["nowhere"]),
    "not key=value": (["stages.32k.layout.cp"], ["not of the form key=value"]),
}


@pytest.mark.parametrize("name", ["alia-40b.yaml"])
def test_shipped_configurations_pass(name: str) -> None:
    run = load_run(ROOT / "configs" / name)
    assert run.model.parameters() == 40_433_885_184
    extension = [run.stage("32k"), run.stage("160k")]
    assert [s.rows_per_update for s in extension] == [128, 25]
    assert [s.rows_per_update * s.context for s in extension] == [4_194_304, 4_096_000]
    assert [s.updates for s in extension] == [477, 8985]
    tuning = run.stage("fc")
    assert (tuning.update_instances, tuning.epochs, tuning.init_from) == (
        128,
        1,
        "160k",
    )
    assert (tuning.rope, tuning.context) == (extension[1].rope, extension[1].context)
    sources = [run.data.sources[name] for name in tuning.pack.sources]
    assert sum(source.instances or 0 for source in sources) == 728_034
    assert all(source.licence for source in sources) and len(sources) == 8


@pytest.mark.parametrize("case", BROKEN, ids=lambda c: c.replace(" ", "-"))
def test_broken_variant_names_key_rule_and_remedy(case: str) -> None:
    overrides, expected = BROKEN[case]
    with pytest.raises(ConfigError) as caught:
        load_run(ALIA, overrides)
    for text in expected:
        assert text in str(caught.value)


def test_all_violations_at_once() -> None:
    overrides = [
        o
        for case in (
            "unknown key",
            "wrong type",
            "cp does not divide",
            "budget below one update",
        )
        for o in BROKEN[case][0]
    ]
    with pytest.raises(ConfigError) as caught:
        load_run(ALIA, overrides)
    keys = {problem.key for problem in caught.value.problems}
    assert keys >= {
        "stages.32k.layout.cpp",
        "stages.32k.context",
        "stages.160k.layout.cp",
        "stages.160k.tokens",
    }


@pytest.mark.parametrize(
    "text,expected",
    [
        ("model: [", "cannot be read"),
        ("just text", "unknown key"),
        ("name: a\nname: b\n", "cannot be read"),
        ("", "name"),
    ],
)
def test_broken_yaml(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_run(path)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_run("no/such.yaml")


def test_command_line_exit_status_and_no_traceback() -> None:
    command = [sys.executable, "-m", "alia_ctx.cli", "check", str(ALIA)]
    good = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert good.returncode == 0, good.stderr
    assert "128 x 32,768" in good.stdout
    bad = subprocess.run(
        [*command, "stages.160k.layout.cp=24", "nonsense=1"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bad.returncode == 2
    assert "Traceback" not in bad.stderr
    assert "stages.160k.layout.cp=24" in bad.stderr and "nonsense=1" in bad.stderr


def test_rules_are_asked_of_what_could_be_typed() -> None:
    """One mistake of type anywhere hides no rule that does not need that part."""
    overrides = [
        "stages.32k.layout.cpp=8",  # this stage cannot be typed
        "stages.160k.init_from=32k",  # and starting from it is still right
        "stages.160k.rope.factor=8",
        "model.num_key_value_heads=7",
        "optimizer.beta1=2",
        "cluster.efficiency=1.5",
        "evaluation.documents=0",
        "data.append_eos=perhaps",
    ]
    with pytest.raises(ConfigError) as caught:
        load_run(ALIA, overrides)
    assert [problem.key for problem in caught.value.problems] == [
        "data.append_eos",
        "stages.32k.layout.cpp",
        "model.num_key_value_heads",
        "cluster.efficiency",
        "evaluation.documents",
        "optimizer.beta1",
        "stages.160k.rope.factor",
    ]
