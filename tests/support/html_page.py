"""Parses an HTML page for tests."""

import html.parser


class Page(html.parser.HTMLParser):
    """A parsed page: tags with attributes, and the text of the page, its cells and paragraphs.

    Tags must be balanced. ``spans`` are coloured tokens with attributes and text.
    """

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.cells, self.paragraphs, self.spans = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag != "meta":
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        if tag == "p":
            self.paragraphs.append("")
        if tag == "span" and "--share" in attributes.get("style", ""):
            self.spans.append({**attributes, "text": ""})

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        data = data.replace("\N{NO-BREAK SPACE}", " ")
        self.text += data
        if "p" in self.open:
            self.paragraphs[-1] += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data
        if self.open and self.open[-1] == "span" and self.spans:
            self.spans[-1]["text"] += data

    def count(self, tag: str, **attributes) -> int:
        return sum(name == tag and attributes.items() <= attrs.items() for name, attrs in self.tags)

    def shares(self) -> list[float]:
        """The strength of each span's colour, in [0, 0.8]."""
        return [float(span["style"].removeprefix("--share:")) for span in self.spans]
