"""Pages of HTML that need no network and run no script: what all of them have in common."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# Nothing may be loaded and nothing may run, whatever a user id contains.
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"

_ID: Final = "id"
_NUMBER: Final = "n"
_KINDS: Final = {"#": _NUMBER, "~": "prose"}

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5a6675; --paper: #fff; --card: #f5f7fa;
  --rule: #d8dee6; --same: #4b7f52; --lower: #b5471b; --higher: #2b62ad; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf0; --soft: #a3afbd; --paper: #14181e;
  --card: #1e252e; --rule: #36414e; --same: #7fc08a; --lower: #f08a5d; --higher: #7fb0f5; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem 4rem; max-width: 68rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .25rem 0 .75rem; max-width: 46rem; } .soft { color: var(--soft); }
.verdict { border-left: .4rem solid var(--lower); background: var(--card); padding: .9rem 1.1rem;
  margin: 1.25rem 0; font-size: 1.1rem; max-width: none; }
.verdict.safe { border-color: var(--same); }
dl { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem;
  margin: 0; }
.side-by-side { display: grid; grid-template-columns: repeat(auto-fit, minmax(24rem, 1fr));
  gap: 0 2.5rem; } @media (max-width: 27rem) { .side-by-side { display: block; } }
dl div { background: var(--card); padding: .7rem .9rem; border-radius: .4rem; }
dt { color: var(--soft); font-size: .85rem; } dd { margin: 0; font-size: 1.3rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 2.5rem); }
th, td { text-align: left; padding: .35rem 1.5rem .35rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; } th { font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.id bdi { display: inline-block; width: max-content; max-width: 26rem;
  overflow-wrap: anywhere; } td.prose { min-width: 8rem; }
th:last-child, td:last-child { padding-right: 0; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--rule); } .same-line { stroke: var(--soft); stroke-dasharray: 4 4; }
.old-line { stroke: var(--lower); stroke-width: 1.5; stroke-dasharray: 6 4; }
.total { fill: none; stroke: var(--higher); stroke-width: 2.5; }
circle { fill-opacity: .65; stroke: var(--paper); stroke-width: .75; }
.same { fill: var(--same); } .lower { fill: var(--lower); } .higher { fill: var(--higher); }
.key span { display: inline-block; width: .8em; height: .8em; border-radius: 50%;
  margin: 0 .35em 0 1em; } .key span:first-child { margin-left: 0; }
.key .same { background: var(--same); } .key .lower { background: var(--lower); }
.key .higher { background: var(--higher); }
@media print { body { padding: 0; } .scroll { overflow: visible; } }
"""


def document(title: str, body: Iterable[str]) -> Iterable[str]:
    """Yield a whole page, to be written in UTF-8.

    Args:
        title: What the browser calls it, as plain text.
        body: What is on it, as HTML.
    """
    yield from (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n',
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n',
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n",
        "<body>\n<main>\n",
    )
    yield from body
    yield "</main>\n</body>\n</html>\n"


def table(
    caption: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], total: int
) -> Iterable[str]:
    """Yield a table of plain text; columns that begin with # are numbers, those with ~ are prose.

    Args:
        caption: What is above it.
        columns: Their headings.
        rows: As many values each.
        total: How many rows there are, of which these are the first.
    """
    kinds = [_KINDS.get(name[:1], _ID) for name in columns]
    if total > len(rows):
        caption += f" {len(rows):,} of {total:,} are shown."
    yield '<div class="scroll"><table>\n'
    yield f"<caption><span>{escape(caption)}</span></caption>\n<thead><tr>"
    for name, kind in zip(columns, kinds, strict=True):
        yield f'<th scope="col" class="{kind}">{escape(name.lstrip("#~"))}</th>'
    yield "</tr></thead>\n<tbody>\n"
    for row in rows:
        yield "<tr>"
        for value, kind in zip(row, kinds, strict=True):
            # Isolated, so that a name written from right to left does not turn its row around.
            text = escape(value) if kind == _NUMBER else f"<bdi>{escape(value)}</bdi>"
            yield f'<td class="{kind}">{text}</td>'
        yield "</tr>\n"
    yield "</tbody>\n</table></div>\n"
