"""What a browser would see of a page."""

import html.parser


class Page(html.parser.HTMLParser):
    """Every tag with its attributes, and the text of the page, of cells, paragraphs and spans.

    Tags must be balanced. ``spans`` are tokens, each with its attributes and text.
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
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.tags)

    def shares(self) -> list[float]:
        """How strong the colour of each span is."""
        return [float(span["style"].removeprefix("--share:")) for span in self.spans]
