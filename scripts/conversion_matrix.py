"""Exports of every family and RoPE, read by several releases of transformers.

    python scripts/conversion_matrix.py [PYTHON ...] [--write docs/conversion.md]

Each PYTHON is the interpreter of an environment with another transformers (`make venv-tf`
makes `.venv-tf*`, which are taken where none is given); the running one always takes
part. For each family and RoPE a random model of 16 tokens of context is imported, taken
to be trained at 64, and exported. Every release must then

- read the same sizes, special ids and RoPE from `config.json`,
- compute the logits that our own decoder computes, within 1e-4 of max(1, largest logit),
- turn a text into the ids that the tokenizer's file says,
- generate to the full context where nothing ends it, without being told a length, and
- stop at the tokenizer's end token.

The table goes to standard output, or between the marks in the file given with --write.
Status 1: a cell is red, and standard error says why.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from alia_ctx import checkpoint
from alia_ctx.hf.config import write_config
from alia_ctx.hf.convert import export_hf, import_hf
from alia_ctx.hf.reference_decoder import ReferenceDecoder
from alia_ctx.hf.rope_config import least_version, stated_length
from alia_ctx.hf.rules import EMBEDDING, FINAL_NORM, HEAD, WeightMap
from alia_ctx.nn.rotary import inverse_frequencies
from alia_ctx.spec.model import ModelSpec
from alia_ctx.spec.rope import RopeSpec

BASE, CONTEXT, VOCABULARY = 16, 64, 300
TOLERANCE = 1e-4
PROMPT = [72, 105, 33]
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
}
FAMILIES = {
    "Llama": ModelSpec(**SIZES),
    "Mistral": ModelSpec(**SIZES, architecture="mistral"),
    "Qwen2": ModelSpec(
        **SIZES, architecture="qwen2", attention_bias=True, tie_word_embeddings=True
    ),
    "Qwen3": ModelSpec(**{**SIZES, "head_dim": 32}, architecture="qwen3", qk_norm=True),
}
ROPES = {
    "default": RopeSpec("default", 5e5),
    "linear": RopeSpec("linear", 1e4, 4.0),
    "dynamic": RopeSpec("dynamic", 1e4, 4.0, BASE),
    "yarn": RopeSpec("yarn", 1e4, 4.0, BASE),
    "yarn, factor 40": RopeSpec("yarn", 1e4, 40.0, BASE),
    "yarn, all options": RopeSpec(
        "yarn", 1e4, 4.0, BASE, beta_fast=16.0, beta_slow=2.0, mscale=0.7,
        mscale_all_dim=1.0, truncate=False,
    ),
    "llama3": RopeSpec("llama3", 1e4, 4.0, BASE, 1.0, 4.0),
}  # fmt: skip
MARKS = "<!-- matrix: scripts/conversion_matrix.py -->", "<!-- end of matrix -->"

# Runs under every release, so it knows nothing of alia_ctx. Reads a list of directories,
# prints a JSON object for each.
READER = """
import json, sys, torch, transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
tokens, prompt, text = (json.loads(a) for a in sys.argv[1:4])
print(json.dumps(transformers.__version__))
for folder in sys.argv[4:]:
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    start = torch.tensor([prompt])
    names = ("num_hidden_layers hidden_size intermediate_size num_attention_heads "
             "num_key_value_heads vocab_size tie_word_embeddings rms_norm_eps "
             "max_position_embeddings bos_token_id eos_token_id pad_token_id").split()
    facts = {name: getattr(config, name) for name in names}
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0]
        rotary = model.model.rotary_emb
        facts["inv_freq"] = rotary.inv_freq.tolist()
        facts["attention_scaling"] = float(rotary.attention_scaling)
        endless = model.generate(start, do_sample=False, eos_token_id=None, pad_token_id=0)
        ended = model.generate(start, do_sample=False)
    torch.save(logits, folder + "/logits.pt")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    print(json.dumps({"facts": facts, "endless": endless[0].tolist(),
                      "ended": ended[0].tolist(),
                      "text": tokenizer.encode(text, add_special_tokens=False)}))
