"""``qkspec explain``: a metric, verdict, flag, threshold or option: what it is and where it comes from."""

from functools import cache
from typing import Annotated, Any

import typer

from qkspec.cli.lines import show


def explain(
    term: Annotated[
        str, typer.Argument(help="A metric, verdict, flag, limit or option of any command; nothing lists them.")
    ] = "",
) -> None:
    """Say what a metric, a verdict, a flag, a threshold or an option is, and where it comes from."""
    from qkspec.errors import UsageError

    entries = terms()
    key = term.strip().lower().lstrip("-").replace("-", "_").replace(" ", "_")
    key = ALIASES.get(key, key)
    if not key:
        hang = max(len(name) for name in entries) + 2
        show([f"{name:{hang}}{text.splitlines()[0]}" for name, text in entries.items()], hang)
    elif key in entries:
        show(f"{key}: {entries[key]}".splitlines(), 4)
    else:
        from difflib import get_close_matches

        near = list(dict.fromkeys(ALIASES.get(word, word) for word in get_close_matches(key, [*entries, *ALIASES])))
        raise UsageError(f"no term {term!r}; " + (f"near: {', '.join(near)}" if near else "qkspec explain lists them"))


ALIASES = {
    "kappa": "freezing_ratio", "κ": "freezing_ratio", "σ1": "sigma1", "sigma_1": "sigma1", "rho": "freezing_ratio",
    "sec": "sec_star", "verdict": "verdicts", "limit": "limits", "threshold": "limits", "thresholds": "limits",
    "policy": "gate", "rule_1": "rule1", "adamw²": "adamw2", "entropy": "predicted_entropy", "run": "run_verdict",
    "lost": "run_verdict", "warned": "run_verdict", "sound": "run_verdict",
    "certain": "limit_certain", "suspect": "limit_certain", "frozen": "limit_certain",
    "learning_rate": "lr", "batch_size": "batch", "d_model": "width", "max_steps": "steps", "τ": "tau",
}  # fmt: skip


def terms() -> dict[str, str]:
    """Return every term with its explanation, from the registries that compute it and the options that take it."""
    entries = {**_metrics(), **_verdicts(), **_over_time(), **_limits(), **_gate(), **_ideas()}
    for name, lines in _options().items():
        known = entries.get(name)
        entries[name] = "\n  ".join(lines if known is None else [known, *lines])
    return entries


def _metrics() -> dict[str, str]:
    from qkspec.metrics import METRICS, sec_metrics

    entries = {
        m.name: m.meaning + (f" ({m.source})" if m.source else "") for m in (*METRICS, *sec_metrics((1, 2, 4, 8)))
    }
    more = {
        "entropy": "mean row entropy / ln(row length)",
        "rank": "effective rank / tokens",
        "diagonal": "mean mass on the diagonal",
        "columns": "distinct arg-max columns / tokens",
    }
    more["logit_std"] = "standard deviation of the logits"
    kinds = {
        "embedded": "with embedded random tokens for inputs (--embeddings)",
        "random": "with the model run on random tokens (--text random)",
        "measured": "with the model run on a text (--text FILE), or with given inputs (--activations)",
    }
    entries |= {f"{kind}_{name}": f"{what} {how}" for kind, how in kinds.items() for name, what in more.items()}
    entries["sigma1_at"] = "σ_1 of W_q'R_Δ W_k, which joins a query to a key Δ tokens before it (rotary, --offsets)"
    entries["sec_star_at"] = "SEC(d_q, s*) of W_q'R_Δ W_k (rotary, --offsets)"
    return entries


def _verdicts() -> dict[str, str]:
    from qkspec.theorem import Verdict

    entries = {verdict.value.replace(" ", "_"): f"verdict of a head: {verdict.meaning}" for verdict in Verdict}
    order = ", ".join(verdict.value for verdict in Verdict)
    return {"verdicts": f"the classes of a head, gravest first: {order}", **entries}


def _over_time() -> dict[str, str]:
    from qkspec import courses, curve
    from qkspec.trajectory import ALARM, LOST, STATES, SURGE, WARNED

    return {
        "run_verdict": f"of a run's last checkpoint: {', '.join(STATES)}\n"
        "  broken: some head holds NaN or Inf\n"
        f"  lost: at least {LOST:.0%} of the judged heads are concentrated and frozen (κ at limit certain or above;"
        " under QK-norm only by a real map)\n"
        f"  warned: at least {WARNED:.0%} of them are concentrated and large, or {ALARM:.0%} malignant, one at least;"
        f" or {WARNED:.0%} of all heads are dead\n"
        "  sound: neither: W_q'W_k speaks for no collapse. A run may be lost otherwise: a post-LN model whose heads"
        " never began to work keeps them small, and its loss or even maps (--text) tell\n"
        "  unjudged: no head could be judged, as in a model of zeros",
        "surging": f"flag: ln σ_1 grew by {SURGE} a step or more between two checkpoints; only checkpoints within some"
        " 50 steps of each other can show it",
        "surge": f"of a run: the first step by which the median head's ln σ_1 had grown by {SURGE} a step",
        "stagnant": f"flag: the effective rank has stayed within {courses.STILL:.0%} of its last value for at least a"
        " third of the run: the spectrum keeps its shape, as where the gradient has died",
        "onset": "flag: the step at which the growth of ln σ_1 changed for the worse: one break in a line of two"
        " pieces, if it beats a straight line by the Bayesian information criterion and σ_1 grew by half after it",
        "onset_of_κ": "flag: the same change of the growth of ln κ, which the gains of the norm drive as well",
        "crossing": "flag: the first step at which a condition of Theorem 1 held",
        "forecast": "the step at which κ reaches its limit if the exponential through the newest"
        f" {courses.FORECAST_POINTS} checkpoints goes on, with Fieller's {courses.CONFIDENCE:.0%} interval by their"
        f" scatter; only while the newest interval keeps {courses.FRESH:.0%} of that growth, and no further ahead than"
        f" {courses.REACH:.0%} of those checkpoints' span. On small runs held out, 84 % of the crossings told came, and"
        " the interval held 58 %: growth bends, which no scatter shows",
        "trouble": f"when a loss went wrong for good: not finite, rose by {curve.ROSE:.0%} above its best, or parted by"
        f" {curve.PARTED:.0%} from the best run of the report (each beyond {curve.NOISE:g} standard errors)",
        "lead": "steps from an alarm (surge, crossing, first malignant head) to the loss's trouble; negative: it came"
        " after",
    }


