"""The page of a run: whole, self-contained, escaped, and silent about nothing."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from alia_ctx.report import Result, RunFacts, comparison_page, run_page
from alia_ctx.report.facts import COMMANDS
from alia_ctx.report.verdicts import summary, verdicts
from tests.report.made_facts import HOSTILE, bands, cells, lines, results, run, stage


class Reader(HTMLParser):
    """Tags, attributes and text of a page, as a browser's parser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.rows: list[list[str]] = []  # of tables, a text a cell
        self.in_style = False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.in_style = tag == "style"
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        if not self.in_style:
            self.text.append(data)
        if self.tags and self.tags[-1] in ("td", "th"):
            self.rows[-1][-1] += data.strip()

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def page() -> str:
    return run_page(run())


def test_nothing_comes_from_elsewhere(page: str) -> None:
    """No script, no file, no address that a browser would fetch."""
    reader = Reader(page)
    assert not {"script", "iframe", "object", "embed", "img"} & set(reader.tags)
    fetched = [
        value
        for name, value in reader.attributes
        if name in ("src", "href", "xlink:href", "data", "action")
        and not str(value).startswith(("#", "data:,"))
    ]
    assert not fetched
    assert not re.findall(r"url\((?!#)", page) and "@import" not in page


def test_every_figure_says_what_it_is_and_how_to_make_it_again(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    captions = re.findall(r"<caption>.*?</caption>", page, re.DOTALL)
    assert len(figures) >= 10 and len(captions) == page.count("<table>") >= 10
    for text in [*figures, *captions]:
        assert "Make it again: <code>alia-ctx " in text
    for figure in figures:
        assert figure.count("<svg ") == 1 and "<figcaption>" in figure


def test_ids_are_unique_and_colours_are_the_pages(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    targets = set(
        re.findall(r'href="#([^"]+)"', page) + re.findall(r"url\(#([^)]+)\)", page)
    )
    assert targets <= set(ids)
    assert not re.search(r"#(0\d)(?:\1){2}", page) and "var(--ink)" in page


def test_text_of_the_data_stays_text() -> None:
    """Names of runs, sources, models and tasks, notes, paths, problems, file contents."""
    hostile = stage(
        HOSTILE,
        5120,
        lines=lines(20, 100, source=HOSTILE, kernel=HOSTILE),
        origin=HOSTILE,
        damaged=[HOSTILE],
        changes=[HOSTILE],
        problems=[HOSTILE],
        rope={"type": HOSTILE, "theta": HOSTILE},
        plan={
            **stage("x", 128).plan,  # type: ignore[dict-item]
            "sources": {HOSTILE: stage("x", 128).plan["sources"]["docs"]},  # type: ignore[index]
        },
    )
    facts = run(
        name=HOSTILE,
        output=HOSTILE,
        command=HOSTILE,
        base=HOSTILE,
        stages=[hostile],
        results=[
            *(dataclasses.replace(result, model=HOSTILE) for result in results()),
            Result(HOSTILE, "retrieval", 7, cells(1.0, (9,), task=HOSTILE)),
            Result(HOSTILE, "blocks", 9, {}, differs=[HOSTILE]),
        ],
        notes=[HOSTILE],
        problems=[HOSTILE],
        exports=[HOSTILE],
        config={HOSTILE: HOSTILE},
    )
    for page in (run_page(facts), comparison_page(facts, run())):
        reader = Reader(page)
        assert "script" not in reader.tags
        assert HOSTILE in reader.words  # shown as it is, not swallowed


def test_what_is_missing_is_said_with_its_command() -> None:
    facts = run(
        results=[], stages=[stage("base", 128, lines=[], plan=None, ledger=None)]
    )
    words = Reader(run_page(facts)).words
    for arguments in COMMANDS.values():
        command = "alia-ctx " + arguments.replace("CONFIG", "configs/tiny.yaml")
        assert f"not measured. Make it with {command}" in words
    assert "100%" not in words and "Not finished: base" in words


def test_speed_is_told_by_the_layout_that_it_was_measured_on() -> None:
    """40 updates on the planned cp2, then 20 after a start on dp2, four times as fast, and
    a start like it: three starts, two ways of running.
    """
    other = {"dp": 2, "tp": 1, "cp": 1, "pp": 1}
    ran = lines(60, 2048)
    for line in ran[40:]:
        line.update(seconds=0.125, tokens_per_second=16384.0, mfu=0.8)
    for first in (40, 50):
        ran[first].update(layout=other, kernel="flash4", layers="TE 2", fp8="current")
    reader = Reader(run_page(run(stages=[stage("base", 5120, lines=ran)])))
    speeds = [row for row in reader.rows if row[1:4] == ["41-60", "dp2", "flash4"]]
    assert [row[4:7] for row in speeds] == [["TE 2, FP8 (current)", "0.125", "16,384"]]
    (kept,) = [row for row in reader.rows if row[1:4] == ["1-40", "cp2", "flash4"]]
    assert kept[4:6] == ["-", "0.500"]
    (planned,) = [row for row in reader.rows if row[:3] == ["base", "cp2", "40 of 60"]]
    assert planned[3:6] == ["0.400", "0.500", "1.25"]  # of cp2 alone
    both = Reader(comparison_page(run(stages=[stage("base", 5120, lines=ran)]), run()))
    assert any("(cp2), 16,384 (dp2)" in cell for row in both.rows for cell in row)


def test_a_plan_is_not_compared_with_another_layout() -> None:
    ran = lines(60, 2048)
    ran[0]["layout"] = {"dp": 2, "tp": 1, "cp": 1, "pp": 1}
    words = Reader(run_page(run(stages=[stage("base", 5120, lines=ran)]))).words
    assert "another layout than the configuration's, or none: base (dp2)." in words
    del ran[0]["layout"]  # a log of a release that did not say it
    words = Reader(run_page(run(stages=[stage("base", 5120, lines=ran)]))).words
    assert "base (not in its log)." in words


def test_a_result_of_another_model_is_named_and_not_shown() -> None:
    old = Result("x40", "passkey", 5120, cells(1.0, (4444,)), differs=["weights: a, b"])
    words = Reader(run_page(run(results=[old]))).words
    assert "4,444" not in words
    assert (
        "passkey of x40 at 5,120 tokens is not shown" in words
        and "weights: a, b" in words
    )


def test_a_result_by_other_settings_is_named_and_not_shown() -> None:
    from dataclasses import replace

    lines = ["settings.documents: 3 there, 64 now"]
    outdated = [replace(r, outdated=lines) for r in results()]
    facts = run(results=outdated)
    assert not any(facts.of(r.evaluator) for r in outdated) and not facts.lines
    words = Reader(run_page(facts)).words
    assert "other settings than the configuration has" in words
    assert lines[0] in words


def test_the_numbers_are_those_of_the_results() -> None:
    """The mean and its standard error, counted anew: every document has equal counts, so
    that of their mean is the standard deviation of the documents' means."""
    made = bands(3.0, 2.0, seed=4)
    words = Reader(
        run_page(run(results=[Result("base", "positions", 128, made.to_json())]))
    ).words
    _, sums = made.per_document(0, 128)
    means = sums[:, 0] / sums[:, 1]
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert f"{means.mean():.4f} ± {error:.4f}" in words


def test_verdicts_follow_the_results() -> None:
    found = {v.claim: v.holds for v in verdicts(run())}
    assert all(found.values()) and len(found) > 8
    assert "works" in summary(run())
    worse = [
        Result("base", "positions", 128, bands(3.0, 3.0).to_json()),
        Result("x40", "positions", 5120, bands(3.3, 3.3).to_json()),
        Result("base", "passkey", 5120, cells(1.0, (128, 5120))),
        Result("x40", "passkey", 5120, cells(0.25, (5120,))),
        Result(
            "x40",
            "leak",
            5120,
            {"layout": {}, "positions": 9, "moved": 1, "largest_difference": 0.1},
        ),
    ]
    facts = run(results=worse)
    assert [v.holds for v in verdicts(facts)] == [
        True,
        True,
        *[False] * 3,
        True,
        *[False] * 3,
    ]
    assert summary(facts).startswith("Does not hold: ")


def test_far_context_is_claimed_of_stages_within_their_contexts() -> None:
    """A base that is shown more than its context fails there, and nobody said otherwise."""
    rows = [
        {"first": a, "last": b, "documents": 6, "gain": -0.4, "standard_error": 0.02}
        for a, b in ((0, 128), (128, 1024), (1024, 5120))
    ]
    blocks = {"block": 128, "bands": rows}
    facts = run(
        stages=[stage("base", 128), stage("x8", 1024), stage("x40", 5120)],
        results=[Result(m, "blocks", 5120, blocks) for m in ("base", "x8", "x40")],
    )
    claims = [v.claim for v in verdicts(facts) if "far context" in v.claim]
    assert [c.split()[3] for c in claims] == ["x8", "x40", "x40"]


def test_the_control_of_the_base_is_a_verdict() -> None:
    failing = Result("base", "passkey", 128, cells(0.0, (128, 1024)))
    found = {v.claim: v.holds for v in verdicts(run(results=[failing]))}
    assert found["base finds the passkey in its own 128 tokens"] is False
    # Who fails in 128 tokens as well shows nothing by failing in 1,024.
    assert found[far_claim(128, "1,024 tokens (x8)")] is None


def imported(*contexts: int) -> RunFacts:
    """A base that holds 1,024 tokens by itself, and was measured at `contexts`."""
    losses = {128: 3.3, 1024: 3.0}
    return run(
        native=1024,
        stages=[stage("s2", 5120), stage("fc", 128)],
        results=[
            *(
                Result("base", "positions", c, bands(losses[c], 3.2).to_json())
                for c in contexts
            ),
            Result("s2", "positions", 5120, bands(3.1, 2.0).to_json()),
            Result("fc", "positions", 128, bands(3.1, 9.0).to_json()),
        ],
    )


def test_an_imported_base_is_judged_at_its_own_context() -> None:
    """Measured at a shorter one too, it would seem that stages bring what they cost."""
    said = [
        (v.claim, v.holds) for v in verdicts(imported(128, 1024)) if "loses" in v.claim
    ]
    assert said == [
        (v.claim, v.holds) for v in verdicts(imported(1024)) if "loses" in v.claim
    ]
    assert dict(said)["s2 loses at most 2% to base at positions 0 to 127"] is False
    # What fc was never trained at is not asked of it.
    assert not any("fc is clearly" in v.claim for v in verdicts(imported(1024)))


def test_samples_of_several_contexts_are_counted_once() -> None:
    """The control at the base's length is the same samples in each context's grid."""
    control = [Result("base", "passkey", n, cells(0.0, (128,))) for n in (128, 1024)]
    words = Reader(run_page(run(results=control))).words
    assert "base 0 of 40 (0%–9%)" in words


def test_a_length_in_the_grids_of_several_contexts_is_one_verdict() -> None:
    """Each context's grid has the lengths below it: halves of it, and the base's own."""
    grids = [
        Result(model, "passkey", context, cells(share, (128, 1024, 5120)[:count]))
        for model, share in (("base", 0.0), ("x40", 1.0))
        for count, context in enumerate((128, 1024, 5120), start=1)
    ]
    claims = [v.claim for v in verdicts(run(results=grids)) if "passkey" in v.claim]
    assert len(claims) == len(set(claims)) == 6


def far_claim(native: int, where: str) -> str:
    return (
        f"base fails to find a passkey that is {native} tokens back or more, in {where}"
    )


def test_a_passkey_that_is_near_is_none_beyond_the_context() -> None:
    """In 256 tokens the last five tenths are within the base's 128."""
    grid = {"native_context": 128} | cells(0.0, (128, 256))
    for cell in grid["cells"]:
        near = cell["length"] == 128 or cell["depth"] >= 5
        cell["right"] = cell["parts_right"] = cell["samples"] if near else 0
    measured = [Result("base", "passkey", n, grid) for n in (256, 512)]
    found = verdicts(run(results=measured))
    far = next(v for v in found if v.claim == far_claim(128, "256 tokens (x2)"))
    assert far.holds is True and far.detail.startswith("0 of ")
    assert sum("in its own 128 tokens" in v.claim for v in found) == 1


def test_passkeys_of_a_model_are_one_row_of_a_comparison() -> None:
    """Each context has the grid of the lengths below it too."""
    from dataclasses import replace

    both = [r for r in results() if r.evaluator == "passkey"]
    doubled = [*results(), *(replace(r, context=r.context * 2) for r in both)]
    other = replace(run(results=doubled), name="other")
    page = comparison_page(run(), other)
    section = page[page.index('id="passkey"') :]
    for model in {r.model for r in both}:
        assert section.count(f">{model} of other<") == 1


def test_a_live_page_reads_itself_again() -> None:
    assert '<meta http-equiv="refresh" content="7">' in run_page(run(), refresh=7)
    assert "refresh" not in run_page(run())


def test_two_runs_are_compared() -> None:
    other = run(
        name="other",
        config={"seed": 2, "stages": {"base": {"context": 128}}},
        results=[
            Result(
                "base",
                "positions",
                128,
                bands(3.0, 3.2).to_json(),
                results()[0].made_from,
            ),
            Result(
                "x40",
                "positions",
                5120,
                bands(2.51, 2.2).to_json(),
                results()[0].made_from,
            ),
        ],
    )
    words = Reader(comparison_page(run(), other)).words
    assert "seed 1 2 Stages" in words
    assert "x40 0–127 3.2506 -0.5000 ± 0.0000" in words
    elsewhere = dataclasses.replace(
        other.results[0], made_from={"settings": {"held_out": "b"}}
    )
    words = Reader(comparison_page(run(), run(results=[elsewhere]))).words
    assert "different held-out text" in words


def test_passkeys_are_judged_by_the_context_of_an_imported_base() -> None:
    """The base holds 64 tokens; no stage is that short."""
    both = {"native_context": 64}
    base = Result("base", "passkey", 256, cells(0.0, (256,)) | both)
    control = Result("base", "passkey", 64, cells(1.0, (64,)) | both)
    claim = far_claim(64, "256 tokens (x4)")
    for measured, holds in (([base], None), ([base, control], True)):
        found = {v.claim: v.holds for v in verdicts(run(results=measured, native=64))}
        assert found[claim] is holds
        assert not any("own 128" in said for said in found)


def test_the_planned_update_is_drawn_as_a_time_line(page: str) -> None:
    drawing = page[page.index('aria-label="time line of ') :]
    drawing = drawing[: drawing.index("</svg>")]
    for word in (
        "rank 0, messages",
        "forward",
        "backward",
        "gradients&#x27; reduction",
    ):
        assert word in drawing or word.replace("&#x27;", "'") in drawing, word
    assert "--trace trace.json" in page
    bare = dataclasses.replace(stage("bare", 64), planned=None)
    without = run_page(dataclasses.replace(run(), stages=[bare], results=[]))
    assert "time line of" not in without