"""
TEXT = "Año 2026: 1234 — fin.\n"


def make_base(directory: Path, spec: ModelSpec) -> dict[str, torch.Tensor]:
    """A random model of BASE tokens whose every limit says so; returns its weights."""
    generator = torch.Generator().manual_seed(5)
    weights = {}
    for name, shape in WeightMap(spec).huggingface_shapes().items():
        noise = torch.randn(shape, generator=generator)
        weights[name] = 1 + 0.3 * noise if "norm" in name else 0.2 * noise
    directory.mkdir(parents=True)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    rope = RopeSpec("default", 1e4)
    config = write_config(spec, rope, BASE, torch.float32)
    limits = {"max_length": BASE, "eos_token_id": 2, "bos_token_id": 1}
    for name, document in {
        "config.json": {**config, **limits},
        "generation_config.json": {**limits, "max_new_tokens": 5},
    }.items():
        (directory / name).write_text(json.dumps(document))
    return weights


def make_tokenizer(directory: Path, end: int) -> None:
    """Bytes as tokens, of which `end` ends a text; it would cut at BASE tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    directory.mkdir(parents=True, exist_ok=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = letters + [f"<{i}>" for i in range(len(letters), VOCABULARY)]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(BASE)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": BASE,
        "eos_token": words[end],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


def extend(base: Path, longer: Path, rope: RopeSpec) -> None:
    """The checkpoint `base` as if it had been trained at CONTEXT tokens with `rope`."""
    manifest = checkpoint.read_manifest(base)
    temporary = checkpoint.begin(longer)
    for part in (checkpoint.STATE, checkpoint.ASSETS):
        shutil.copytree(base / part, temporary / part, dirs_exist_ok=True)
    later = dataclasses.replace(
        manifest, stage="long", rope=rope, context=CONTEXT, files={}
    )
    checkpoint.commit(temporary, longer, later)


@dataclasses.dataclass(frozen=True)
class Case:
    """One export, and what our own decoder computes and says with its weights."""

    family: str
    rope: str
    export: Path
    logits: torch.Tensor
    text: list[int]

    @property
    def name(self) -> str:
        return f"{self.family}, {self.rope}"


@torch.no_grad()
def our_logits(
    spec: ModelSpec, rope: RopeSpec, weights: dict[str, torch.Tensor], tokens: list[int]
) -> torch.Tensor:
    """Logits [T, VOCABULARY] of our own decoder for T tokens, with the RoPE of training."""
    decoder = ReferenceDecoder(spec, rope, CONTEXT, torch.arange(len(tokens)))
    x = weights[EMBEDDING][torch.tensor(tokens)]
    for layer in range(spec.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        own = {k.removeprefix(prefix): v for k, v in weights.items() if prefix in k}
        x = decoder.layer(x, own)
    head = weights[EMBEDDING if spec.tie_word_embeddings else HEAD]
    return decoder.norm(x, weights[FINAL_NORM]) @ head.T


def read_all(
    python: str, tokens: list[int], folders: list[Path]
) -> tuple[str, list[dict[str, Any]]]:
    """The version of transformers in `python`, and what it makes of each directory."""
    arguments = [json.dumps(value) for value in (tokens, PROMPT, TEXT)]
    done = subprocess.run(
        [python, "-W", "ignore", "-c", READER, *arguments, *map(str, folders)],
        capture_output=True,
        text=True,
        timeout=3600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode:
        raise SystemExit(f"{python}: {done.stderr[-2000:]}")
    version, *results = map(json.loads, done.stdout.splitlines())
    for folder, result in zip(folders, results, strict=True):
        result["logits"] = torch.load(folder / "logits.pt")
    return version, results


def problems(case: Case, got: dict[str, Any]) -> list[str]:
    """In what a release's reading of an export differs from what was trained."""
    from tokenizers import Tokenizer

    spec, rope, expected = FAMILIES[case.family], ROPES[case.rope], case.logits
    facts, wrong = got["facts"], []
    sizes = {
        name: getattr(spec, name) for name in SIZES if name in facts
    } | {
        "tie_word_embeddings": spec.tie_word_embeddings,
        "rms_norm_eps": spec.rms_norm_eps,
        "max_position_embeddings": stated_length(rope, CONTEXT),
        "eos_token_id": case.text[-1],
    }  # fmt: skip
    wrong += [f"{k} is {facts[k]}, not {v}" for k, v in sizes.items() if facts[k] != v]
    frequencies, scaling = inverse_frequencies(rope, spec.head_dim, CONTEXT)
    # dynamic: transformers forms the grown base in fp32, we in fp64.
    if not np.allclose(facts["inv_freq"], frequencies.numpy(), rtol=1e-6, atol=0):
        wrong.append("other RoPE frequencies")
    if abs(facts["attention_scaling"] - scaling) > 1e-6:
        wrong.append(f"attention factor {facts['attention_scaling']}, not {scaling}")
    apart = (got["logits"] - expected).abs().max() / max(
        1.0, float(expected.abs().max())
    )
    if not apart <= TOLERANCE:
        wrong.append(f"logits differ by {apart:.1e}")
    file = Tokenizer.from_file(str(case.export / "tokenizer.json"))
    if got["text"] != file.encode(TEXT, add_special_tokens=False).ids:
        wrong.append("other ids of a text")
    if len(got["endless"]) != CONTEXT:
        wrong.append(f"generation ends at {len(got['endless'])} of {CONTEXT} tokens")
    if got["ended"] != case.text:
        wrong.append(f"says {got['ended']} instead of {case.text}, which ends it")
    return wrong


def own_text(
    spec: ModelSpec, rope: RopeSpec, weights: dict[str, torch.Tensor]
) -> list[int]:
    """The prompt and what our own decoder says next, up to the first token that is new
    after two: that is to be the end token.
    """
    if rope.type == "dynamic":  # within the original length it scales nothing
        rope = RopeSpec("default", rope.theta)
    text = list(PROMPT)
    while True:
        token = int(our_logits(spec, rope, weights, text)[-1].argmax())
        is_new = token not in text
        text.append(token)
        if is_new and len(text) > len(PROMPT) + 2:
            return text


def build(work: Path) -> list[Case]:
    """Every family with every RoPE, exported."""
    cases, tokens = [], sequence()
    for family, spec in FAMILIES.items():
        weights = make_base(work / family / "hf", spec)
        import_hf(work / family / "hf", work / family / "ck")
        for name, rope in ROPES.items():
            home, text = work / family / name, own_text(spec, rope, weights)
            extend(work / family / "ck", home / "ck", rope)
            make_tokenizer(home / "tokenizer", text[-1])
            export_hf(
                home / "ck", home / "out", tokenizer_dir=home / "tokenizer", check=False
            )
            logits = our_logits(spec, rope, weights, tokens)
            cases.append(Case(family, name, home / "out", logits, text))
    return cases


def sequence() -> list[int]:
    return np.random.default_rng(3).integers(0, VOCABULARY, CONTEXT).tolist()


def matrix(pythons: list[str]) -> tuple[str, list[str]]:
    """The table in Markdown, and what is wrong with every red cell."""
    columns: dict[str, dict[str, str]] = {}
    red = []
    with tempfile.TemporaryDirectory() as folder:
        cases = build(Path(folder))
        for python in pythons:
            version, results = read_all(python, sequence(), [c.export for c in cases])
            columns[version] = {}
            for case, got in zip(cases, results, strict=True):
                least = least_version(ROPES[case.rope], CONTEXT)
                if least and _numbers(version) < _numbers(least):
                    columns[version][case.name] = f"needs {least}"
                    continue
                wrong = problems(case, got)
                columns[version][case.name] = "red" if wrong else "same"
                red += [f"{case.name}, transformers {version}: {w}" for w in wrong]
            print(version, file=sys.stderr, flush=True)
    versions = sorted(columns, key=_numbers)
    lines = [
        "| family | RoPE | " + " | ".join(versions) + " |",
        "|---|---|" + "---|" * len(versions),
    ]
    for case in cases:
        cells = [columns[version][case.name] for version in versions]
        lines.append("| " + " | ".join([case.family, case.rope, *cells]) + " |")
    return "\n".join(lines), red


def _numbers(version: str) -> list[int]:
    return [int(number) for number in version.split(".")[:2]]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pythons", nargs="*", metavar="PYTHON")
    parser.add_argument("--write", type=Path, help="put the table into this file")
    options = parser.parse_args()
    root = Path(__file__).parents[1]
    found = sorted(map(str, root.glob(".venv-tf*/bin/python")))
    table, red = matrix([*(options.pythons or found), sys.executable])
    print("\n".join(red), file=sys.stderr)
    if options.write is None:
        print(table)
    else:
        text = options.write.read_text(encoding="utf-8")
        head, _, rest = text.partition(MARKS[0])
        _, _, tail = rest.partition(MARKS[1])
        new = "\n".join([head + MARKS[0], "", table, "", MARKS[1] + tail])
        options.write.write_text(new, encoding="utf-8")
    return bool(red)


if __name__ == "__main__":
    sys.exit(main())
