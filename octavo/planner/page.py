"""The frame of every HTML page that is written: one style, and nothing that is fetched from anywhere."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child{text-align:left}figure{margin:1.5rem 0}svg{max-width:100%;height:auto}
figcaption{color:#555}"""


def html_page(title: str, body: str) -> str:
    """A whole page; `body` is HTML, and comes after the title as a heading."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(title)}</h1>{body}</body></html>\n"
    )


def html_table(rows: Iterable[Sequence[str]], columns: Sequence[str] = ()) -> str:
    """Texts in rows, the first cell of each set flush left."""
    head = f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in columns)}</tr>" if columns else ""
    lines = (f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{head}{''.join(lines)}</table>"


def html_figure(svg: str, caption: str) -> str:
    """A chart as matplotlib wrote it, without what names places elsewhere."""
    bare = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return f"<figure>{bare}<figcaption>{escape(caption)}</figcaption></figure>"
