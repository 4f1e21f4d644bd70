"""The readable text of a page, from its bytes."""

from __future__ import annotations

import codecs
import re
from typing import Any

from ..optional_packages import require
from .pages import FetchError

_HTML = ("text/html", "application/xhtml+xml")
_PLAIN = (
    "text/plain",
    "text/markdown",
    "text/x-markdown",
    "text/csv",
    "application/json",
    "text/xml",
    "application/xml",
)
READABLE = (*_HTML, *_PLAIN)
"""Content types with readable text."""

_META = re.compile(rb"""<meta[^<>]+?charset\s*+=\s*+["']?\s*+([\w-]+)""", re.IGNORECASE)
_BLANKS = re.compile(r"\n{3,}")
_MOST_NULS = 8
_EXPLICIT = ("utf-16", "utf-32", "iso2022", "hz", "shift", "euc", "big5", "gb", "cp9", "koi8")
"""Encodings that are not declared by accident, and whose bytes may be valid UTF-8."""


def trafilatura() -> Any:
    """The library that extracts the text of a page."""
    return require("trafilatura", "web", "Reading the web")


def content_type(header: str | None) -> tuple[str, str | None]:
    """Type and declared encoding of a `Content-Type` header; a page without the header is treated as HTML."""
    kind, *parameters = (header or "text/html").split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return kind.strip().lower(), value.strip().strip("\"'").lower() or None
    return kind.strip().lower(), None


def decode(body: bytes, declared: str | None) -> str:
    """
    Text of a body. Declared encodings are often wrong, and text in another encoding is rarely valid UTF-8 by chance. The order
    is therefore: a byte order mark, UTF-8 if the bytes are valid or nearly all of them are, the declared encodings, an encoding
    guessed from the bytes. A declared encoding that is rarely declared by mistake, such as UTF-16, comes before UTF-8.
    """
    for mark, name in ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")):
        if body.startswith(mark):
            return body[len(mark) :].decode(name if name == "utf-8" else f"{name}-{_endian(mark)}", "replace")
    meta = _META.search(body[:4096])
    names = [name for name in (declared, meta[1].decode("ascii", "replace") if meta else "") if name and _known(name)]
    explicit = [name for name in names if _known(name).startswith(_EXPLICIT)]
    for encoding, nearly in (
        *((name, None) for name in (*explicit, "utf-8")),
        ("utf-8", 1),
        *((name, 4) for name in explicit),
        *((name, None) for name in names),
    ):
        text = _decoded(body, encoding, nearly)
        if text is not None:
            return text
    from charset_normalizer import from_bytes

    best = from_bytes(body[:50_000]).best()
    western = best is None or all(character < "\u0250" for character in str(best))
    # The default of browsers; the many Latin encodings cannot be told apart by a few accents
    return body.decode("cp1252" if western else best.encoding, "replace")  # type: ignore[union-attr]


def _decoded(body: bytes, encoding: str, nearly: int | None) -> str | None:
    """
    The text of a body in an encoding, or `None` if it is not in that encoding.

    Args:
        body (`bytes`):
            The body. It may end within a character, since long ones are cut.
        encoding (`str`):
            The encoding.
        nearly (`int` or `None`):
            How many characters beyond ASCII there must be for each place that is not in the encoding: a comment that was pasted, an
            emoji cut in half. `None` allows no such place.
    """
    decoder = codecs.getincrementaldecoder(encoding)("strict" if nearly is None else "replace")
    try:
        text = decoder.decode(body)
    except UnicodeError:
        return None
    broken = text.count("\ufffd")
    right = sum(character > "\x7f" for character in text) - broken
    return text if nearly is None or right >= max(1, nearly * broken) else None


def _endian(mark: bytes) -> str:
    return "le" if mark == codecs.BOM_UTF16_LE else "be"


def _known(name: str) -> str:
    """Python's name of a text encoding; empty if Python does not know it."""
    try:
        return codecs.lookup(name).name if codecs.lookup(name)._is_text_encoding else ""
    except (LookupError, AttributeError):
        return ""


def _everything(page: str) -> str:
    """All text of a page that has no article."""
    from lxml import etree, html

    try:
        tree = html.document_fromstring(page)
    except (etree.ParserError, ValueError):
        return ""
    for element in tree.xpath("//script | //style | //noscript | //template | //head"):
        element.drop_tree()
    lines = (" ".join(line.split()) for line in tree.text_content().splitlines())
    return "\n".join(line for line in lines if line)


def readable(body: bytes, kind: str, declared: str | None, url: str) -> tuple[str, str]:
    """
    Title and text of a page.

    Args:
        body (`bytes`):
            The page.
        kind (`str`):
            Content type of the page, one of [`READABLE`].
        declared (`str` or `None`):
            Encoding that the header of the page declares.
        url (`str`):
            Address of the page.

    Raises:
        [`FetchError`]: if the page has no text.
    """
    # A single one is a slip; nothing but text in two bytes a character has many
    if body.count(b"\0", 0, 1024) > _MOST_NULS and not body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise FetchError("The content of this page is not text, although its type says so.")
    text = decode(body, declared)
    title = ""
    if kind in _HTML:
        library = trafilatura()
        found = library.bare_extraction(text, url=url, include_comments=False, include_tables=True, with_metadata=True)
        title = (found.title or "") if found is not None else ""
        text = (found.text or "") if found is not None else _everything(text)
    text = _BLANKS.sub("\n\n", text.replace("\0", "")).strip()
    if not text:
        raise FetchError("There is no text on this page.")
    return " ".join(title.split()), text
