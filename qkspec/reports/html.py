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
from qkspec.reports.pagedata import MAX_RUNS, page_data
from qkspec.reports.view import (
    RunView,
    loss_sentence,
    reasons,
    state_sentence,
    surge_sentence,
    turn_sentence,
    views,
    what_was_read,
)
from qkspec.theorem import GRAVITY

SCRIPTS = ("data.js", "plots.js", "table.js", "page.js")
MAX_SKIPPED = 200
MAX_REMARKS = 50


def write(report: Report, out: TextIO) -> None:
    """Write the page to an open text file."""
    from jinja2 import Environment, StrictUndefined
    from plotly.offline import get_plotlyjs

    runs = list(islice(views(report), MAX_RUNS))
    page = files("qkspec.reports") / "page"
    scripts = [get_plotlyjs(), "\n".join((page / name).read_text(encoding="utf-8") for name in SCRIPTS)]
    scripts = [script.replace("</script", "<\\/script") for script in scripts]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((page / "page.html").read_text(encoding="utf-8"))
    out.write(
        template.render(
            scripts=[_Raw(script) for script in scripts],
            hashes=[_hash(script) for script in scripts],
            style=_Raw((page / "page.css").read_text(encoding="utf-8")),
            data=_Raw(embed(page_data(report.limits, runs))),
            runs=[_summary(view) for view in views(report)],
            drawn=len(runs),
            skipped=[(clean(name), clean(why, 500)) for name, why in islice(report.skipped.items(), MAX_SKIPPED)],
            skipped_count=len(report.skipped),
            provenance={clean(name): clean(value) for name, value in report.provenance.items()},
            limits={name: value for name, value in vars(report.limits).items() if value is not None},
        )
    )


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


def _summary(view: RunView) -> dict[str, Any]:
    counts = view.counts()
    row = view.first_turn()
    return {
        "name": clean(view.name),
        "state": view.state.verdict,
        "read": clean(what_was_read(view), 1000),
        "sentence": clean(state_sentence(view)),
        "turn": clean(turn_sentence(view)),
        "why": clean(", ".join(reasons(view, row))) if row is not None else "",
        "surge": clean(surge_sentence(view)),
        "loss": clean(loss_sentence(view), 500),
        "counts": [(verdict.value, counts[verdict]) for verdict in GRAVITY if counts[verdict]],
        "remarks": _cleaned(view.remarks()[:MAX_REMARKS]),
    }


def _cleaned(texts: Sequence[str]) -> list[str]:
    return [clean(text) for text in texts]
