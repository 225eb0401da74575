"""What report.html shows, thinned for display and packed: the data itself stays whole in heads.csv."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qkspec.baseline import SHARES, SIZES, Bands
from qkspec.clean import clean
from qkspec.energy import random_init, sec
from qkspec.judging import Story
from qkspec.metrics import METRICS
from qkspec.reports.bands import band_of
from qkspec.reports.losses import thinned
from qkspec.reports.packing import base64, log_spaced, pack, spaced
from qkspec.reports.palette import LOOKS
from qkspec.reports.view import QUIET, RunView, evidence
from qkspec.theorem import GRAVITY, KINDS, Limits, Verdict, confidence

F64 = NDArray[np.float64]
Json = dict[str, Any]
Modules = Sequence[tuple[str, int, str, NDArray[np.int64]]]  # as of RunView.modules

MAX_RUNS = 12  # runs drawn in the page; its summary names all of them
CELLS = 120_000  # checkpoints x heads of all runs drawn: about 480 kB a metric
MOMENTS = 150  # checkpoints a run
SPECTRAL = 400_000  # singular values of all runs drawn
SPECTRAL_MOMENTS = 6
SPECTRAL_SIZES = 48
FLAGGED = 4096  # heads of a run up to which what happened to each is told

LOGARITHMIC = ("freezing_ratio", "sigma1")

SHOWN = (
    ("freezing_ratio", "freezing ratio κ"),
    ("sigma1", "σ1 of W_q'W_k"),
    ("sec_star", "SEC(d_q, s*)"),
    ("effective_rank", "effective rank of σ²"),
    ("stable_rank", "stable rank"),
    *(
        (f"{kind}_{index}", f"{kind} {label}")
        for kind in KINDS
        for index, label in (
            ("entropy", "entropy / ln T"),
            ("rank", "map rank / T"),
            ("diagonal", "diagonal mass"),
            ("columns", "distinct columns / T"),
        )
    ),
    ("logit_bound", "bound on |logit| under QK-norm"),
    ("positive_fraction", "positive eigenvalues"),
)


def page_data(limits: Limits, runs: Sequence[RunView], *, spectra: bool = True) -> Json:
    """Return the data of the page as plain values.

    Args:
        limits: that the runs were judged by.
        runs: the views to draw, at most MAX_RUNS, of one report or of several.
        spectra: whether singular values and predicted maps are shown.
    """
    meanings = {metric.name: metric.meaning for metric in METRICS}
    tables = {id(view.report): view.report.readings for view in runs}.values()
    names = [(name, label) for name, label in SHOWN if any(np.isfinite(t.metric(name)).any() for t in tables)]
    flags: dict[str, int] = {}
    return {
        "verdicts": [
            {
                "name": verdict.value,
                "meaning": verdict.meaning,
                "letter": LOOKS[verdict].letter,
                "light": LOOKS[verdict].light,
                "dark": LOOKS[verdict].dark,
                "quiet": verdict in QUIET,
            }
            for verdict in GRAVITY
        ],
        "metrics": [{"name": name, "label": label, "meaning": meanings.get(name, label)} for name, label in names],
        "kinds": [kind for kind in reversed(KINDS) if f"{kind}_entropy" in dict(names)],
        "limits": {
            "large": limits.freezing,
            "frozen": limits.certain,
            "sparse": dict(zip(KINDS, limits.sparse, strict=True)),
        },
        "runs": [
            _run(view, [name for name, _ in names], len(runs), flags) | _further(view, len(runs), spectra=spectra)
            for view in runs
        ],
        "flags": list(flags),
    }


def _run(view: RunView, names: Sequence[str], share: int, flags: dict[str, int]) -> Json:
    modules = view.modules()
    order = np.concatenate([columns for *_, columns in modules])
    moments = _moments(view, share)
    codes = view.codes()[:, order]
    malignant = codes == GRAVITY.index(Verdict.MALIGNANT)
    first = np.where(malignant.any(axis=0), view.steps[malignant.argmax(axis=0)], -1)
    return {
        "name": clean(view.name),
        "state": view.state.verdict,
        "stepsKnown": view.has_steps,
        "steps": view.steps[moments].tolist(),
        "labels": [clean(view.at(i)) for i in moments],
        "places": moments,
        "modules": _modules(view, modules),
        "head": [int(view.table.heads[column][1]) for column in order],
        "values": {name: pack(view.metric(name)[moments][:, order], log=name in LOGARITHMIC) for name in names},
        "verdict": base64(np.where(codes[moments] < 0, 255, codes[moments]).astype(np.uint8)),
        "sure": _sure(view, view.grid[moments][:, order]),
        "turned": first.tolist(),
        "flags": _flags(view, order, flags),
        "loss": _loss(view.story),
    }


def _sure(view: RunView, rows: NDArray[np.int64]) -> Json | None:
    """Pack how sure each malignant verdict is: a place in "words", 255 elsewhere; None where no head is malignant."""
    shown = np.unique(rows[rows >= 0])
    mask = np.zeros(len(view.report.readings), dtype=bool)
    mask[shown] = True
    found = confidence(view.report.readings.where(mask), view.report.limits, view.report.verdicts[shown])
    words = [word for word in dict.fromkeys(found.tolist()) if word]
    if not words:
        return None
    codes = np.array([words.index(word) if word else 255 for word in found], dtype=np.uint8)
    return {"words": words, "data": base64(np.where(rows < 0, np.uint8(255), codes[np.searchsorted(shown, rows)]))}


def _further(view: RunView, share: int, *, spectra: bool) -> Json:
    modules = view.modules()
    return {
        "spectra": _spectra(view, modules, share) if spectra else {"labels": [], "modules": [None] * len(modules)},
        "bands": _bands(view, modules, _moments(view, share)),
        "maps": _maps(view, modules) if spectra else None,
    }


def _moments(view: RunView, share: int) -> list[int]:
    """Choose the checkpoints of one of ``share`` runs shown: evenly spaced, and the one where the first head turned."""
    chosen = set(spaced(len(view.grid), min(MOMENTS, max(CELLS // share // len(view.table.heads), 2))))
    row = view.first_turn()
    if row is not None:
        chosen.add(view.index_of(row))
    return sorted(chosen)


def _modules(view: RunView, modules: Modules) -> list[Json]:
    rows = [int(view.grid[:, columns[0]].max()) for *_, columns in modules]
    conditions = evidence(view.report, rows)
    several = len({block for block, *_ in modules}) > 1
    out = []
    for (block, layer, module, columns), row in zip(modules, rows, strict=True):
        out.append(
            {
                "label": f"{clean(block, 40)} {layer}" if several else str(layer),
                "name": clean(module),
                "heads": len(columns),
                "conditions": [[c.name, c.metric, c.sign, c.limit] for c in conditions[row]],
            }
        )
    return out


def _spectra(view: RunView, modules: Modules, share: int) -> Json:
    """Pack singular values and SEC at a few moments and sizes: for each module (moments, heads, sizes)."""
    budget = SPECTRAL // share // max(len(view.table.heads), 1)
    moments = spaced(len(view.grid), min(SPECTRAL_MOMENTS, max(budget // 8, 2)))
    most = min(SPECTRAL_SIZES, max(budget // len(moments), 4))
    out: list[Json | None] = []
    for *_, module, columns in modules:
        found = [view.report.spectra.get(f"{view.name}/{view.table.checkpoints[i]}/{module}") for i in moments]
        d_q = next((sigma.shape[1] for sigma in reversed(found) if sigma is not None), None)
        if d_q is None:
            out.append(None)
            continue
        sizes = log_spaced(d_q, most)
        heads = [int(view.table.heads[column][1]) for column in columns]
        whole = np.stack([_of_heads(sigma, heads, d_q) for sigma in found])
        shares = np.stack([sec(whole.reshape(-1, d_q), s + 1) for s in sizes], axis=-1)
        row = int(view.grid[:, columns[0]].max())
        out.append(
            {
                "s": [s + 1 for s in sizes],
                "sigma": pack(whole[:, :, sizes], log=True),
                "sec": pack(shares),
                "band": _band(int(view.report.readings["d_model"][row]), d_q, sizes),
            }
        )
    return {"labels": [clean(view.at(i)) for i in moments], "modules": out}


def _maps(view: RunView, modules: Modules) -> Json:
    """Pack the pictures of maps that the report has of a run, one after the other.

    Returns:
        "kept" names each: [place of the checkpoint, place of the module, cells a side, errors of each head, kind], the
        errors (heads, 4) or null. "labels" names the checkpoints, "data" holds the bytes.
    """
    maps, kept, labels, parts = view.report.maps, [], {}, []
    for kind, pictures in (("predicted", maps.pictures), *maps.given.items()):
        for place, checkpoint in enumerate(view.table.checkpoints):
            for at, (*_, module, columns) in enumerate(modules):
                key = f"{view.name}/{checkpoint}/{module}"
                heads = [int(view.table.heads[column][1]) for column in columns]
                codes = pictures.get(key)
                if codes is None or max(heads) >= len(codes):
                    continue
                errors = maps.errors.get(key) if kind == "predicted" else None
                shown = None
                if errors is not None and np.isfinite(errors).all():
                    shown = [[float(f"{x:.2g}") for x in errors[:, head]] for head in heads]
                kept.append([place, at, codes.shape[1], shown, kind])
                labels[place] = clean(view.at(place))
                parts.append(codes[heads].ravel())
    data = base64(np.concatenate(parts)) if parts else ""
    return {"kept": kept, "labels": labels, "cell": maps.cell, "note": clean(maps.note), "data": data}


def _of_heads(sigma: F64 | None, heads: Sequence[int], d_q: int) -> F64:
    """Return the singular values of some heads, (heads, d_q); NaN where a checkpoint has no such head of that d_q."""
    out = np.full((len(heads), d_q), np.nan)
    if sigma is not None and sigma.shape[1] == d_q:
        places = [place for place, head in enumerate(heads) if head < len(sigma)]
        out[places] = sigma[[heads[place] for place in places]]
    return out


def _band(d_model: int, d_q: int, sizes: Sequence[int]) -> list[list[float]]:
    """Return the 5th and 95th percentile of random weights' SEC at a few sizes: [s, low, high] each."""
    chosen = sorted({sizes[i] + 1 for i in log_spaced(len(sizes), 9)})
    return [[s, *(round(x, 4) for x in random_init(d_model, d_model, d_q, s)[:2])] for s in chosen]


