"""A page as a browser would read it: tags, text, and where pictures and links point."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Tags, text, and where pictures and links point."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.targets: list[str | None] = []
        self.tags: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.targets += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        """All text, with single spaces."""
        return " ".join("".join(self.text).split())
