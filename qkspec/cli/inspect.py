"""``qkspec inspect``: what is in a checkpoint, from headers alone."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qkspec.clean import clean
from qkspec.cli.lines import show
from qkspec.cli.options import LayoutFile, NumHeads, NumKvHeads, Paths, Revisions

if TYPE_CHECKING:
    from qkspec.checkpoints.sequence import Source
    from qkspec.layouts.layout import Layout


def inspect(
    paths: Paths,
    *,
    num_heads: NumHeads = None,
    num_kv_heads: NumKvHeads = None,
    layout: LayoutFile = None,
    revisions: Revisions = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Say what is in there: format, family, layers, heads, dtypes, and what would be skipped and why.

    Of a checkpoint that matches no known layout, a layout file for --layout is drafted from its tensor names; --json
    also drafts one where only names were matched.
    """
    from qkspec.checkpoints.sequence import find_runs
    from qkspec.errors import InputError, QkspecError, UnknownLayoutError

    custom = _custom(layout)
    runs: list[dict[str, Any]] = []
    problems = 0
    for run in find_runs(paths, revisions=revisions or ""):
        entries: list[dict[str, Any]] = []
        for source in run.sources:
            try:
                entries.append(describe(source, custom, num_heads, num_kv_heads))
            except QkspecError as error:
                problems += 1
                known = {"checkpoint": source.name, "step": source.step, "problem": str(error)}
                unknown = isinstance(error, UnknownLayoutError) and custom is None
                entries.append({**known, **({"draft": _draft(source)} if unknown else {})})
        runs.append({"run": run.name, "checkpoints": entries, "skipped": {**run.skipped, **run.ignored}})
    first = runs[0]["checkpoints"][0] if runs and runs[0]["checkpoints"] else {}
    if problems and sum(len(run["checkpoints"]) for run in runs) == 1:
        if "draft" in first:
            print(first["draft"], end="")  # noqa: T201 - the command's result: a file for --layout, to be checked
        raise InputError(first["problem"])
    if as_json:
        print(json.dumps({"schema": 1, "runs": runs}, indent=1, allow_nan=False))  # noqa: T201 - the command's result
    else:
        for entry in runs:
            _print(entry)
    if runs and problems == sum(len(run["checkpoints"]) for run in runs):
        raise InputError(f"{paths[0]}: nothing here could be measured; the reasons stand above")


def describe(
    source: "Source", layout: "Layout | None", num_heads: int | None, num_kv_heads: int | None
) -> dict[str, Any]:
    """Return the facts of one checkpoint, from its headers.

    Raises:
        CheckpointError, LayoutError: it cannot be read, or its q and k cannot be told apart.
    """
    from qkspec.layouts.draft import draft
    from qkspec.layouts.find import plan

    checkpoint = source.open()
    try:
        found = plan(checkpoint, layout=layout, num_heads=num_heads, num_kv_heads=num_kv_heads)
        return {
            "checkpoint": checkpoint.name,
            "step": checkpoint.step,
            "path": checkpoint.path,
            "format": checkpoint.store.format,
            "tensors": len(checkpoint.store.names()),
            "family": found.family,
            "stored": sorted({module.stored for module in found.modules}),
            "modules": len(found.modules),
            "heads": sum(module.heads for module in found.modules),
            "qk_bytes": sum(module.nbytes for module in found.modules),
            "shapes": sorted({(m.block, m.heads, m.kv_heads, m.d_q, m.d_model) for m in found.modules}),
            "skipped": dict(found.skipped),
            "remarks": list(found.remarks),
            **({"draft": draft(checkpoint)} if all(module.row.unlisted for module in found.modules) else {}),
        }
    finally:
        checkpoint.store.close()


def _draft(source: "Source") -> str:
    from qkspec.layouts.draft import draft

    checkpoint = source.open()
    try:
        return draft(checkpoint)
    finally:
        checkpoint.store.close()


def _custom(path: str | None) -> "Layout | None":
    if path is None:
        return None
    from pathlib import Path

    from qkspec.layouts.custom import load

    return load(Path(path))


def _print(run: dict[str, Any]) -> None:
    _say(f"{run['run']}: {len(run['checkpoints'])} checkpoint{'s' if len(run['checkpoints']) != 1 else ''}")
    previous: dict[str, Any] = {}
    for entry in run["checkpoints"]:
        step = "" if entry["step"] is None else f" (step {entry['step']})"
        if "problem" in entry:
            _say(f"  {entry['checkpoint']}{step}: cannot be measured: {entry['problem']}")
            continue
        facts = {key: value for key, value in entry.items() if key not in ("checkpoint", "step", "path")}
        if facts == previous:
            _say(f"  {entry['checkpoint']}{step}: the same")
            continue
        previous = facts
        kind = f"{entry['format']}, {entry['tensors']} tensors, family {entry['family']}, {', '.join(entry['stored'])}"
        _say(f"  {entry['checkpoint']}{step}: {kind}")
        for block, heads, kv_heads, d_q, d_model in entry["shapes"]:
            keys = "" if heads == kv_heads else f" ({kv_heads} key heads)"
            _say(f"    {block}: {heads} heads{keys} of width {d_q} on d = {d_model}")
        _say(f"    {entry['modules']} modules, {entry['heads']} heads, {entry['qk_bytes'] / 1e6:.1f} MB of Q and K")
        for remark in entry["remarks"]:
            _say(f"    note: {remark}")
        if "draft" in entry:
            _say("    note: norms and scale are not known; --json drafts a layout file for --layout that can tell them")
        for name, reason in entry["skipped"].items():
            _say(f"    skipped {name}: {reason}")
    for name, reason in run["skipped"].items():
        _say(f"  skipped {name}: {reason}")


def _say(line: str) -> None:
    show([line[: len(line) - len(line.lstrip())] + clean(line.lstrip(), 1000)])
