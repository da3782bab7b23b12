"""The page's building blocks. All text that comes from outside goes through `text`."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

STYLE = """
:root { color-scheme: light dark; --paper:#fbfbfa; --card:#ffffff; --ink:#1c2024;
  --muted:#5d666f; --line:#dde1e5; --good:#11703f; --bad:#b3261e; --open:#7a5600;
  --s0:#5d666f; --s1:#1f6fb2; --s2:#c2541b; --s3:#2b8a4f; --s4:#7a4bb3; --s5:#a8325e; }
@media (prefers-color-scheme: dark) { :root { --paper:#14171a; --card:#1b1f23;
  --ink:#e6e9ec; --muted:#9aa4ae; --line:#333a41; --good:#5fd08f; --bad:#ff8a80;
  --open:#e8bf5a; --s0:#9aa4ae; --s1:#6cb2ee; --s2:#f09a63; --s3:#6fcf97; --s4:#b896ec;
  --s5:#ee86ac; } }
* { box-sizing: border-box; }
body { margin:0; overflow-wrap:anywhere; background:var(--paper); color:var(--ink);
  font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif; }
main { max-width:76rem; margin:0 auto; padding:1rem; }
h1 { font-size:1.6rem; line-height:1.25; margin:.5rem 0; overflow-wrap:anywhere; }
h2 { font-size:1.2rem; margin:2.2rem 0 .6rem; padding-top:.6rem;
  border-top:1px solid var(--line); }
h3 { font-size:1rem; margin:1.2rem 0 .4rem; overflow-wrap:anywhere; }
p, li { max-width:46rem; overflow-wrap:anywhere; }
nav { font-size:.9rem; } nav a { margin-right:.9rem; display:inline-block; }
a { color:var(--s1); }
.small, figcaption, caption { color:var(--muted); font-size:.85rem; }
code { font:.85em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;
  overflow-wrap:anywhere; }
.figures { display:grid; gap:1rem;
  grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr)); }
figure { margin:0 0 1rem; background:var(--card); border:1px solid var(--line);
  border-radius:8px; padding:.6rem; min-width:0; }
figure svg { display:block; width:100%; max-width:38rem; height:auto; margin:0 auto; }
.scroll { overflow-x:auto; max-width:100%; margin:.4rem 0 1rem; background:var(--card);
  border:1px solid var(--line); border-radius:8px; }
table { border-collapse:collapse; width:100%; font-size:.9rem;
  font-variant-numeric:tabular-nums; }
caption { text-align:left; padding:.5rem .6rem; caption-side:bottom; }
caption span { position:sticky; left:.6rem; display:block;
  max-width:min(46rem, calc(100vw - 4rem)); }
th, td { padding:.35rem .5rem; text-align:right; white-space:nowrap;
  border-bottom:1px solid var(--line); vertical-align:top; }
th:first-child, td:first-child { text-align:left; position:sticky; left:0;
  background:var(--card); white-space:normal; min-width:9rem; }
th { font-weight:600; } td.words, th.words { text-align:left; white-space:normal;
  min-width:12rem; }
.verdicts { list-style:none; padding:0; }
.verdicts li { padding:.35rem 0; display:grid; grid-template-columns:5.4rem 1fr; }
.tag { font-weight:600; }
.good { color:var(--good); } .bad { color:var(--bad); } .open { color:var(--open); }
.missing { border-left:4px solid var(--open); padding:.3rem .7rem;
  background:var(--card); }
"""
# An empty icon, inlined: without one a browser asks the server for it.
_ICON = '<link rel="icon" href="data:,">'
# By which a page of ours is known, of whatever release.
MARK = f"{_ICON}<title>".encode()


def text(value: object) -> str:
    """`value` as text of the page: `<`, `&` and quotes stand for themselves."""
    return html.escape(str(value), quote=True)


def code(value: object) -> str:
    return f"<code>{text(value)}</code>"


def document(title: str, body: Iterable[str], *, refresh: int | None = None) -> str:
    """The whole page; `refresh` seconds after which a browser reads it again."""
    again = (
        "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">'
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{again}{_ICON}<title>{text(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{chr(10).join(body)}</main></body></html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> str:
    return (
        f'<section id="{text(anchor)}"><h2>{text(title)}</h2>{"".join(parts)}</section>'
    )


def paragraph(words: object, style: str = "") -> str:
    kind = f' class="{style}"' if style else ""
    return f"<p{kind}>{text(words)}</p>"


def table(
    headings: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: str,
    how: str = "",
    words: Sequence[int] = (),
) -> str:
    """A table; `words` are columns of prose, `how` the command that makes it again."""

    def cells(kind: str, row: Sequence[object]) -> str:
        return "".join(
            f"<{kind}{' class=words' if i in words else ''}>{text(cell)}</{kind}>"
            for i, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return (
        f'<div class="scroll" tabindex="0"><table><caption><span>{_sentence(caption)}'
        f"{_again(how)}</span></caption><thead><tr>{cells('th', headings)}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(svg: str, caption: str, how: str) -> str:
    return (
        f"<figure>{svg}<figcaption>{_sentence(caption)}{_again(how)}"
        "</figcaption></figure>"
    )


def figures(*parts: str) -> str:
    return f'<div class="figures">{"".join(parts)}</div>'


def missing(what: str, how: str) -> str:
    return (
        f'<p class="missing">{text(what)}: not measured. Make it with {code(how)}.</p>'
    )


def _sentence(caption: str) -> str:
    """A caption that more is said behind, so with its full stop."""
    ended = not caption or caption.rstrip().endswith((".", "!", "?", ":"))
    return text(caption if ended else f"{caption.rstrip()}.")


def _again(how: str) -> str:
    return f" Make it again: {code(how)}." if how else ""


def number(value: float | int | None, digits: int = 4) -> str:
    """A number for a table: `-` where there is none; counts with separators."""
    if value is None or value != value:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{digits}f}"
