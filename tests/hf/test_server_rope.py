"""A card has commands for those servers only that compute the RoPE of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.server_rope import other_ropes
from alia_ctx.spec.rope import RopeSpec
from tests.hf.exports import trained
from tests.hf_models import save_model

CONTEXT = 5120
COMMANDS = {
    "vLLM": "vllm serve",
    "SGLang": "sglang.launch_server",
    "llama.cpp": "convert_hf_to_gguf.py",
}


def yarn(**fields: Any) -> RopeSpec:
    # 0.1 ln 40 + 1 = 1.36889
    return RopeSpec("yarn", 10000.0, 40.0, 128, **fields)


def llama3() -> RopeSpec:
    return RopeSpec(
        "llama3", 10000.0, 8.0, 64, low_freq_factor=1.0, high_freq_factor=4.0
    )


@pytest.mark.parametrize(
    "architecture, rope, servers",
    [
        ("llama", RopeSpec("default", 10000.0), ""),
        ("qwen3", RopeSpec("linear", 10000.0, 4.0), ""),
        ("llama", llama3(), ""),
        ("mistral", llama3(), ""),
        ("qwen2", llama3(), "llama.cpp"),
        ("qwen3", llama3(), "llama.cpp"),
        ("qwen3", yarn(), ""),
        ("llama", yarn(beta_fast=16.0, beta_slow=2.0, truncate=True), ""),
        ("llama", yarn(truncate=False), "llama.cpp"),
        ("llama", yarn(attention_factor=1.0), "vLLM SGLang llama.cpp"),
        # The usual factor, said: llama.cpp multiplies it by the usual one.
        ("qwen2", yarn(attention_factor=1.3689), "llama.cpp"),
        ("llama", yarn(mscale=0.707, mscale_all_dim=1.0), "vLLM SGLang llama.cpp"),
        ("llama", yarn(mscale=1.0, mscale_all_dim=1.0), "vLLM SGLang llama.cpp"),
        ("llama", yarn(mscale=0.707), ""),  # without the other it counts for nothing
        # A factor of 1 stretches nothing, and 1 is the usual factor then.
        ("llama", RopeSpec("yarn", 1e4, 1.0, 5120, attention_factor=1.0), ""),
        ("llama", RopeSpec("dynamic", 1e4, 40.0, 128), "llama.cpp"),
        ("llama", RopeSpec("dynamic", 1e4, 4.0, 128), "vLLM SGLang llama.cpp"),
    ],
)
def test_servers_that_compute_another_rope(
    architecture: str, rope: RopeSpec, servers: str
) -> None:
    assert list(other_ropes(architecture, rope, CONTEXT)) == servers.split()


@pytest.mark.parametrize(
    "family, rope, words",
    [
        ("llama", yarn(), {}),
        (
            "llama",
            yarn(attention_factor=1.0),
            {
                "vLLM": "by 1.369, and 1 was trained",
                "SGLang": "by 1.369, and 1 was trained",
                "llama.cpp": "by 1.369, and 1 was trained",
            },
        ),
        ("qwen3", llama3(), {"llama.cpp": "no `llama3` RoPE"}),
        (
            "mistral",
            yarn(truncate=False, mscale=0.5, mscale_all_dim=1.0),
            {
                # (0.05 ln 40 + 1) / (0.1 ln 40 + 1)
                "vLLM": "by 1.369, and 0.8653 was trained",
                "SGLang": "by 1.369, and 0.8653 was trained",
                "llama.cpp": "a GGUF file has no YaRN without `truncate`; it multiplies",
            },
        ),
    ],
)
def test_card_and_screen_say_why_there_is_no_command(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    family: str,
    rope: RopeSpec,
    words: dict[str, str],
) -> None:
    save_model(tmp_path / "hf", family)
    import_hf(tmp_path / "hf", tmp_path / "ck")
    trained(tmp_path / "ck", 2048, rope)
    capsys.readouterr()
    export_hf(tmp_path / "ck", tmp_path / "out")
    screen = " ".join(capsys.readouterr().err.split())
    card = (tmp_path / "out/README.md").read_text()
    assert "transformers serve" in card
    for server, command in COMMANDS.items():
        assert (command in card) == (server not in words)
        assert (f"{server} computes another RoPE" in card) == (server in words)
        assert (f"{server} computes another RoPE" in screen) == (server in words)
        if why := words.get(server):
            assert f"# not for {server}: " in card and why in card and why in screen
    assert ("`--tensor-parallel-size N`" in card) == ("vLLM" not in words)
    promised = rope.type == "yarn" and "vLLM" not in words
    assert ("Without it vLLM takes 128 times" in card) == promised
