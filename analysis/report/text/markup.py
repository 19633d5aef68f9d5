"""The little markup that captions and definitions are written in, as HTML and as plain text.

`code`, *emphasis*, ~subscript~ and [@key] for a citation, as in Markdown with citations; everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from markupsafe import Markup

from .bibliography import REFERENCES

__all__ = ["cited", "code", "literal", "plain", "rich"]

_MARKS = re.compile(r"`(?P<code>[^`]+)`|\[@(?P<cite>\w+)\]|\*(?P<em>[^*\s][^*]*)\*|~(?P<sub>[^~\s]+)~")

_HTML: Mapping[str, Callable[[str], Markup]] = {
    "code": Markup("<code>{}</code>").format,
    "em": Markup("<em>{}</em>").format,
    "sub": Markup("<sub>{}</sub>").format,
    "cite": lambda key: Markup('<a class="cite" href="#ref-{}">{}</a>').format(key, REFERENCES[key].short),
}
_PLAIN: Mapping[str, Callable[[str], str]] = {
    "code": str,
    "em": str,
    "sub": lambda text: f"_{text}",
    "cite": lambda key: REFERENCES[key].short,
}


def rich(text: str) -> Markup:
    """HTML, with all that is not markup escaped."""
    parts, end = [], 0
    for mark in _MARKS.finditer(text):
        kind = str(mark.lastgroup)
        parts += [Markup.escape(text[end : mark.start()]), _HTML[kind](mark[kind])]
        end = mark.end()
    return Markup("").join([*parts, Markup.escape(text[end:])])


def plain(text: str) -> str:
    """The same without markup."""
    return _MARKS.sub(lambda mark: _PLAIN[str(mark.lastgroup)](mark[str(mark.lastgroup)]), text)


def cited(text: str) -> set[str]:
    """The keys of all publications that a text cites."""
    return {mark["cite"] for mark in _MARKS.finditer(text) if mark["cite"]}


def literal(text: str) -> str:
    """Somebody else's words, of which nothing is markup."""
    return text.translate({ord("`"): "'", ord("*"): "∗", ord("~"): "∼"}).replace("[@", "[ @")


def code(text: str) -> str:
    """A path or name, of which nothing is markup."""
    return "`{}`".format(text.replace("`", "'")) if text else ""
