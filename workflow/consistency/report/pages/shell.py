"""What the pages share: one HTML file that needs nothing else, with its data, its look and its sources inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from ... import escape
from ...files.storage import write_text

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:1rem;color:#1b1f24;background:#fff}
h1{font-size:1.35rem;margin:0 0 .4rem}p{margin:.4rem 0;max-width:52rem}
.controls{display:flex;flex-wrap:wrap;gap:.5rem 1rem;margin:.9rem 0}
.controls label{display:flex;flex-direction:column;font-size:13px;color:#424a53}
select,input{font:inherit;max-width:calc(100vw - 3rem)}select{padding:.2rem .3rem}
:focus-visible{outline:2px solid #0b63ce;outline-offset:2px}
.scroll{overflow-x:auto}.note{font-size:13px;color:#424a53}[hidden]{display:none!important}
"""


def write(path: str | Path, title: str, template: str | Path, data: dict[str, Any]) -> None:
    """Write a page atomically.

    Args:
        title: as text.
        template: the file with the page's own body, style and script; the script finds the data with
            `JSON.parse(document.getElementById("data").textContent)`.
        data: what JSON can hold.
    """
    title = escape.html(title)
    write_text(
        path,
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f'<script type="application/json" id="data">{escape.script(data)}</script>\n'
        f"{Path(template).read_text(encoding='utf-8')}</body></html>\n",
    )


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as a data: address of that MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
