"""What a model writes is shown as Markdown, and cannot do more than look like it."""

import pytest

from apps.chat.markdown import to_html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**bold** and `code`", "<strong>bold</strong> and <code>code</code>"),
        ("- one\n- two", "<li>two</li>"),
        ("| a |\n| - |\n| b |", "<td>b</td>"),
        ("```py\nx < 1\n```", "<pre><code>x &lt; 1\n</code></pre>"),
        ("[a](https://a.example/)", '<a href="https://a.example/" rel="nofollow noopener noreferrer">a</a>'),
        ("3. three", '<ol start="3">'),
    ],
)
def test_markdown_is_shown(text, html):
    assert html in to_html(text)


def test_a_short_text_is_no_huge_table():
    table = "|a" * 500 + "\n" + "|-" * 500 + "\n" + "b\n" * 900
    assert len(to_html(table)) < 100_000


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "[a](data:text/html,<script>alert(1)</script>)",
        "![tells](https://a.example/?secret)",
        "<a href='https://a.example/' onclick='alert(1)'>a</a>",
        "<iframe src=https://a.example/>",
    ],
)
def test_nothing_runs_and_nothing_is_loaded(text):
    html = to_html(text)
    assert not [
        tag for tag in ("<script", "<img", "<iframe", "<a href='", 'href="javascript', 'href="data') if tag in html
    ]
