"""The page of results: built once, written as Markdown and as one HTML file with the pictures in it."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass, field
from pathlib import Path

STYLE = """body { font: 15px/1.5 system-ui, sans-serif;
max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-size: 14px } th, td { padding: .25rem .7rem; text-align: right }
th { border-bottom: 2px solid #888 } td { border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
td { font-variant-numeric: tabular-nums } img { max-width: 100% }
code, pre { background: #f3f3f3; padding: .1rem .3rem }
pre { padding: .7rem; overflow-x: auto }"""


@dataclass
class Page:
    """Headings, paragraphs, lists, tables, code and pictures, in order."""

    title: str
    blocks: list[tuple[str, object]] = field(default_factory=list)

    def heading(self, text: str, level: int = 2) -> None:
        self.blocks.append((f"h{level}", text))

    def text(self, text: str) -> None:
        self.blocks.append(("p", text))

    def items(self, texts: list[str]) -> None:
        self.blocks.append(("ul", texts))

    def code(self, text: str) -> None:
        self.blocks.append(("pre", text))

    def table(self, head: list[str], rows: list[list[str]]) -> None:
        """A table; the first column is aligned left, the others right."""
        self.blocks.append(("table", (head, rows)))

    def picture(self, file: Path) -> None:
        self.blocks.append(("img", file))

    def markdown(self) -> str:
        """The page for reading as text; pictures are links to files beside it."""
        return "\n\n".join([f"# {self.title}", *(_markdown(kind, content) for kind, content in self.blocks)]) + "\n"

    def html(self) -> str:
        """The page as one file that needs no other."""
        title = html.escape(self.title)
        head = (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        )
        body = "\n".join(_html(kind, content) for kind, content in self.blocks)
        return f"{head}</head><body>\n<h1>{title}</h1>\n{body}\n</body></html>\n"


def _markdown(kind: str, content) -> str:
    if kind.startswith("h"):
        return f"{'#' * int(kind[1])} {content}"
    if kind == "ul":
        return "\n".join(f"* {item}" for item in content)
    if kind == "pre":
        return f"```\n{content}\n```"
    if kind == "img":
        return f"![Dice against the number of labels]({content.name})"
    if kind == "table":
        head, rows = content
        lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    return str(content)


def _html(kind: str, content) -> str:
    if kind == "ul":
        return "<ul>" + "".join(f"<li>{html.escape(item)}</li>" for item in content) + "</ul>"
    if kind == "img":
        data = base64.b64encode(content.read_bytes()).decode()
        return f'<p><img alt="Dice against the number of labels" src="data:image/png;base64,{data}"></p>'
    if kind == "table":
        head, rows = content
        cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
        body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
        return f"<table><tr>{cells}</tr>{body}</table>"
    return f"<{kind}>{html.escape(str(content))}</{kind}>"
