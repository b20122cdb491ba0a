"""Readers of the formats of outputs, for tests: what a browser, TeX or a Markdown viewer would make of them. Each fails
where there is more than text in what ought to be text."""

import json
import re
from html.parser import HTMLParser

import markdown as python_markdown
from consistency import escape
from markdown_it import MarkdownIt

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
VOID = {"meta", "br", "hr", "img", "input", "link"}


def words(text):
    """The text as a browser shows it, which takes white space together; of what cannot be shown there is a space."""
    return " ".join(UNSEEN.sub(" ", text).split())


class Page(HTMLParser):
    """A page's elements with their attributes, and the text of each, in the order of their ends."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.names, self.texts, self.attributes, self.scripts, self._open = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self._open, f"elements left open: {[name for name, _ in self._open]}"

    def handle_starttag(self, name, attributes):
        self.names.append(name)
        self.attributes += attributes
        if name not in VOID:
            self._open.append((name, []))

    def handle_startendtag(self, name, attributes):
        self.names.append(name)
        self.attributes += attributes

    def handle_data(self, data):
        if self._open:
            self._open[-1][1].append(data)

    def handle_endtag(self, name):
        opened, parts = self._open.pop()
        assert name == opened, f"</{name}> ends <{opened}>"
        text = "".join(parts)
        self.texts.append((name, " ".join(text.split())))
        if name == "script":
            self.scripts.append(text)
        elif self._open and name not in ("style", "title", "h1", "td", "th"):
            self._open[-1][1].append(text)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:80]!r}")

    def of(self, name):
        return [text for element, text in self.texts if element == name]


def without_handlers(page):
    assert [name for name, _ in page.attributes if name.startswith("on") or name in ("src", "href")] == []


COMMAND = re.compile(r"\\(?!textbackslash\{\}|textascii(circum|tilde)\{\}|[{}$&#])")  # in a comment
TEX_NAMES = {"textbackslash": "\\", "textasciicircum": "^", "textasciitilde": "~"}


def read_tex(text):
    """The characters that TeX would set; an error where one of its special characters stands for itself."""
    read, place = [], 0
    pattern = re.compile(r"\\([{}$&#_%])|\\(text\w+)\{\}|\$(<|>|\\pm)\$|\{([\[*])\}|([^\\{}$&#^_~%\x00-\x1f])")
    while place < len(text):
        match = pattern.match(text, place)
        assert match, f"special in TeX: {text[place : place + 40]!r} of {text[:200]!r}"
        sign, name, formula, guarded, plain = match.groups()
        assert not name or name in TEX_NAMES, f"a command: \\{name}"
        read.append(sign or TEX_NAMES.get(name) or {"\\pm": "±"}.get(formula, formula) or guarded or plain)
        place = match.end()
    return "".join(read)


def in_tex(text):
    """What `read_tex` gives for a text: its dashes are two hyphens."""
    return UNSEEN.sub(" ", text).strip().replace("–", "--")


def tex_rows(path):
    """The cells of a table in TeX; an error where a line is no part of the fixed form of tables."""
    first, begin, *lines, comment, end = path.read_text(encoding="utf-8").split("\n")
    assert first == "% needs booktabs"
    assert re.fullmatch(r"\\begin\{tabular\}\{l+\}", begin), begin
    assert end == ""
    assert comment.startswith("% "), f"the last line is no comment: {comment[:80]!r}"
    assert not COMMAND.search(comment), f"a command: {comment[:200]!r}"
    assert lines.pop() == "\\end{tabular}"
    rules = {0: "\\toprule", 2: "\\midrule", len(lines) - 1: "\\bottomrule"}
    rows = []
    for number, line in enumerate(lines):
        if number in rules:
            assert line == rules[number]
            continue
        assert line.endswith(" \\\\"), f"no row: {line[:200]!r}"
        row = line.removesuffix(" \\\\")
        assert not row.startswith(("[", "*")), f"an argument of the end of the row before: {row[:80]!r}"
        rows.append([read_tex(cell) for cell in row.split(" & ")])
    assert len({len(row) for row in rows}) == 1, f"rows of different lengths: {[len(row) for row in rows]}"
    return rows


def common_mark(text):
    return MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def python_dialect(text):
    return python_markdown.markdown(text, extensions=["tables"])


# Each function of `escape` by the reader of its format.


def check_html(text):
    escaped = escape.html(text)
    page = Page(f'<p title="{escaped}">{escaped}</p>')
    assert page.names == ["p"]
    assert page.of("p") == [words(text)]
    [(name, value)] = page.attributes
    assert (name, words(value)) == ("title", words(text))


def check_script(text):
    value = {"title": text, text: [text, 1, None]}
    written = escape.script(value)
    assert not re.search("[<>&]", written), f"left: {written[:200]!r}"
    assert not UNSEEN.search(written), f"left: {written[:200]!r}"
    page = Page(f"<script>var title = {written};</script><p>after</p>")
    assert page.names == ["script", "p"]
    assert json.loads(page.scripts[0].removeprefix("var title = ").removesuffix(";")) == value
    written.encode()  # a file can hold it


def check_markdown(text):
    note, cell = escape.markdown(f"{text}. And more."), escape.markdown(text)
    for render in (common_mark, python_dialect):
        page = Page(render(note))
        assert page.names == ["p"], f"more than a paragraph: {page.names}"
        assert page.of("p") == [f"{words(text + '. And more.')}"]
        page = Page(render(f"| {cell} | b |\n|---|---|\n| {cell} | d |"))
        assert page.names == ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
        assert page.of("th") == [words(text), "b"]
        assert page.of("td") == [words(text), "d"]


def check_tex(text):
    escaped = escape.tex(text)
    assert read_tex(escaped) == in_tex(text)
    assert not escaped.startswith(("[", "*", " "))


def check_tex_comment(text):
    comment = escape.tex_comment(text)
    assert not UNSEEN.search(comment), f"the comment ends before its text: {comment[:200]!r}"
    assert not COMMAND.search(comment), f"a command: {comment[:200]!r}"


CHECKS = (check_html, check_script, check_markdown, check_tex, check_tex_comment)
