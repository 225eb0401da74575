"""report.html: one self-contained page that explores a report and needs no network.

Two layers keep names inert: Jinja escapes what is written here, and the script only ever sets text. A content policy by
hash lets no other script run and nothing be fetched.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from hashlib import sha256
from importlib.resources import files
from itertools import islice
from typing import Any, TextIO

from qkspec.analysis import Report
from qkspec.clean import clean
from qkspec.reports.notes import notes
from qkspec.reports.pagedata import MAX_RUNS, page_data
from qkspec.reports.view import (
    RunView,
    reasons,
    state_sentence,
    turn_sentence,
    turn_word,
    views,
    what_was_read,
)
from qkspec.theorem import GRAVITY

SHARED = ("shared.js", "data.js", "plots.js", "table.js")  # of every page, in this order
FURTHER = {"page": ("attention.js",), "compare": ()}
MAX_SKIPPED = 200
MAX_REMARKS = 50


def write(report: Report, out: TextIO) -> None:
    """Write the page to an open text file."""
    runs = list(islice(views(report), MAX_RUNS))
    render(
        "page",
        page_data(report.limits, runs),
        out,
        runs=[summary(view) for view in views(report)],
        drawn=len(runs),
        skipped=[(clean(name), clean(why, 500)) for name, why in islice(report.skipped.items(), MAX_SKIPPED)],
        skipped_count=len(report.skipped),
        provenance={clean(name): clean(value) for name, value in report.provenance.items()},
        limits={name: value for name, value in vars(report.limits).items() if value is not None},
    )


def render(name: str, data: Any, out: TextIO, **values: Any) -> None:
    """Write a self-contained page: page/NAME.html with page/NAME.js, what pages share, and the data.

    Args:
        name: of the template and of its script.
        data: plain values for the script.
        out: an open text file.
        values: for the template, which escapes them.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), "\n".join(_text(script) for script in (*SHARED, *FURTHER[name], f"{name}.js"))]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_text)
    )
    out.write(
        environment.get_template(f"{name}.html").render(
            scripts=[_Raw(script) for script in scripts],
            hashes=[_hash(script) for script in scripts],
            style=_Raw(_text("page.css")),
            data=_Raw(embed(data)),
            **values,
        )
    )


def _text(name: str) -> str:
    return (files("qkspec.reports") / "page" / name).read_text(encoding="utf-8")


class _Raw:
    """Text of our own that stands in the page as it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __html__(self) -> str:
        return self._text


def embed(data: Any) -> str:
    """Return JSON that can stand inside a script element: strict, ASCII, and without a character of markup."""
    text = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _hash(script: str) -> str:
    return b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")


def summary(view: RunView, side: str = "") -> dict[str, Any]:
    """Return what a run's card says; ``side`` is its letter where two runs are compared."""
    counts = view.counts()
    row = view.first_turn()
    return {
        "side": side,
        "name": clean(view.name),
        "state": view.state.verdict,
        "read": clean(what_was_read(view), 1000),
        "sentence": clean(state_sentence(view)),
        "turn": clean(turn_sentence(view)),
        "turn_word": turn_word(view).capitalize(),
        "why": clean(", ".join(reasons(view, row))) if row is not None else "",
        "notes": [(word.capitalize(), clean(sentence, 500)) for word, sentence in notes(view)],
        "counts": [(verdict.value, counts[verdict]) for verdict in GRAVITY if counts[verdict]],
        "remarks": _cleaned(view.remarks()[:MAX_REMARKS]),
    }


def _cleaned(texts: Sequence[str]) -> list[str]:
    return [clean(text) for text in texts]
