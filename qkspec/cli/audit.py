"""``qkspec audit``: what AdamW² would have cut, by consecutive checkpoints; the terms of equation 1 over steps."""

import json
import math
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkspec.clean import clean
from qkspec.cli.options import ENGINE, MODEL, Flags, Lines, NoProgress, Quiet, takes

if TYPE_CHECKING:
    from qkspec.audit import Audit
    from qkspec.terms import Block


class Terms(StrEnum):
    """What ``--terms`` takes."""

    QK = "qk"
    ALL = "all"


@takes("revisions", *MODEL, *ENGINE)
def audit(
    path: Annotated[str, typer.Argument(help="A run: a folder of checkpoints.", metavar="RUN", show_default=False)],
    *,
    flags: Flags,
    tau: Annotated[
        float, typer.Option("--tau", help="Of Rule 1: largest relative change of a step.", min=1e-12)
    ] = 0.004,
    terms: Annotated[
        Terms, typer.Option("--terms", help="all: the weight terms of equation 1 at every checkpoint, too.")
    ] = Terms.QK,
    output_format: Annotated[Lines, typer.Option("--format", help="Of what goes to stdout.")] = Lines.TEXT,
    quiet: Quiet = False,
    no_progress: NoProgress = False,
) -> None:
    """Hold the changes of W_q and W_k between checkpoints against Rule 1: would AdamW² at τ have cut these steps?"""
    from qkspec.audit import Audit, follow
    from qkspec.checkpoints.sequence import find_runs
    from qkspec.cli.progress import barred, warn
    from qkspec.cli.settings import load_file, settings
    from qkspec.errors import UsageError

    runs = find_runs([path], revisions=flags.revisions or "")
    if len(runs) != 1:
        raise UsageError(f"{path}: holds {len(runs)} runs; name one of their folders")
    run, everything = runs[0], terms is Terms.ALL
    total = len(run.sources) - 1 + everything * len(run.sources)
    measured = follow(run, tau, settings(flags, *load_file()), terms=everything)
    found = Audit.of(run, tau, measured if quiet or no_progress else barred(measured, total))
    for name, reason in found.skipped if not quiet else ():
        warn(f"{name} skipped: {reason}")
    if output_format is Lines.JSON:
        print(json.dumps(document(found), indent=1, allow_nan=False))  # noqa: T201 - the command's result
        return
    for line in lines(found):
        print(clean(line, 500))  # noqa: T201 - the command's result


def lines(found: "Audit") -> list[str]:
    """Return an audit as lines of text."""
    from qkspec.audit import allowed, summary

    rows = summary(found)
    out = [f"{found.run}: changes of W_q and W_k against Rule 1 at tau {found.tau:g}", ""]
    out.append(f"{'steps':>16} {'cut':>9} {'largest change':>15} {'allowed':>9} {'tau that cuts none':>19}")
    for before, after, cut, of, ratio, tau in rows:
        limit = allowed(found.tau, after - before)
        out.append(f"{f'{before} to {after}':>16} {f'{cut} of {of}':>9} {ratio:>15.4g} {limit:>9.4g} {tau:>19.4g}")
    first = found.first_bound()
    if first is None:
        out += ["", f"no change proves a step that AdamW2 at tau {found.tau:g} would have cut"]
    else:
        out += ["", f"AdamW2 at tau {found.tau:g} would have cut W_{first.projection} of {first.module} first, between"]
        out[-1] += f" steps {first.before} and {first.after}: it changed by {first.ratio:.3g} of its norm, where"
        out[-1] += f" {first.limit:.3g} are allowed"
    out += ["", *_whose(found)]
    return out + _terms(found)


def document(found: "Audit") -> dict[str, Any]:
    """Return an audit as plain values; None stands for a limit that is infinite, and for what is not known."""
    from dataclasses import asdict

    from qkspec.readings import plain

    increments = [{k: _plain(v) for k, v in asdict(i).items()} | {"bound": i.bound} for i in found.increments]
    changes = [
        {
            "module": c.module, "before": c.before, "after": c.after,
            **{name: [plain(x) for x in getattr(c, name)] for name in ("whole", "by_q", "by_k", "by_both", "sigma1")},
        }
        for c in found.changes
    ]  # fmt: skip
    terms = [{"step": step, "blocks": [_block(block) for block in own]} for step, own in found.terms]
    skipped = dict(found.skipped)
    return {
        "schema": 1, "run": found.run, "tau": _plain(found.tau), "increments": increments, "changes": changes,
        "terms": terms, "skipped": skipped,
    }  # fmt: skip


def _block(block: "Block") -> dict[str, Any]:
    values = {term: _plain(value) for term, value in block.values.items()}
    return {"module": block.module, "layer": block.layer, **values}


def _whose(found: "Audit") -> list[str]:
    """Say whose change moved M most, over the whole run."""
    import numpy as np

    by_q = np.concatenate([c.by_q for c in found.changes])
    by_k = np.concatenate([c.by_k for c in found.changes])
    known = np.isfinite(by_q) & np.isfinite(by_k)
    if not known.any():
        return ["no head's W_q'W_k could be followed"]
    share = float(np.median(by_q[known] ** 2 / np.maximum(by_q[known] ** 2 + by_k[known] ** 2, 1e-300)))
    return [
        f"of the change of W_q'W_k, W_q's own made {share:.0%} and W_k's {1 - share:.0%} (squares, median over heads)"
    ]


def _terms(found: "Audit") -> list[str]:
    if not found.terms:
        return []
    from qkspec.terms import TERMS

    out = []
    width = 10
    for layer in dict.fromkeys(block.module for _, own in found.terms for block in own):
        rows = [(step, next((b for b in own if b.module == layer), None)) for step, own in found.terms]
        present = [term for term in TERMS if any(block and term in block.values for _, block in rows)]
        out += ["", f"{layer}: spectral norms of the weights, l2 norms of gamma and beta (equation 1)"]
        out.append(f"{'step':>8}" + "".join(f"{term:>{width}}" for term in present))
        for step, block in rows:
            cells = "".join(f"{block.values.get(term, math.nan):>{width}.4g}" for term in present) if block else ""
            out.append(f"{step:>8}{cells}")
    return out


def _plain(value: object) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
