"""The whole job on this machine, on real text: what `make demo` runs.

    python scripts/demo.py                       text from the installed packages
    python scripts/demo.py --text FILE ...       your own text files, jsonl or parquet instead

Text and tokenizer are made once; every step that is finished is left as it is, so a second run is quick.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from alia_ctx import corpus, workflow
from alia_ctx.config import load_run
from alia_ctx.errors import AliaError
from alia_ctx.progress import say
from alia_ctx.tokenizer import train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "tiny.yaml"
OUTPUT = Path("runs/tiny")
VOCABULARY = 2048


def main() -> int:
    arguments = parse()
    started = time.monotonic()
    try:
        overrides = prepare_text(arguments.text)
        run = load_run(CONFIG, [*overrides, *arguments.overrides])
        report = workflow.run_all(CONFIG, [*overrides, *arguments.overrides], run)
    except AliaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    print(report.markdown.read_text(encoding="utf-8"))
    say(f"took {time.monotonic() - started:.0f} s")
    print(f"report: {report.markdown}\nplot:   {report.plot}")
    return 0 if report.holds else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE", help="your own text, in place of the demo's")
    parser.add_argument("overrides", nargs="*", help="overrides of configs/tiny.yaml, as in stages.base.tokens=1e6")
    return parser.parse_args()


def prepare_text(own: list[str]) -> list[str]:
    """Make the text and the tokenizer, where they are not there yet. Returns the overrides that point to them."""
    text, tokenizer = OUTPUT / "text", OUTPUT / "tokenizer"
    if not (text / corpus.SOURCES_FILE).is_file():
        shutil.rmtree(text, ignore_errors=True)
        say("gathering text from the installed packages")
        made = corpus.build_demo_corpus(text)
        for kind, count in made.documents.items():
            say(f"  {kind}: {count} documents, {made.characters[kind]:,} characters")
    if not (tokenizer / "tokenizer.json").is_file():
        say(f"training a tokenizer of {VOCABULARY} tokens")
        train_tokenizer([text / f"{kind}.jsonl" for kind in corpus.KINDS], tokenizer, VOCABULARY)
    return []


if __name__ == "__main__":
    sys.exit(main())
