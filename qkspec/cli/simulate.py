"""``qkspec simulate``: the three attention modes of the paper, their maps, and what each index says of them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qkspec.cli.lines import columns, show
from qkspec.cli.options import Lines

if TYPE_CHECKING:
    from qkspec.simulate import Mode

ACROSS = 24  # characters of a map in a terminal
SHOWN = (
    "sigma1", "effective_rank", "sec_4", "trace", "logit_std", "freezing_ratio", "mean_diagonal", "predicted_entropy",
    "predicted_rank", "predicted_diagonal", "predicted_columns",
)  # fmt: skip


def simulate(
    *,
    as_printed: Annotated[
        bool, typer.Option("--as-printed", help="Appendix G to the letter: no scale, logits in the thousands.")
    ] = False,
    kappa: Annotated[
        float | None,
        typer.Option("--kappa", help="Freezing ratio of all three. Default: 0.3 normal, 2 malignant, 0.6 benign."),
    ] = None,
    d_q: Annotated[int, typer.Option("--d-q", help="Width of the head.", min=1, max=1024)] = 64,
    d: Annotated[int, typer.Option("--d", help="Width of the model.", min=1, max=8192)] = 768,
    tokens: Annotated[int, typer.Option("--tokens", help="Tokens of the map.", min=2, max=2048)] = 197,
    seed: Annotated[int, typer.Option("--seed", help="Of weights and tokens.", min=0)] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Picture of the maps and spectra: .png, .svg or .pdf.")
    ] = None,
    output_format: Annotated[Lines, typer.Option("--format", help="Of what goes to stdout.")] = Lines.TEXT,
) -> None:
    """Simulate the paper's normal, malignant and benign attention from chosen spectra (appendix G)."""
    from qkspec.simulate import Setup
    from qkspec.simulate import simulate as simulated

    modes = simulated(Setup(d_q, d, tokens, kappa, as_printed, seed))
    if out is not None:
        draw(modes, out)
    if output_format is Lines.JSON:
        documents = [{"mode": m.name, "verdict": m.verdict.value, **_values(m)} for m in modes]
        json.dump({"schema": 1, "modes": documents}, sys.stdout, indent=1, allow_nan=False)
        print()  # noqa: T201 - ends the last line
        return
    show(lines(modes, columns()))


def lines(modes: Sequence["Mode"], room: int | None) -> list[str]:
    """Return the maps, the indices and the verdicts as lines of text, as many modes beside each other as fit."""
    beside = len(modes) if room is None else max(min((room + 2) // (ACROSS + 2), len(modes)), 1)
    out = []
    for start in range(0, len(modes), beside):
        out += [*_side_by_side(modes[start : start + beside]), ""]
    return out + [f"{mode.name}: {mode.verdict.meaning}" for mode in modes]


def _side_by_side(modes: Sequence["Mode"]) -> list[str]:
    shades = " ░▒▓█" if (sys.stdout.encoding or "").lower().startswith("utf") else " .:*#"
    out = ["  ".join(f"{mode.name:{ACROSS}}" for mode in modes)]
    drawn = [shaded(mode, shades) for mode in modes]
    out += ["  ".join(row) for row in zip(*drawn, strict=True)]
    out += ["", f"{'':20}" + "".join(f"{mode.name:>14}" for mode in modes)]
    out += [f"{name:20}" + "".join(f"{mode.values[name]:>14.4g}" for mode in modes) for name in SHOWN]
    return [*out, f"{'verdict':20}" + "".join(f"{mode.verdict.value:>14}" for mode in modes)]


def shaded(mode: "Mode", shades: str) -> list[str]:
    """Return a map as ACROSS/2 lines of shades: the mass of each block of tokens, against an even share of its row."""
    import numpy as np

    rows = [block.sum(axis=0) / len(block) for block in np.array_split(mode.map, ACROSS // 2)]
    out = []
    for row in rows:
        cells = np.array([part.sum() for part in np.array_split(row, ACROSS)]) * ACROSS  # 1: an even share
        place = np.clip((cells / 4 * (len(shades) - 1)).round(), 0, len(shades) - 1).astype(int)
        out.append("".join(shades[i] for i in place))
    return out


def draw(modes: Sequence["Mode"], path: Path) -> None:
    """Write the picture of the three maps, each above its spectrum.

    Raises:
        UsageError: the ending is none of a picture.
        OutputError: it cannot be written.
    """
    import numpy as np
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    from qkspec.errors import OutputError, UsageError
    from qkspec.reports.palette import SERIES
    from qkspec.reports.style import COLUMN, save, styled

    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise UsageError(f"--out {path}: a picture ends in .png, .svg or .pdf")
    with styled():
        figure = Figure(figsize=(2 * COLUMN, 1.05 * COLUMN), layout="constrained")
        axes = figure.subplots(2, len(modes), squeeze=False, height_ratios=[2.2, 1])
        scale = PowerNorm(0.5, vmin=0, vmax=1)  # one for all: a mode's own would show noise as bright as a collapse
        for i, mode in enumerate(modes):
            image = axes[0, i].imshow(mode.map, cmap="cividis", norm=scale, interpolation="nearest")
            said = "" if mode.verdict.value == mode.name else f", judged {mode.verdict.value}"
            axes[0, i].set(title=f"{mode.name}{said}", xlabel="key", ylabel="query" if i == 0 else "")
            axes[0, i].grid(visible=False)
            energy = np.cumsum(mode.sigma**2) / np.sum(mode.sigma**2)
            axes[1, i].plot(np.arange(1, len(energy) + 1), energy, color=SERIES[0])
            axes[1, i].set(xlabel="$s$, directions", ylabel="SEC$(d_q, s)$" if i == 0 else "", ylim=(0, 1.05))
        figure.colorbar(image, ax=axes[0], label="attention weight", ticks=[0, 0.01, 0.1, 0.3, 1], pad=0.01)
        try:
            save(figure, path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error


def _values(mode: "Mode") -> dict[str, float | str | int | None]:
    from qkspec.readings import plain

    return {name: plain(mode.values[name]) for name in SHOWN}
