"""report.sarif of a gate, SARIF 2.1.0: a result for each rule that a head crossed, what was not measured as warnings.

A result lies in the checkpoint at which its head first crossed the rule, and keeps its identity from run to run.
"""

import json
import re
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import quote

from qkspec.analysis import Report
from qkspec.clean import clean
from qkspec.gate import Failure, Outcome
from qkspec.reports.crossings import Crossing, crossings

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MAX_RESULTS = 5000  # code-scanning services refuse files with more than some thousands

Json = dict[str, Any]


def write(report: Report, outcome: Outcome, out: TextIO) -> None:
    """Write report.sarif to an open text file.

    Args:
        report: what was held to the policy; says in which file a head lies.
        outcome: what the gate found.
        out: an open text file.
    """
    found = [
        *((c, "error") for c in crossings(outcome.failures)),
        *((c, "warning") for c in crossings(outcome.unmeasured)),
    ]
    rules = list(dict.fromkeys(rule_id(crossing) for crossing, _ in found))
    paths = {(fact.run, fact.name): fact.path for fact in report.checkpoints}
    run: Json = {
        "tool": {
            "driver": {
                "name": "qkspec",
                "version": clean(report.provenance.get("qkspec", "")),
                "semanticVersion": clean(report.provenance.get("qkspec", "")),
                "rules": [{"id": rule, "shortDescription": {"text": f"qkspec gate: {rule}"}} for rule in rules],
            }
        },
        "invocations": [
            {"executionSuccessful": outcome.exit_code != 3, "toolExecutionNotifications": list(_notes(outcome))}
        ],
        "columnKind": "unicodeCodePoints",
        "results": [
            _result(crossing, level, rules.index(rule_id(crossing)), _path(report, crossing.failures[0], paths))
            for crossing, level in found[:MAX_RESULTS]
        ],
    }
    document = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    json.dump(document, out, indent=1, allow_nan=False, ensure_ascii=True)
    out.write("\n")


def rule_id(crossing: Crossing) -> str:
    """Return a rule's name without blanks: "--max-sec sec_4" is "max-sec/sec_4"."""
    return "/".join(re.findall(r"[\w.\-]+", clean(crossing.rule).removeprefix("--"))) or "rule"


def _result(crossing: Crossing, level: str, index: int, path: str) -> Json:
    where = clean(crossing.where)
    first = crossing.failures[0]
    return {
        "ruleId": rule_id(crossing),
        "ruleIndex": index,
        "level": level,
        "message": {"text": clean(crossing.message, 1000)},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": uri(path)}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": where, "kind": "member"}],
            }
        ],
        "partialFingerprints": {
            "qkspec/v1": sha256(f"{first.head or first.where}\0{first.rule}".encode("utf-8", "replace")).hexdigest()
        },
    }


def _path(report: Report, failure: Failure, paths: dict[tuple[str, str], str]) -> str:
    """Return the file that a failure is about: its row's checkpoint, or a run's last one."""
    readings = report.readings
    if failure.row >= 0:
        return paths.get((readings["run"][failure.row], readings["checkpoint"][failure.row]), "checkpoint")
    own = [path for (run, _), path in paths.items() if run == failure.where]
    return own[-1] if own else "checkpoint"


def uri(path: str) -> str:
    """Return a path as a URI: relative where it lies under the working directory, as code-scanning services expect."""
    if "://" in path:
        return quote(path, safe=":/?&=@%+,;~#!$'()*[]")
    full = Path(path).absolute()
    inside = full.is_relative_to(Path.cwd())
    name = full.relative_to(Path.cwd()).as_posix() if inside else full.as_posix()
    return ("" if inside else "file://") + quote(name.encode("utf-8", "surrogateescape"), safe="/")


def _notes(outcome: Outcome) -> Iterator[Json]:
    level = "warning" if outcome.allow_skipped else "error"
    for where, reason in list(outcome.skipped.items())[:MAX_RESULTS]:
        yield {"level": level, "message": {"text": f"skipped {clean(where)}: {clean(reason, 1000)}"}}
    for warning in outcome.warnings:
        yield {"level": "error" if outcome.strict else "note", "message": {"text": clean(warning, 1000)}}
    found = len(crossings(outcome.failures)) + len(crossings(outcome.unmeasured))
    if found > MAX_RESULTS:
        yield {"level": "warning", "message": {"text": f"{found - MAX_RESULTS} more results are left out"}}
    if not outcome.heads:
        yield {"level": "error", "message": {"text": "no head was held to the policy"}}
