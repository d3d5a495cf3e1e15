"""What may stay of a text that strangers wrote: plain, printable, short; and how two texts are compared.

News text is hostile input. Markup, scripts, control and invisible characters are dropped before anything else sees it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from html import unescape
from html.parser import HTMLParser
from typing import Final
from urllib.parse import urlsplit, urlunsplit

TITLE_CHARACTERS: Final = 300
BODY_CHARACTERS: Final = 1_500
_SILENT: Final = frozenset({"script", "style", "noscript", "template", "iframe"})
_BREAKS: Final = frozenset({"p", "br", "div", "li", "h1", "h2", "h3", "tr"})
_BLANKS = re.compile(r"\s+")
_WORDS = re.compile(r"[a-z0-9$%.]+")
_KEEP_CATEGORIES: Final = frozenset({"L", "M", "N", "P", "S", "Z"})


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._silent += tag in _SILENT
        if tag in _BREAKS:
            self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        if tag in _BREAKS:
            self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            self.parts.append(data)


def clean(text: str, limit: int = BODY_CHARACTERS) -> str:
    """Return ``text`` without markup, control and invisible characters, blanks folded, at most ``limit`` characters.

    Compatibility forms are folded (NFKC), so look-alike wide letters read as plain ones.
    """
    parser = _Text()
    parser.feed(text)
    parser.close()
    plain = unicodedata.normalize("NFKC", unescape("".join(parser.parts)))
    kept = "".join(c if unicodedata.category(c)[0] in _KEEP_CATEGORIES else " " for c in plain if not _is_invisible(c))
    return _BLANKS.sub(" ", kept).strip()[:limit].rstrip()


def _is_invisible(c: str) -> bool:
    return unicodedata.category(c) in {"Cf", "Mn"} and not unicodedata.combining(c)


def normalised(text: str) -> str:
    """Return ``text`` in small letters, words only: what two copies of a headline share."""
    return " ".join(words(text))


def words(text: str) -> list[str]:
    """Return the words of ``text`` in small letters, without punctuation at their ends."""
    return [w for w in (m.strip(".") for m in _WORDS.findall(text.lower())) if w]


def text_hash(title: str, body: str) -> str:
    """Return the digest of a text's normalised words; source and time do not enter."""
    return hashlib.sha256(f"{normalised(title)}\n{normalised(body)}".encode()).hexdigest()[:32]


def article_id(source: str, url: str, title: str) -> str:
    """Return the id of an article over its versions: by address without query and fragment, else by source and title."""
    if url:
        parts = urlsplit(url)
        key = urlunsplit(("", parts.netloc.lower().removeprefix("www."), parts.path.rstrip("/"), "", ""))
    else:
        key = f"{source.lower()}|{normalised(title)}"
    return hashlib.sha256(key.encode()).hexdigest()[:32]
