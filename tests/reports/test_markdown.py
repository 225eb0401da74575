import io
from collections.abc import Callable

import pytest
from markdown_it import MarkdownIt

from qkspec.analysis import Report
from qkspec.reports import markdown


def rendered(report: Report) -> str:
    out = io.StringIO()
    markdown.write(report, out)
    return MarkdownIt("gfm-like", {"linkify": False}).render(out.getvalue())


def test_it_says_the_same_as_the_terminal(two_runs: Report) -> None:
    html = rendered(two_runs)
    assert "<td><code>lost</code></td>" in html
    assert "<strong>lost</strong>: 6 of 12 heads (50%) concentrated and frozen (κ ≥ 1.00) at step 160" in html
    assert html.count("<strong>malignant</strong>") == 6
    assert "Skipped (1)" in html


@pytest.mark.parametrize(
    "name",
    [
        "\x1b[1m::warning::<b>",
        "a`b``c",
        "@team #12 https://x.y",
        "a|b",
        "![x](http://evil)",
        "<script>alert(1)</script>",
        "  ",
        "*b*",
    ],
)
def test_names_stay_names(two_runs: Report, rename: Callable[[Report, str], Report], name: str) -> None:
    html = rendered(rename(two_runs, name))
    for tag in ("<script", "<img", "<a ", "<b>", "<em>"):
        assert tag not in html
    plain = rendered(two_runs)
    for tag in ("<td", "<tr", "<h2", "<li"):
        assert html.count(tag) - plain.count(tag) == (2 if tag == "<li" else 0)  # the two remarks are new


def test_code_spans_survive_backticks() -> None:
    assert markdown.code("a``b") == "``` a``b ```"
    assert markdown.code("plain") == "`plain`"
    assert "|" not in markdown.code("a|b")
