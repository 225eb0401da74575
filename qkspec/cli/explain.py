"""``qkspec explain``: a metric, verdict or threshold in a few sentences, with its equation and source."""

import sys
from typing import Annotated

import typer


def explain(
    term: Annotated[str, typer.Argument(help="A metric, verdict, or 'limits'; nothing lists them.")] = "",
) -> None:
    """Say what a metric, a verdict or a threshold is, and where it comes from."""
    from qkspec.errors import UsageError

    entries = terms()
    key = term.strip().lower().replace("-", "_").replace(" ", "_")
    if not key:
        width = max(len(name) for name in entries)
        lines = [f"{name:{width}}  {text.splitlines()[0]}" for name, text in entries.items()]
    elif key in entries:
        lines = [f"{key}: {entries[key]}"]
    else:
        from difflib import get_close_matches

        near = get_close_matches(key, entries, n=3)
        raise UsageError(f"no term {term!r}; " + (f"near: {', '.join(near)}" if near else "qkspec explain lists them"))
    print("\n".join(lines), file=sys.stdout)  # noqa: T201 - the command's result


def terms() -> dict[str, str]:
    """Return every term with its explanation, from the registries that compute it."""
    import re
    from dataclasses import fields

    from qkspec.metrics import METRICS, sec_metrics
    from qkspec.theorem import Limits, Verdict

    entries = {
        m.name: m.meaning + (f" ({m.source})" if m.source else "") for m in (*METRICS, *sec_metrics((1, 2, 4, 8)))
    }
    entries |= {verdict.value.replace(" ", "_"): f"verdict: {verdict.meaning}" for verdict in Verdict}
    documented = dict(
        re.findall(r"^\s+(\w+): (.+?)(?=\n\s+\w+: |\n\s*$)", Limits.__doc__ or "", re.MULTILINE | re.DOTALL)
    )
    lines = []
    for field in fields(Limits):
        text = " ".join(documented[field.name].split())
        lines.append(f"  {field.name} (default {field.default}): {text}")
    entries["limits"] = "the thresholds of the verdicts, set by --limit NAME=VALUE\n" + "\n".join(lines)
    return entries
