"""Our checker of calls against the original's, in the environment of `bfcl-eval`.

    make venv-bfcl
    python -m benchmarks.bfcl_agreement > docs/benchmarks/bfcl-agreement.md

Each accepted answer of each case, and seeded mutations of them, are judged by both, and
made-up source of Java and JavaScript is read by both. The original runs in its own
process (`tests/evaluation/function_calling/bfcl_oracle.py`).
Exit status 1 where any verdict differs.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

from alia_ctx.evaluation.function_calling import Case, check_calls, read_cases
from alia_ctx.evaluation.function_calling.java_values import java_value
from alia_ctx.evaluation.function_calling.javascript_values import javascript_value
from benchmarks.pages import heading, table
from tests.evaluation.function_calling.expressions import expressions
from tests.evaluation.function_calling.mutations import (
    CALLS,
    VALUES,
    Written,
    mutated,
    right_answer,
)
from tests.evaluation.function_calling.oracle import ask, data_folder

KINDS = (*VALUES, *CALLS)


def questions(
    cases: list[Case], mutations: int, seed: int
) -> Iterator[tuple[Case, str, Written, bool]]:
    """(case, kind of change, answer, whether dots in names are underscores)."""
    for case in cases:
        yield case, "right", right_answer(case), False
    rng = random.Random(seed)
    by_category: dict[str, list[Case]] = {}
    for case in cases:
        by_category.setdefault(case.category, []).append(case)
    categories = list(by_category)
    for number in range(mutations):
        # Categories and kinds in turn: each is tried alike, however few cases it has.
        category = categories[number % len(categories)]
        kind = KINDS[number // len(categories) % len(KINDS)]
        rename = rng.random() < 0.25
        for _ in range(200):
            case = rng.choice(by_category[category])
            answer = mutated(case, kind, rng)
            if answer is not None:
                break
        else:  # no case of the category has anything of the kind
            case = rng.choice(by_category[category])
            answer = mutated(case, "accepted", rng) or []
        if rename and kind != "function":
            answer = [(name.replace(".", "_"), a) for name, a in answer]
        # As it would come out of a model's JSON.
        yield case, kind, json.loads(json.dumps(answer)), rename


def judge(
    asked: list[tuple[Case, str, Written, bool]],
) -> list[tuple[bool | None, bool, str]]:
    """(the original's verdict, None where it raises; ours; the original's reason)."""
    originals = ask(
        {
            "kind": "verdict",
            "functions": case.functions,
            "calls": answer,
            "accepted": case.accepted,
            "language": case.language,
            "category": case.category,
            "rename": rename,
        }
        for case, _, answer, rename in asked
    )
    judged = []
    for (case, _, answer, rename), original in zip(asked, originals, strict=True):
        ours = check_calls(
            case.functions,
            [(name, arguments) for name, arguments in answer],
            case.accepted or (),
            case.language,
            rename=(lambda n: n.replace(".", "_")) if rename else (lambda n: n),
        )
        why = original.get("raises") or original["why"]
        judged.append((original.get("valid"), ours.right, why))
    return judged


def expressions_judged(count: int, seed: int, shown: int) -> list[list[object]]:
    """Rows of (language, expressions, read as a value by the original, differing)."""
    lines: list[list[object]] = []
    readers = {"java": java_value, "javascript": javascript_value}
    for language, read in readers.items():
        asked = expressions(language, count, seed)
        originals = ask({"kind": "value", **one} for one in asked)
        values = differ = 0
        for one, original in zip(asked, originals, strict=True):
            ours = repr(read(one["text"], one["type"], one["items"]))
            values += original != repr(one["text"])
            differ += ours != original
            if ours != original and shown > 0:
                shown -= 1
                print(json.dumps([one, original, ours]), file=sys.stderr)
        lines.append([language, count, values, differ])
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=20000)
    parser.add_argument("--expressions", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=20, help="differences on stderr")
    options = parser.parse_args()
    data = read_cases(data_folder())
    cases = [case for case in data.cases if case.accepted is not None]
    asked = list(questions(cases, options.mutations, options.seed))
    judged = judge(asked)
    differing, shown = 0, options.show
    counts: dict[str, Counter[str]] = {}
    for (case, kind, answer, _), (original, ours, why) in zip(
        asked, judged, strict=True
    ):
        count = counts.setdefault(f"{case.category}|{kind}", Counter())
        count["all"] += 1
        count["right"] += original is True
        count["raises"] += original is None
        wrong = ours != bool(original)  # where it raises, a call is wrong
        count["differ"] += wrong
        differing += wrong
        if (wrong or (kind == "right" and not original)) and shown > 0:
            shown -= 1
            line: dict[str, Any] = {"id": case.id, "kind": kind, "answer": answer}
            line |= {"original": original, "ours": ours, "why": why}
            line |= {"accepted": case.accepted}
            print(json.dumps(line), file=sys.stderr)
    print(page(counts, data.version, options.mutations))
    read = expressions_judged(options.expressions, options.seed, options.show)
    print("\n## Made-up source, read by both converters\n")
    columns = ("language", "expressions", "with a value", "values that differ")
    print(table(columns, read))
    return 1 if differing or any(row[-1] for row in read) else 0


def package_version() -> str:
    """Of the environment's `bfcl-eval`."""
    (folder,) = data_folder().parent.parent.glob("bfcl_eval-*.dist-info")
    return folder.name.removeprefix("bfcl_eval-").removesuffix(".dist-info")


def page(counts: dict[str, Counter[str]], version: str, mutations: int) -> str:
    def rows(kinds: tuple[str, ...], by: int) -> list[list[object]]:
        sums: dict[str, Counter[str]] = {}
        for name, count in counts.items():
            parts = name.split("|")
            if parts[1] in kinds:
                sums.setdefault(parts[by], Counter()).update(count)
        total: Counter[str] = sum(sums.values(), Counter())
        keys = ("all", "right", "raises", "differ")
        return [[n, *(c[k] for k in keys)] for n, c in [*sums.items(), ("all", total)]]

    columns = ("answers", "right by the original", "it raises", "verdicts that differ")
    return "\n".join(
        [
            heading("The BFCL checker against the original").replace(
                "python benchmarks/bfcl_agreement.py",
                "python -m benchmarks.bfcl_agreement",
            ),
            f"bfcl-eval {package_version()}, its data {version}, every verdict of the "
            "original's own `ast_checker`. `it raises`: the original stops with an "
            "exception, which would end its evaluation; ours says wrong, and that is no "
            "difference.\n",
            "## Accepted answers, every case\n",
            table(("category", *columns), rows(("right",), 0)),
            f"\n## {mutations:,} mutations, by category\n",
            table(("category", *columns), rows(KINDS, 0)),
            "\n## The same, by what was changed\n",
            table(("change", *columns), rows(KINDS, 1)),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