def _limits() -> dict[str, str]:
    from dataclasses import fields

    from qkspec.theorem import Limits

    documented = _documented(Limits.__doc__)
    entries = {}
    for field in fields(Limits):
        entries[f"limit_{field.name}"] = (
            f"limit {field.name} (default {field.default}): {documented.get(field.name, '')}"
        )
    whole = "\n".join("  " + text.removeprefix("limit ") for text in entries.values())
    return {"limits": "the thresholds of the verdicts, set by --limit NAME=VALUE\n" + whole, **entries}


def _gate() -> dict[str, str]:
    from dataclasses import fields

    from qkspec.policy import Policy

    documented = _documented(Policy.__doc__)
    entries = {field.name: f"setting of gate: {documented.get(field.name, '')}" for field in fields(Policy)}
    entries["layer"] += '\n  [[gate.layer]]\n  layers = "0-3"          # or block = "decoder.cross"\n'
    entries["layer"] += "  max_sigma1 = 500.0      # false drops a rule there; fail_on = [] forbids no verdict there"
    names = ", ".join(field.name for field in fields(Policy))
    return {"gate": f"thresholds held against a report; settings: {names}", **entries}


def _ideas() -> dict[str, str]:
    return {
        "theorem_1": "malignant entropy collapse: if the energy of W_q'W_k is concentrated in a few directions and its"
        " singular values are large, the attention map becomes sparse yet low-rank",
        "rule1": "σ_1(W_t) ≤ (1 + τ) σ_1(W_{t-1}): AdamW² keeps it by cutting α to τ σ_1(W)/σ_1(∇W); qkspec audit holds"
        " the changes between checkpoints against ((1 + τ)^n - 1) σ_1(W)",
        "adamw2": "AdamW with Rule 1 (Algorithm 1 of the paper); qkspec train --optimizer adamw2 --tau 0.004",
        "specialists": "heads of sound models that may look like trouble by weights alone: one that looks at the token"
        " before (with rotary position one direction of W_q'W_k does: concentrated, its real map sparse and of high"
        " rank, so sharp), one that parks its attention on the first token or a delimiter (its real map sparse and of"
        " low rank; malignant only if its weights are concentrated and large as well). --text measures their maps",
        "context": "tokens T in a full attention row, which set √(2 ln T); from the config, or --context",
        "baseline_bands": "of a healthy run: for each layer and step the range of its heads (5th to 95th percentile"
        " from 20 heads), beyond which --margin is a factor on σ_1 and κ and a tenth of it on the predicted entropy",
    }


@cache
def _options() -> dict[str, list[str]]:
    """Return every option of every command with what its command says of it, once for those that say the same."""
    from typer.main import get_command

    from qkspec.cli import COMMANDS, application

    program: Any = get_command(application())
    found: dict[str, dict[str, list[str]]] = {}
    for command in COMMANDS:
        for param in program.commands[command].params:
            if param.param_type_name == "option":
                name = max(param.opts, key=len).lstrip("-").replace("-", "_")
                found.setdefault(ALIASES.get(name, name), {}).setdefault(_said(param), []).append(command)
    return {
        name: [f"option of {', '.join(commands)}: {said}" for said, commands in texts.items()]
        for name, texts in found.items()
    }


def _said(param: Any) -> str:
    """Return an option's help, with its default where that is a value and not told already."""
    text = str(param.help).rstrip()
    plain = param.default is None or isinstance(param.default, bool) or param.default == ""
    return text if plain or "efault" in text or not param.show_default else f"{text} [default: {param.default}]"


def _documented(text: str | None) -> dict[str, str]:
    """Return the Args of a class's docstring, each on one line."""
    import re

    found: dict[str, str] = {}
    name = ""
    for line in (text or "").partition("Args:")[2].splitlines():
        start = re.match(r"^ {8}(\w+): (.+)$", line)
        if start:
            name = start[1]
            found[name] = start[2].strip()
        elif name and line.startswith(" " * 12):
            found[name] += " " + line.strip()
    return found
