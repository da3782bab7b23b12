"""A small model learns to call functions that it has never seen.

    python scripts/demo_calls.py              after `make demo`: data, stages, export, figures
    python scripts/demo_calls.py --only-data  the conversations alone

What it learned is measured on functions that are in no training conversation, before and
after: by greedy decoding with transformers alone, where name and arguments must be those
that were asked for, and by whether each token of the call is the model's first choice.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

from alia_ctx import workflow
from alia_ctx.config.load import load_run, read_config
from alia_ctx.config.run import RunConfig
from alia_ctx.demo.calls import write_calls
from alia_ctx.errors import AliaError, DataError
from alia_ctx.progress import say
from alia_ctx.workflow.chain import finished_checkpoint
from alia_ctx.workflow.pipeline import torchrun

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "configs" / "runs" / "tiny-fc.yaml"
COUNT, UNSEEN = 16_000, 200


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--count", type=int, default=COUNT, help="conversations")
    parser.add_argument("--only-data", action="store_true")
    arguments = parser.parse_args()
    try:
        # What is checked as a whole below names files that are made here first.
        root = Path(str(read_config(arguments.config).get("root", ".")))
        text = root / "text"
        if not text.is_dir():
            raise DataError(f"{text}: no such directory; run `make demo` first")
        chat = root / "chat"
        if not (chat / "tools.jinja").is_file():
            say(f"making {arguments.count:,} conversations and half as many texts")
            write_calls(chat, arguments.count, UNSEEN)
        if not arguments.only_data:
            teach(arguments.config, load_run(arguments.config), chat)
    except AliaError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def teach(path: Path, run: RunConfig, chat: Path) -> None:
    """Train every stage, and print what the last does that the one before does not."""
    began = time.monotonic()
    used = {source for stage in run.stages.values() for source in stage.pack.sources}
    workflow.tokenize(run, sorted(used))
    for stage in run.stages:
        workflow.pack(run, stage)
        torchrun(2, ["train", str(path), "--stage", stage])
    say(f"data and training took {time.monotonic() - began:.0f} s")
    for stage in list(run.stages)[-2:]:
        best = workflow.best_checkpoint(run, stage)
        taken = finished_checkpoint(run, stage) if best is None else best.path
        made = run.directory("hf", stage)
        words = ["export-hf", str(taken), str(made), "--dtype", "fp32", "--overwrite"]
        torchrun(1, words)
        figures = measure(made, chat / "unseen.jsonl", chat / "tools.jinja")
        print(f"{stage}: {json.dumps(figures)}")


def measure(
    directory: Path, unseen: Path, template: Path, most: int | None = None
) -> dict[str, Any]:
    """Calls of `unseen` that a Hugging Face directory gets right: how many there are, how
    many `greedy` decoding writes with the right name and arguments, and of how many
    every token is the model's first choice (`hits`). transformers alone is used.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = template.read_text(encoding="utf-8")
    greedy = hits = 0
    rows = [json.loads(line) for line in unseen.read_text().splitlines()][:most]
    for row in rows:
        function = row["messages"][1]["tool_calls"][0]["function"]
        arguments = json.loads(function["arguments"])
        call = {"name": function["name"], "arguments": arguments}
        said = {"role": "assistant", "tool_calls": [{"function": call}]}
        options = {
            "tools": json.loads(row["tools"]),
            "chat_template": text,
            "tokenize": False,
        }
        asked = tokenizer.apply_chat_template(
            row["messages"][:1], add_generation_prompt=True, **options
        )
        whole = tokenizer.apply_chat_template([row["messages"][0], said], **options)
        prompt = tokenizer(asked, add_special_tokens=False, return_tensors="pt")
        ids = tokenizer(whole, add_special_tokens=False, return_tensors="pt").input_ids
        with torch.no_grad():
            choices = model(ids).logits.argmax(-1)[0]
            written = model.generate(
                **prompt, max_new_tokens=160, do_sample=False, eos_token_id=stop
            )[0]
        first = prompt.input_ids.size(1)
        last = int((ids[0] == stop).nonzero()[-1])
        hits += bool((choices[first - 1 : last] == ids[0, first : last + 1]).all())
        greedy += read_call(tokenizer.decode(written[first:])) == call
    return {"calls": len(rows), "greedy": greedy, "hits": hits}


def read_call(text: str) -> Any:
    """The one call of an answer, None where it is none."""
    match = re.fullmatch(
        r"\s*<tool_call>\s*(.*?)\s*</tool_call>\s*<\|im_end\|>\s*", text, re.DOTALL
    )
    try:
        return json.loads(match[1]) if match else None
    except ValueError:
        return None


if __name__ == "__main__":
    sys.exit(main())
