"""What a gate tells GitHub: workflow commands that become annotations, and Markdown for a summary or a comment."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TextIO

from qkspec.clean import clean
from qkspec.gate import Outcome
from qkspec.reports.crossings import NONE_HELD, WORDS, Crossing, counted, crossings
from qkspec.reports.markdown import code, inert, table

MAX_ANNOTATIONS = 10  # GitHub shows ten errors and ten warnings a step
MAX_ROWS = 50


def runs_here(environment: Mapping[str, str]) -> bool:
    """Whether the process runs inside GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def annotations(outcome: Outcome) -> Iterator[str]:
    """Yield workflow commands, one line each: thresholds crossed, values not measured, inputs skipped.

    Of a level there are at most MAX_ANNOTATIONS; where there is more to say, the last one counts it.
    """
    found: dict[str, list[tuple[str, str]]] = {"error": [], "warning": []}
    level = "error" if outcome.exit_code == 3 else "warning"
    if not outcome.heads:
        found["error"].append(("qkspec gate", NONE_HELD))
    found["error"] += _titled(crossings(outcome.failures))
    found[level] += _titled(crossings(outcome.unmeasured))
    found["warning" if outcome.allow_skipped else level] += [
        ("qkspec gate: skipped", f"{where}: {reason}") for where, reason in outcome.skipped.items()
    ]
    for kind, said in found.items():
        shown = said if len(said) <= MAX_ANNOTATIONS else said[: MAX_ANNOTATIONS - 1]
        for title, message in shown:
            yield command(kind, title, message)
        if len(shown) < len(said):
            yield command(kind, "qkspec gate", f"{len(said) - len(shown)} more like these: see the job's log")


def _titled(found: Iterable[Crossing]) -> list[tuple[str, str]]:
    return [(f"qkspec gate: {crossing.rule}", crossing.message) for crossing in found]


def command(level: str, title: str, message: str) -> str:
    """Return a workflow command; nothing in the title or the message can end it or start another."""
    text = clean(message, 1000).replace("%", "%25")
    name = clean(title).replace("%", "%25").replace(":", "%3A").replace(",", "%2C")
    return f"::{level} title={name}::{text}"


def write_markdown(outcome: Outcome, out: TextIO) -> None:
    """Write what the gate found as Markdown to an open text file."""
    out.writelines(f"{line}\n" for line in markdown(outcome))


def markdown(outcome: Outcome) -> Iterator[str]:
    """Yield what the gate found as Markdown, line by line."""
    yield f"## qkspec gate: {WORDS[outcome.exit_code]}"
    yield ""
    crossed, unmeasured = crossings(outcome.failures), crossings(outcome.unmeasured)
    found = counted(outcome)
    yield f"{outcome.heads} head readings held to the policy{': ' if found else ''}{found}."
    yield ""
    yield from _table("Crossed", "worst value", crossed)
    yield from _table("Not measured", "value", unmeasured)
    if outcome.skipped:
        yield from table(
            ("skipped", "because"), [[code(w), inert(r)] for w, r in list(outcome.skipped.items())[:MAX_ROWS]]
        )
        yield from _more(len(outcome.skipped))
    for warning in outcome.warnings[:MAX_ROWS]:
        yield f"- assumed: {inert(warning)}"


def _table(heading: str, value: str, found: Sequence[Crossing]) -> Iterator[str]:
    if not found:
        return
    yield f"### {heading}"
    yield ""
    rows = [
        [code(c.where), code(c.rule), _shown(c.worst.value), _limit(c), _at(c), str(len(c.failures))]
        for c in found[:MAX_ROWS]
    ]
    yield from table(("where", "rule", value, "limit", "first", "checkpoints"), rows)
    yield from _more(len(found))


def _limit(crossing: Crossing) -> str:
    return "none" if crossing.worst.limit is None else _shown(crossing.worst.limit)


def _at(crossing: Crossing) -> str:
    first = crossing.failures[0].at
    return inert(first, 60) if first else "at the end"


def _more(count: int) -> Iterator[str]:
    if count > MAX_ROWS:
        yield f"… and {count - MAX_ROWS} more."
        yield ""


def _shown(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else code(value)
