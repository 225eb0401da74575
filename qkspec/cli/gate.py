"""``qkspec gate``: hold checkpoints, or a saved report, against thresholds."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from qkspec.clean import clean
from qkspec.cli.lines import show
from qkspec.cli.options import (
    MAPS,
    MODEL,
    VERDICT,
    WORK,
    Baseline,
    Flags,
    Lines,
    Margin,
    NoProgress,
    Paths,
    Quiet,
    Verbose,
    takes,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from qkspec.analysis import Report
    from qkspec.gate import Failure, Outcome
    from qkspec.policy import Policy

SHOWN, LEAST = 20, 4  # lines of a kind, and of each rule if there are many


@takes("revisions", *MODEL, *VERDICT, *MAPS, *WORK)
def gate(
    paths: Paths,
    *,
    flags: Flags,
    max_sec: Annotated[float | None, typer.Option("--max-sec", help="Largest SEC(d_q, s) allowed, 0 to 1.")] = None,
    s: Annotated[int | None, typer.Option("-s", help="The s of --max-sec. Default: 4.")] = None,
    max_sigma1: Annotated[float | None, typer.Option("--max-sigma1", help="Largest σ1(W_q'W_k) allowed.")] = None,
    max_freezing: Annotated[
        float | None, typer.Option("--max-freezing", help="Largest freezing ratio κ allowed.")
    ] = None,
    min_entropy: Annotated[
        float | None, typer.Option("--min-entropy", help="Least entropy / ln T of the predicted map allowed, 0 to 1.")
    ] = None,
    max_share: Annotated[
        float | None,
        typer.Option("--max-share", help="Largest share of a run's heads concentrated and large at its end, 0 to 1."),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option("--fail-on", help="Verdict that no head may have; repeatable (malignant, broken, ...)."),
    ] = None,
    last: Annotated[bool | None, typer.Option("--last", help="Only the last checkpoint of each run.")] = None,
    allow_skipped: Annotated[
        bool | None, typer.Option("--allow-skipped", help="Pass although some input could not be measured.")
    ] = None,
    strict: Annotated[
        bool | None, typer.Option("--strict", help="Do not pass when something had to be assumed.")
    ] = None,
    policy_file: Annotated[
        Path | None,
        typer.Option("--policy", help="TOML file with the gate's settings and [[layer]] overrides, for qkspec.toml's."),
    ] = None,
    junit: Annotated[Path | None, typer.Option("--junit", help="Write JUnit XML here.")] = None,
    sarif: Annotated[Path | None, typer.Option("--sarif", help="Write SARIF here.")] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Write a summary in Markdown here.")] = None,
    output_format: Annotated[Lines, typer.Option("--format", help="Of what goes to stdout.")] = Lines.TEXT,
    baseline: Baseline = None,
    margin: Margin = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
) -> None:
    """Exit 0 when every threshold holds, 1 when one is crossed, 3 when something could not be measured.

    Without a threshold, with a baseline or without, no head may be malignant or broken.
    """
    from qkspec.cli.measuring import load_bands, measure
    from qkspec.cli.settings import load_file, load_policy
    from qkspec.gate import check
    from qkspec.reports.crossings import document

    check_targets(junit, sarif, markdown)
    table, where = load_file()
    written = {"gate": load_policy(policy_file)} if policy_file is not None else table
    given = {
        "max_sec": max_sec, "s": s, "max_sigma1": max_sigma1, "max_freezing": max_freezing, "min_entropy": min_entropy,
        "max_share": max_share, "fail_on": fail_on, "last": last, "allow_skipped": allow_skipped, "strict": strict,
        "baseline": baseline, "margin": margin,
    }  # fmt: skip
    rules = policy(given, written, where if policy_file is None else str(policy_file))
    bands = load_bands(rules.baseline, rules.margin, quiet=quiet) if rules.baseline else None
    size = rules.s if rules.needs_sec else None
    report = measure(paths, flags, table, where, quiet=quiet, progress=not no_progress, verbose=verbose, s=size)
    outcome = check(report, rules, bands)
    write_files(report, outcome, junit=junit, sarif=sarif, markdown=markdown)
    annotate(outcome, sys.stderr if output_format is Lines.JSON else sys.stdout)
    if output_format is Lines.JSON:
        print(json.dumps(document(outcome), indent=1, allow_nan=False))  # noqa: T201 - the command's result
    else:
        show(clean(line, limit=1000) for line in lines(outcome, rules))
    if outcome.exit_code:
        raise typer.Exit(outcome.exit_code)


def check_targets(*paths: Path | None) -> None:
    """Refuse to write two of a gate's files to one path, before the work.

    Raises:
        UsageError: naming it.
    """
    from qkspec.errors import UsageError

    targets = [path.resolve() for path in paths if path is not None]
    for path in targets:
        if targets.count(path) > 1:
            raise UsageError(f"{path}: --junit, --sarif and --markdown each need a file of their own")


def policy(given: "Mapping[str, Any]", table: "Mapping[str, Any]", where: str) -> "Policy":
    """Merge the settings file's gate table with the flags that were given, and fall back to the default rule."""
    from dataclasses import replace

    from qkspec.errors import UsageError
    from qkspec.policy import Policy
    from qkspec.theorem import Verdict

    written = table.get("gate", {})
    if not isinstance(written, dict):
        raise UsageError(f"{where}: gate must be a table")
    chosen = {name: value for name, value in given.items() if value is not None and value != []}
    Policy.from_mapping(written, where)  # a mistake is told with the file or the command line that it stands in
    merged = {**{key.replace("-", "_"): value for key, value in written.items()}, **chosen}
    rules = Policy.from_mapping(merged, "gate")
    if "margin" in merged and rules.baseline is None:
        raise UsageError("--margin is a distance from the bands of --baseline: give one, or leave it out")
    if not rules.says_something:
        return replace(rules, fail_on=frozenset({Verdict.MALIGNANT, Verdict.BROKEN}))
    return rules


