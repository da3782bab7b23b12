"""The whole job on this machine, on real text: what `make demo` runs.

    python scripts/demo.py
        text from the installed packages
    python scripts/demo.py --text notes/ corpus.jsonl --output runs/mine
        your own: .txt .md .jsonl(.gz|.zst) .parquet

Text and tokenizer are made once; every step that is finished is left as it is, so a
second run is quick.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from alia_ctx import workflow
from alia_ctx.config.load import load_run, read_config
from alia_ctx.data.documents import DocumentCounts, SourceSpec, read_documents
from alia_ctx.demo import corpus
from alia_ctx.demo.retrieval import write_retrieval_documents
from alia_ctx.demo.tokenizer import train_tokenizer
from alia_ctx.errors import AliaError, DataError
from alia_ctx.progress import say

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny.yaml"
HELD_OUT_EVERY = 8  # of the user's long documents
LONG_CHARACTERS = 25_000  # about 7,000 tokens: longer than the longest context


def main() -> int:
    arguments = parse()
    started = time.monotonic()
    try:
        config = prepare(arguments)
        run = load_run(config, arguments.overrides)
        report = workflow.run_all(config, arguments.overrides, run)
    except AliaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    page = workflow.write_page([config], arguments.overrides)
    print(report.markdown.read_text(encoding="utf-8"))
    last = list(run.stages)[-1]
    losses = [
        verdict.holds is True
        for verdict in report.verdicts
        if (verdict.model, verdict.evaluator) == (last, "positions")
    ]
    works = bool(losses) and all(losses)
    say(f"took {time.monotonic() - started:.0f} s")
    print(
        f"model:  {run.directory('hf', last)}\nreport: "
        f"{report.markdown}\nplot:   {report.plot}"
    )
    print(
        f"what it shows: what is claimed of the losses of {last} "
        + ("holds" if works else "does NOT hold")
        + f"; {sum(verdict.holds is True for verdict in report.verdicts)} of "
        f"{len(report.verdicts)} sentences are a yes, see above"
    )
    print(f"page:   {page}")
    return 0 if works or arguments.text else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--text",
        nargs="+",
        type=os.path.expanduser,
        default=[],
        metavar="PATH",
        help="your own text, in place of the demo's",
    )
    parser.add_argument(
        "--output",
        type=lambda text: Path(text).expanduser(),
        metavar="DIR",
        help="where everything goes (runs/tiny, or runs/mine)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="overrides",
        metavar="KEY=VALUE",
        help="overrides of configs/tiny.yaml, as in stages.base.tokens=1e6",
    )
    arguments = parser.parse_args()
    arguments.output = arguments.output or Path(
        "runs/mine" if arguments.text else "runs/tiny"
    )
    return arguments


def prepare(arguments: argparse.Namespace) -> Path:
    """Make the text and the tokenizer where they are not there yet.

    Returns the configuration that points to them.
    """
    output: Path = arguments.output
    text, tokenizer = output / "text", output / "tokenizer"
    if not (text / "heldout.jsonl").is_file():
        shutil.rmtree(text, ignore_errors=True)
        write_retrieval_documents(text)
        gather_own(arguments.text, text) if arguments.text else gather_installed(text)
    demo = read_config(CONFIG)
    files = sorted(p for p in text.glob("*.jsonl") if not p.stem.startswith("heldout"))
    if not (tokenizer / "tokenizer.json").is_file():
        say(f"training a tokenizer of {demo['model']['vocab_size']} tokens")
        train_tokenizer(files, tokenizer, demo["model"]["vocab_size"])
    if output == Path(demo["output"]):
        return CONFIG
    mine = {"include": str(CONFIG), "name": output.name, "root": str(output)}
    if arguments.text:
        mine |= in_place_of_installed(demo)
    config = output / "config.yaml"
    config.write_text(yaml.safe_dump(mine, sort_keys=False), encoding="utf-8")
    return config


def in_place_of_installed(demo: dict[str, Any]) -> dict[str, Any]:
    """The user's own text where the demo's configuration has that of the packages, with
    the same share of each stage; null takes a source out.
    """
    inputs = {"inputs": ["${root}/text/own.jsonl"]}
    stages = {}
    for name, stage in demo["stages"].items():
        pack = stage["pack"]
        shares = [pack["weights"][kind] for kind in corpus.KINDS]
        weights = {**dict.fromkeys(corpus.KINDS), "own": round(sum(shares), 6)}
        stages[name] = {"pack": {"weights": weights}}
        if "sources" in pack:
            kept = [kind for kind in pack["sources"] if kind not in corpus.KINDS]
            stages[name]["pack"]["sources"] = ["own", *kept]
    sources = {**dict.fromkeys(corpus.KINDS), "own": inputs}
    return {"data": {"sources": sources}, "stages": stages}


def gather_installed(text: Path) -> None:
    say("gathering text from the installed packages")
    made = corpus.build_demo_corpus(text)
    for kind, count in made.documents.items():
        say(f"  {kind}: {count} documents, {made.characters[kind]:,} characters")


def gather_own(paths: list[str], text: Path) -> None:
    """The user's documents as one source, every eighth of the long ones held out."""
    spec = SourceSpec(inputs=paths)
    problems = spec.problems("--text")
    if problems:
        raise DataError("\n".join(str(problem) for problem in problems))
    text.mkdir(parents=True, exist_ok=True)
    counts, long_ones, kept = DocumentCounts(), 0, {"own": 0, "heldout": 0}
    with (
        (text / "own.tmp").open("w", encoding="utf-8") as own,
        (text / "held.tmp").open("w", encoding="utf-8") as held,
    ):
        for document in read_documents(spec, counts):
            long_ones += len(document.text) >= LONG_CHARACTERS
            hold = (
                len(document.text) >= LONG_CHARACTERS
                and long_ones % HELD_OUT_EVERY == 1
            )
            line = (
                json.dumps(
                    {"id": document.id, "text": document.text}, ensure_ascii=False
                )
                + "\n"
            )
            (held if hold else own).write(line)
            kept["heldout" if hold else "own"] += 1
    if kept["heldout"] < 2 or not kept["own"]:
        raise DataError(
            f"{' '.join(paths)}: {long_ones} documents have {LONG_CHARACTERS:,} "
            "characters or more; "
            f"give at least {HELD_OUT_EVERY + 1} such, so that two can be held out to "
            "measure the long context"
        )
    (text / "own.tmp").replace(text / "own.jsonl")
    (text / "held.tmp").replace(text / "heldout.jsonl")
    say(
        f"your text: {kept['own']} documents to train on, {kept['heldout']} long ones held out"
    )


if __name__ == "__main__":
    sys.exit(main())
