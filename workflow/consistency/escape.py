"""Text that is not ours, made harmless for the format that it is written into: one function a format.

A preset's title, the name of a method, class or extractor, a caption: a reader sees each of them as it was written, and
none of them means anything to a browser, to TeX, to Markdown or to matplotlib. Every output that shows such a text
takes it through the function of its format. CSV needs none: `limits.check_names` and the patterns in `settings` and
`sources` allow no name that begins as a spreadsheet's formula does.
"""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any

# Line ends and other control characters, marks that reverse the text behind them, and halves of surrogate pairs, which
# UTF-8 cannot hold.
_INVISIBLE = r"\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"

# What begins something in TeX, and what only looks wrong there.
_TEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
}
_TEX_TEXT = _TEX_SPECIAL | {"_": r"\_", "%": r"\%", "±": r"$\pm$", "–": "--", "<": "$<$", ">": "$>$"}

_MARKDOWN = re.compile(
    r"""[\\`*|$~]                                                 # escapes, code, emphasis, cells, formulas, deletions
      | (?<![^\W_])_ | _(?![^\W_])                                # emphasis too; inside a word it is none
      | ^\# | ^[-+](?!\d) | ^\d(?=\d*[.)](?:\s|$))                # headings, lists; a number is none
      | ^> | <(?=[A-Za-z/!?]) | &(?=[\#\w])                        # quotations, HTML
      | \](?=[(\[:]) | :(?=//) | (?<=www)\.                       # links""",
    re.VERBOSE,
)


def line(text: str) -> str:
    """The text as one line of visible characters: each of `_INVISIBLE` becomes a space."""
    return re.sub(f"[{_INVISIBLE}]", " ", text)


def html(text: str) -> str:
    """For the text of an HTML element, or an attribute in double quotes."""
    return escape(line(text), quote=False).replace('"', "&quot;")


def script(value: Any) -> str:
    """A value as JSON that neither ends a `<script>` element nor reorders or breaks the line that it stands in.

    `json.loads` and a browser's `JSON.parse` give back the very same value.

    Raises:
        ValueError: a number that is not finite.
    """
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return re.sub(f"[<>&{_INVISIBLE}]", lambda sign: f"\\u{ord(sign[0]):04x}", text)


def markdown(text: str) -> str:
    """For a paragraph or a table's cell in Markdown: a character that would be more than text becomes its numeric
    reference, which all dialects of Markdown know."""
    return _MARKDOWN.sub(lambda sign: f"&#{ord(sign[0])};", line(text).strip())


def tex(text: str) -> str:
    """For a table's cell in TeX. A bracket or star at its beginning stands in braces, or it would belong to the end of
    the row before."""
    escaped = line(text).strip().translate(str.maketrans(_TEX_TEXT))
    return re.sub(r"^[\[*]", r"{\g<0>}", escaped)


def tex_comment(text: str) -> str:
    """For a comment in TeX, which has to end where the text ends: one line, and nothing in it is a command."""
    return line(text).translate(str.maketrans(_TEX_SPECIAL))


def mathtext(text: str) -> str:
    """For a label of matplotlib's, which reads what stands between dollars as a formula."""
    return line(text).replace("$", r"\$")
