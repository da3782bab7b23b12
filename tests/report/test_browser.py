"""The page in a browser: no error, no horizontal scroll on a phone, light and dark.

Needs Chromium: `chromium`, `chromium-browser`, `google-chrome` or
`chrome-headless-shell` on the PATH, or its path in ALIA_CHROMIUM.
"""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from alia_ctx.report import comparison_page, run_page
from tests.report.made_facts import HOSTILE, run, stage

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
CHROMIUM = os.environ.get("ALIA_CHROMIUM") or next(
    filter(None, map(shutil.which, NAMES)), None
)
PHONE, DESK = 390, 1280

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        CHROMIUM is None, reason=f"none of {', '.join(NAMES)} is installed"
    ),
]

# The page in a frame of a phone's width, which an outer page measures; Chromium's own
# window cannot be narrower than 500 pixels.
_MEASURE = """<!doctype html><body><iframe id=f style="border:0;width:{width}px;height:900px"
srcdoc="{page}"></iframe><script>
f.onload = () => {{
  const d = f.contentDocument, wide = [];
  for (const e of d.querySelectorAll('body *'))
    if (e.getBoundingClientRect().right > {width} + 1 && !e.closest('.scroll'))
      wide.push(e.tagName + '.' + e.className + ' ' + (e.textContent||'').slice(0,40));
  document.title = [d.documentElement.scrollWidth, wide.length, wide[0] || 'none',
    f.contentWindow.getComputedStyle(d.body).backgroundColor].join(';');
}};
</script>"""


def browse(folder: Path, page: str, width: int, *options: str) -> tuple[list[str], str]:
    """(what the outer page measured, Chromium's messages)."""
    path = folder / "outer.html"
    path.write_text(
        _MEASURE.format(width=width, page=html.escape(page)), encoding="utf-8"
    )
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu"),
            *("--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"),
            *("--virtual-time-budget=5000", "--window-size=1400,1000"),
            *options,
            *("--dump-dom", path.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "HOME": str(folder)},
    )
    title = re.search(
        r"<title>(.*?)</title>", done.stdout.rsplit("</iframe>", 1)[-1] or ""
    )
    title = title or re.search(r"<title>(\d+;.*?)</title>", done.stdout)
    assert title is not None, done.stdout[-500:]
    return title[1].split(";"), done.stderr


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_no_error_and_no_horizontal_scroll(tmp_path: Path, width: int) -> None:
    long_name = "stage_" + "x" * 90
    facts = run(
        name="a-very-long-name-" * 9,
        output="/".join(["directory"] * 30),
        stages=[stage("base", 128), stage(long_name, 163_840)],
        notes=[HOSTILE, "word" * 60],
        problems=["/a/very/long/path" * 20],
    )
    for page in (run_page(facts), comparison_page(facts, run())):
        (scrolled, count, first, _), said = browse(tmp_path, page, width)
        assert int(scrolled) <= width and (count, first) == ("0", "none")
        assert "CONSOLE" not in said, said


def test_light_and_dark(tmp_path: Path) -> None:
    page = run_page(run())
    papers = [
        browse(
            tmp_path, page, PHONE, f"--blink-settings=preferredColorScheme={scheme}"
        )[0][3]
        for scheme in (1, 0)
    ]
    assert papers == ["rgb(251, 251, 250)", "rgb(20, 23, 26)"]


def test_an_error_would_be_seen(tmp_path: Path) -> None:
    """The checks above can fail: a page that is too wide, and one that throws."""
    wide = '<!doctype html><meta charset="utf-8"><p style="width:900px">x</p>'
    (scrolled, count, first, _), _ = browse(tmp_path, wide, PHONE)
    assert int(scrolled) > PHONE and int(count) == 1 and first.startswith("P.")
    _, said = browse(tmp_path, "<!doctype html><script>missing()</script>", PHONE)
    assert "CONSOLE" in said
