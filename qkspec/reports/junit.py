"""junit.xml of a gate: a test case for each rule that a head crossed or that could not be measured, and input skipped.

Failures are thresholds crossed (exit code 1), errors are what could not be proven (exit code 3). Names are cleaned, so
no character stands in the file that XML 1.0 does not allow.
"""

from collections.abc import Iterator, Sequence
from typing import TextIO
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

from qkspec.clean import clean
from qkspec.gate import Failure, Outcome
from qkspec.reports.crossings import crossings

MAX_CASES = 1000  # of a kind; the rest is counted in one more case


def write(outcome: Outcome, out: TextIO) -> None:
    """Write junit.xml to an open text file."""
    cases = list(_cases(outcome))
    failures = sum(case.find("failure") is not None for case in cases)
    errors = sum(case.find("error") is not None for case in cases)
    skipped = sum(case.find("skipped") is not None for case in cases)
    counts = {"tests": str(len(cases)), "failures": str(failures), "errors": str(errors)}
    root = Element("testsuites", {"name": "qkspec gate", **counts})
    suite = SubElement(root, "testsuite", {"name": "qkspec gate", **counts, "skipped": str(skipped), "time": "0"})
    suite.extend(cases)
    indent(root)
    out.write('<?xml version="1.0" encoding="utf-8"?>\n')
    ElementTree(root).write(out, encoding="unicode")
    out.write("\n")


def _cases(outcome: Outcome) -> Iterator[Element]:
    yield from _some(outcome.failures, "failure", "thresholds crossed")
    yield from _some(outcome.unmeasured, "error", "values not measured")
    for where, reason in list(outcome.skipped.items())[:MAX_CASES]:
        yield _case("input", where, "skipped" if outcome.allow_skipped else "error", reason)
    if len(outcome.skipped) > MAX_CASES:
        more = f"{len(outcome.skipped) - MAX_CASES} more inputs skipped"
        yield _case("input", "the rest", "skipped" if outcome.allow_skipped else "error", more)
    for warning in outcome.warnings if outcome.strict else ():
        yield _case("assumption", warning, "error", "--strict does not pass what had to be assumed")
    if outcome.heads:
        yield _case("gate", f"{outcome.heads} head readings were held to the policy")
    else:
        yield _case(
            "gate", "head readings held to the policy", "error", "there was none, and nothing checked is no pass"
        )


def _some(found: Sequence[Failure], kind: str, what: str) -> Iterator[Element]:
    together = crossings(found)
    for crossing in together[:MAX_CASES]:
        yield _case(crossing.rule, crossing.where, kind, crossing.message)
    if len(together) > MAX_CASES:
        yield _case("gate", f"more {what}", kind, f"{len(together) - MAX_CASES} more heads with {what}")


def _case(group: str, name: str, kind: str = "", message: str = "") -> Element:
    case = Element("testcase", {"classname": f"qkspec.{clean(group)}", "name": clean(name), "time": "0"})
    if kind:
        text = clean(message, 1000)
        problem = SubElement(
            case, kind, {"message": text} if kind == "skipped" else {"type": clean(group), "message": text}
        )
        problem.text = text
    return case
