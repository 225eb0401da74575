"""What a gate tells GitHub: workflow commands that become annotations, and Markdown for a summary or a comment."""

from collections.abc import Iterator, Mapping
from typing import TextIO

from qkspec.clean import clean
from qkspec.gate import Failure, Outcome
from qkspec.reports.markdown import code, inert, table

MAX_ANNOTATIONS = 10  # GitHub shows ten errors a step
MAX_ROWS = 50


def runs_here(environment: Mapping[str, str]) -> bool:
    """Whether the process runs inside GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true"


def annotations(outcome: Outcome) -> Iterator[str]:
    """Yield workflow commands, one line each: thresholds crossed, values not measured, inputs skipped."""
    for failure in outcome.failures[:MAX_ANNOTATIONS]:
        yield command("error", f"qkspec gate: {failure.rule}", failure.message)
    if len(outcome.failures) > MAX_ANNOTATIONS:
        yield command("error", "qkspec gate", f"{len(outcome.failures) - MAX_ANNOTATIONS} more thresholds crossed")
    level = "error" if outcome.exit_code == 3 else "warning"
    for failure in outcome.unmeasured[:MAX_ANNOTATIONS]:
        yield command(level, f"qkspec gate: {failure.rule}", failure.message)
    for where, reason in list(outcome.skipped.items())[:MAX_ANNOTATIONS]:
        yield command("warning" if outcome.allow_skipped else level, "qkspec gate: skipped", f"{where}: {reason}")
    if not outcome.heads:
        yield command("error", "qkspec gate", "no head was held to the policy, and nothing checked is no pass")


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
    word = {0: "passed", 1: "failed", 3: "not proven"}[outcome.exit_code]
    yield f"## qkspec gate: {word}"
    yield ""
    counts = f"{len(outcome.failures)} thresholds crossed, {len(outcome.unmeasured)} values not measured"
    yield f"{outcome.heads} head readings held to the policy; {counts}, {len(outcome.skipped)} inputs skipped."
    yield ""
    yield from _failures("Crossed", outcome.failures)
    yield from _failures("Not measured", outcome.unmeasured)
    if outcome.skipped:
        yield from table(
            ("skipped", "because"), [[code(w), inert(r)] for w, r in list(outcome.skipped.items())[:MAX_ROWS]]
        )
        yield from _more(len(outcome.skipped))
    for warning in outcome.warnings[:MAX_ROWS]:
        yield f"- assumed: {inert(warning)}"


def _failures(heading: str, found: tuple[Failure, ...]) -> Iterator[str]:
    if not found:
        return
    yield f"### {heading}"
    yield ""
    rows = [[code(f.where), code(f.rule), _shown(f.value), _shown(f.limit)] for f in found[:MAX_ROWS]]
    yield from table(("where", "rule", "value", "limit"), rows)
    yield from _more(len(found))


def _more(count: int) -> Iterator[str]:
    if count > MAX_ROWS:
        yield f"… and {count - MAX_ROWS} more."
        yield ""


def _shown(value: float | str | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g}" if isinstance(value, float) else code(value)