def write_files(
    report: "Report", outcome: "Outcome", *, junit: Path | None, sarif: Path | None, markdown: Path | None
) -> None:
    """Write the files that were asked for."""
    from qkspec.reports import github
    from qkspec.reports import junit as junit_file
    from qkspec.reports import sarif as sarif_file
    from qkspec.reports.wholefile import whole_file

    if junit is not None:
        with whole_file(junit) as out:
            junit_file.write(outcome, out)
    if sarif is not None:
        with whole_file(sarif) as out:
            sarif_file.write(report, outcome, out)
    if markdown is not None:
        with whole_file(markdown) as out:
            github.write_markdown(outcome, out)


def annotate(outcome: "Outcome", out: TextIO) -> None:
    """Print annotations where GitHub runs this: it reads them from either stream."""
    from qkspec.reports import github

    if github.runs_here(os.environ):
        for line in github.annotations(outcome):
            print(line, file=out)


def lines(outcome: "Outcome", rules: "Policy") -> "Iterator[str]":
    """Yield what a gate found: a line for each rule and head, what could not be told, and the result."""
    from qkspec.reports.crossings import NONE_HELD, WORDS, counted

    yield from _told("FAIL", outcome.failures)
    yield from _told("UNMEASURED", outcome.unmeasured)
    yield from _some([f"SKIPPED {where}: {reason}" for where, reason in outcome.skipped.items()], SHOWN, "skipped")
    if not outcome.heads:
        yield f"UNMEASURED {NONE_HELD}"
    yield from (f"ASSUMED {warning}" for warning in outcome.warnings if outcome.strict)
    said = [f"{rule} {limit:g}" + f" -s {rules.s}" * (rule == "--max-sec") for rule, _, limit in rules.rules]
    said += [] if rules.max_share is None else [f"--max-share {rules.max_share:g}"]
    said += [f"--baseline {rules.baseline}"] if rules.baseline else []
    said += [f"{len(rules.layer)} override{'s' * (len(rules.layer) != 1)} for layers"] if rules.layer else []
    said += [f"--fail-on {verdict.value.replace(' ', '-')}" for verdict in sorted(rules.fail_on, key=lambda v: v.value)]
    held = f"{outcome.heads} head reading{'s' * (outcome.heads != 1)} held to {', '.join(said)}"
    result = f"gate {WORDS[outcome.exit_code]}: {held}"
    found = counted(outcome)
    yield f"{result}: {found}" if found else result


def _told(word: str, found: "Sequence[Failure]") -> "Iterator[str]":
    """Yield failures put together by rule and head, of each rule its share of the room."""
    from qkspec.reports.crossings import crossings

    by_rule: dict[str, list[str]] = {}
    for crossing in crossings(found):
        by_rule.setdefault(crossing.rule, []).append(f"{word} {crossing.message}")
    for rule, said in by_rule.items():
        yield from _some(said, max(SHOWN // len(by_rule), LEAST), f"heads: {rule}")


def _some(said: "Sequence[str]", most: int, what: str) -> "Iterator[str]":
    yield from said[:most]
    if len(said) > most:
        yield f"... and {len(said) - most} more {what} (--format json lists them)"