def _bands(view: RunView, modules: Modules, moments: Sequence[int]) -> Json | None:
    """Pack the bands of a baseline: for each metric (modules, steps), a layer that it lacks missing."""
    bands = view.report.bands
    if bands is None:
        return None
    out: Json = {}
    for metric in (*SIZES, *SHARES):
        found = [band_of(bands, metric, (block, layer)) for block, layer, *_ in modules]
        first, last = int(view.steps[0]), int(view.steps[-1])
        shown = [band and (band if view.has_steps else band.flat()).over(first, last) for band in found]
        steps = next((band.steps for band in shown if band is not None), None)
        if steps is None:
            continue
        few = spaced(len(steps), MOMENTS)
        none = np.full(len(steps), np.nan)
        parts = {
            side: np.stack([none if band is None else getattr(band, side) for band in shown])[:, few]
            for side in ("low", "high", "limit")
        }
        packed = {side: pack(values, log=metric in LOGARITHMIC) for side, values in parts.items()}
        out[metric] = {"steps": steps[few].tolist(), **packed}
    limits = _limits(view, bands, modules, moments)
    return {"name": clean(bands.name), "margin": bands.margin, "metrics": out, "limits": limits}


def _limits(view: RunView, bands: Bands, modules: Modules, moments: Sequence[int]) -> Json:
    """Pack the limit that the baseline sets to each layer's heads: for each metric (moments, modules)."""
    readings = view.report.readings
    rows = np.stack([view.grid[moments][:, columns].max(axis=1) for *_, columns in modules], axis=1)
    few = readings.where(np.isin(np.arange(len(readings)), rows))
    places = np.searchsorted(np.unique(rows[rows >= 0]), rows)
    out: Json = {}
    for metric in (*SIZES, *SHARES):
        values = np.append(bands.limits(few, metric), np.nan)
        out[metric] = {"above": metric in SIZES, "at": pack(np.where(rows < 0, np.nan, values[places]))}
    return out


def _flags(view: RunView, order: NDArray[np.int64], names: dict[str, int]) -> list[list[list[int]]]:
    """Return (place of the name in ``names``, step) of what happened to each head; new names are added to ``names``."""
    if view.story is None or not view.has_steps or len(order) > FLAGGED:
        return []
    places = {head: i for i, head in enumerate(view.story.heads)}
    return [
        [
            [names.setdefault(_said(flag.name), len(names)), round(flag.step)]
            for flag in view.story.courses.flags(places[view.table.heads[column]])
        ]
        for column in order
    ]


def _said(flag: str) -> str:
    """Return a flag's name as words that a step follows."""
    words = {"surging": "surges by", "stagnant": "keeps its spectrum from", "onset": "grows faster from"}
    return words.get(flag, f"{flag.removeprefix('crossing: ')} from")


def _loss(story: Story | None) -> Json | None:
    """Thin a run's loss curve; one that was never finite is not drawn."""
    if story is None or story.loss is None:
        return None
    steps, values = thinned(story.loss)
    if not len(steps):
        return None
    shown = [float(f"{value:.5g}") for value in values]
    return {"steps": steps.tolist(), "values": shown, "trouble": story.trouble.step if story.trouble else None}
