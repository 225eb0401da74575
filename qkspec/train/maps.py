"""Pictures of attention maps while a model trains: stills and one animation, as P's figures 2 and 7."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional

from qkspec.train.probes import indices
from qkspec.train.save import whole_file

FOLDER, ANIMATION = "maps", "maps.gif"
FRAMES = 200  # of an animation at most, evenly chosen
_SMALL, _LARGE = 128, 256  # pixels a side of a map: a smaller one is enlarged, a larger one averaged
_GAP, _LINE, _LEAST = 8, 16, 580  # pixels between maps; height of a line of text; width that the caption needs
_TIME, _LAST = 400, 2000  # milliseconds of a frame, and of the last
_CAPTION = "rows: queries; bright: much attention (square root); H: entropy, 1 for an even map; red: no number"
_LOST = (214, 39, 40)  # the colour of what is no number

Pixels = NDArray[np.uint8]


def still(maps: Mapping[str, Tensor], heads: Mapping[int, Sequence[int]], title: str, *, causal: bool) -> Image.Image:
    """Return one picture: a row a block, a map a head with its entropy, √attention from dark (0) to bright (1).

    Args:
        maps: (heads, tokens, tokens) of each block, in the order of ``heads``.
        heads: their numbers, by the number of the block.
        title: the line above.
        causal: whether a token sees only those before it, as the entropy must know.
    """
    rows = [[_tile(one) for one in block] for block in maps.values()]
    sides = [tiles[0].shape[0] for tiles in rows]
    width = max(len(tiles) * (side + _GAP) for tiles, side in zip(rows, sides, strict=True)) + _GAP
    height = 2 * _LINE + _GAP + sum(side + 2 * _LINE + _GAP for side in sides)
    page = Image.new("RGB", (max(width, _LEAST), height), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    pen.text((_GAP, 3), title, "black", font)
    top = _LINE + _GAP
    for (block, numbers), one, tiles, side in zip(heads.items(), maps.values(), rows, sides, strict=True):
        entropies = indices(one, causal=causal)["entropy"].tolist()
        pen.text((_GAP, top), f"block {block}", "black", font)
        for i, (head, tile, entropy) in enumerate(zip(numbers, tiles, entropies, strict=True)):
            left = _GAP + i * (side + _GAP)
            pen.text((left, top + _LINE), f"head {head}  H {entropy:.2f}", "black", font)
            page.paste(Image.fromarray(tile), (left, top + 2 * _LINE))
        top += side + 2 * _LINE + _GAP
    pen.text((_GAP, top), _CAPTION, "black", font)
    return page


def save(page: Image.Image, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    with whole_file(path) as partial:
        page.save(partial, format="png")


def animate(folder: Path) -> Path | None:
    """Join the stills of a run's folder into one GIF and return it; None where there are none."""
    stills = sorted((folder / FOLDER).glob("step-*.png"), key=_step)
    chosen = [stills[i] for i in np.unique(np.linspace(0, len(stills) - 1, FRAMES).round().astype(int))]
    if not chosen:
        return None
    palette = Image.new("P", (1, 1))
    greys = [v for v in (0, *range(11, 254, 11), 255) for _ in range(3)]
    palette.putpalette([*_colours(230).flatten().tolist(), *_LOST, *greys])
    frames = [_opened(path).quantize(palette=palette, dither=Image.Dither.NONE) for path in chosen]
    target = folder / FOLDER / ANIMATION
    times = [_TIME] * (len(frames) - 1) + [_LAST]
    with whole_file(target) as partial:
        frames[0].save(partial, format="gif", save_all=True, append_images=frames[1:], duration=times, loop=0)
    return target


def forget(folder: Path, step: int) -> None:
    """Remove the stills of steps after ``step``: the run goes on from there, and draws them again."""
    for path in (folder / FOLDER).glob("step-*.png"):
        if _step(path) > step:
            path.unlink()


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as page:
        return page.convert("RGB")


def _tile(one: Tensor) -> Pixels:
    """Return the pixels (side, side, 3) of a map (tokens, tokens)."""
    tokens = one.shape[0]
    cell = math.ceil(tokens / _LARGE)
    if cell > 1:  # the mean over a cell's queries of the mass on its keys
        one = functional.avg_pool2d(one[None], cell, ceil_mode=True)[0] * cell
    levels = (one.clamp(0, 1).sqrt() * 255).round()
    colours: Pixels = _colours(256)[levels.nan_to_num(0.0).to(torch.uint8).numpy()]
    colours[torch.isnan(levels).numpy()] = _LOST
    zoom = max(1, _SMALL // tokens)
    return np.repeat(np.repeat(colours, zoom, axis=0), zoom, axis=1)


def _colours(count: int) -> Pixels:
    """Return (count, 3) colours from dark to bright."""
    from matplotlib import colormaps

    return np.asarray((colormaps["viridis"].resampled(count)(np.arange(count))[:, :3] * 255).round(), dtype=np.uint8)
