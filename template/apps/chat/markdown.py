"""Converts a model's Markdown to HTML that a page can trust.

A model repeats what it has read, so its text is as untrusted as any visitor's. It may contain no HTML and no pictures
(loading one sends its address to a server), only links to the web and to mailboxes. A second library lets only known
tags through.
"""

from importlib import import_module

import nh3
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

TEXT_TAGS = {"a", "br", "code", "del", "em", "s", "strong"}
BLOCK_TAGS = {"blockquote", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "ul"}
TABLE_TAGS = {"table", "tbody", "td", "th", "thead", "tr"}

# Short rows are filled with empty cells. A few thousand characters can produce 65,536 cells, which would take seconds.
import_module("markdown_it.rules_block.table").MAX_AUTOCOMPLETED_CELLS = 1000

_markdown = (
    MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["strikethrough", "table"]).disable("image")
)


def to_html(text: str) -> SafeString:
    """Return the Markdown as safe HTML."""
    html = nh3.clean(
        _markdown.render(text),
        tags=TEXT_TAGS | BLOCK_TAGS | TABLE_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}},
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener noreferrer",
    )
    return mark_safe(html)
