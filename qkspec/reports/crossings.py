"""What a gate found, put together by rule and head: a lost run crosses one threshold at hundreds of checkpoints."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qkspec.gate import Failure, Outcome
from qkspec.theorem import GRAVITY

SCHEMA = 1
NONE_HELD = "no head was held to the policy, and nothing checked is no pass"
_GRAVITY = {verdict.value: place for place, verdict in enumerate(GRAVITY)}


@dataclass(frozen=True)
class Crossing:
    """All failures of one head (or run) by one rule, in the order of the checkpoints."""

    failures: tuple[Failure, ...]

    @property
    def rule(self) -> str:
        """The option and the metric."""
        return self.failures[0].rule

    @property
    def where(self) -> str:
        """The head, with its checkpoint where there is one failure only."""
        first = self.failures[0]
        return first.head if first.head and len(self.failures) > 1 else first.where

    @property
    def worst(self) -> Failure:
        """The failure that lies farthest beyond its limit, the first of several; of verdicts the gravest."""
        return max(self.failures, key=_beyond)

    @property
    def span(self) -> str:
        """At how many checkpoints, from which on, and where it was worst: "" where there is one only."""
        if len(self.failures) == 1:
            return ""
        first, worst = self.failures[0].at, self.worst
        text = f"{len(self.failures)} checkpoints, first {first}"
        return f"{text}, worst {worst.at}" if isinstance(worst.value, float) and worst.at != first else text

    @property
    def message(self) -> str:
        """One sentence for a log: where, rule, worst value, limit, and over which checkpoints."""
        told = self.worst.told
        return f"{self.where}: {told}; {self.span}" if self.span else f"{self.where}: {told}"


def crossings(found: Sequence[Failure]) -> tuple[Crossing, ...]:
    """Put failures together by rule and head; rules, and heads within a rule, in the order of their first failure."""
    rules: dict[str, dict[str, list[Failure]]] = {}
    for failure in found:
        rules.setdefault(failure.rule, {}).setdefault(failure.head or failure.where, []).append(failure)
    return tuple(Crossing(tuple(own)) for heads in rules.values() for own in heads.values())


def counted(outcome: Outcome) -> str:
    """Return how much a gate found, in words; "" where there is nothing to say."""
    crossed, missing = (
        len({failure.head or failure.where for failure in found}) for found in (outcome.failures, outcome.unmeasured)
    )
    said = [
        f"{crossed} crossed a threshold ({_values(outcome.failures)})" if crossed else "",
        f"{missing} could not be measured ({_values(outcome.unmeasured)})" if missing else "",
        "1 input was skipped" if len(outcome.skipped) == 1 else "",
        f"{len(outcome.skipped)} inputs were skipped" if len(outcome.skipped) > 1 else "",
    ]
    return ", ".join(part for part in said if part)


def _values(found: Sequence[Failure]) -> str:
    return "1 value" if len(found) == 1 else f"{len(found)} values"


def document(outcome: Outcome) -> dict[str, Any]:
    """Return all that a gate found as plain values, every checkpoint of every head."""
    return {
        "schema": SCHEMA,
        "result": WORDS[outcome.exit_code],
        "exit_code": outcome.exit_code,
        "head_readings": outcome.heads,
        "crossed": [_plain(crossing) for crossing in crossings(outcome.failures)],
        "unmeasured": [_plain(crossing) for crossing in crossings(outcome.unmeasured)],
        "skipped": dict(outcome.skipped),
        "assumed": list(outcome.warnings),
    }


WORDS = {0: "passed", 1: "failed", 3: "not proven"}  # of exit codes


def _plain(crossing: Crossing) -> dict[str, Any]:
    first, worst = crossing.failures[0], crossing.worst
    return {
        "where": first.head or first.where,
        "rule": crossing.rule,
        "worst": _finite(worst.value),
        "limit": worst.limit,
        "checkpoints": [
            {"at": f.at, "where": f.where, "value": _finite(f.value), "limit": f.limit} for f in crossing.failures
        ],
    }


def _finite(value: float | str | None) -> float | str | None:
    """Return a value as JSON has it: an overflow is told as text, since no number of JSON is infinite."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _beyond(failure: Failure) -> tuple[bool, float]:
    """Return a key that is larger for a graver failure of one rule: NaN and Inf weights cross every numeric one."""
    if isinstance(failure.value, str):
        return True, -_GRAVITY.get(failure.value, len(_GRAVITY))
    if isinstance(failure.value, float) and isinstance(failure.limit, float):
        return False, abs(failure.value - failure.limit)
    return False, 0.0
