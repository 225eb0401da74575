"""Reports of small GPT-2 state dicts, measured and judged by the road of files: a sound run, and one that collapses."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import browser
import numpy as np
import pytest

from qkspec.analysis import Measured, Report, Settings, Skipped, assemble, judge, measure
from qkspec.attention import predicted_map
from qkspec.checkpoints.memory import from_state_dict
from qkspec.layouts.find import attention_layers
from qkspec.maps import Maps, picture
from qkspec.readings import Readings


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One browser for all pages."""
    pytest.importorskip("selenium", reason="needs selenium")
    if browser.CHROMIUM is None or browser.CHROMEDRIVER is None:
        pytest.skip("needs chromium and chromedriver")
    found = browser.started(tmp_path_factory.mktemp("profile"))
    yield found
    found.quit()


STEPS = (0, 10, 20, 40, 80, 160)


def gpt2_state(growth: float, *, layers: int, heads: int, d_q: int = 16, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of a GPT-2 whose even heads grow one direction ``growth`` times beyond their random start."""
    rng = np.random.default_rng(seed)
    d = heads * d_q
    state = {}
    for layer in range(layers):
        weight = rng.standard_normal((d, 3 * d)) * 0.05
        for head in range(0, heads, 2):
            top = rng.standard_normal(d)
            size = growth * (1 + layer + head / heads)
            for part in (0, d):  # q, then k: the same direction of the input read into one coordinate
                weight[:, part + head * d_q] += size * top / np.sqrt(d)
        state[f"h.{layer}.attn.c_attn.weight"] = weight.astype(np.float32)
        state[f"h.{layer}.attn.c_attn.bias"] = np.zeros(3 * d, np.float32)
        state[f"h.{layer}.ln_1.weight"] = np.ones(d, np.float32)
        state[f"h.{layer}.ln_1.bias"] = np.zeros(d, np.float32)
    return state


def measured_run(
    name: str,
    growths: Iterable[float],
    *,
    layers: int = 3,
    heads: int = 4,
    d_q: int = 16,
    steps: Sequence[int | None] = STEPS,
) -> list[Measured | Skipped]:
    config = {"model_type": "gpt2", "n_head": heads, "n_layer": layers, "n_positions": 64}
    results: list[Measured | Skipped] = []
    for i, (step, growth) in enumerate(zip(steps, growths, strict=False)):
        state = gpt2_state(growth, layers=layers, heads=heads, d_q=d_q)
        label = f"step-{step:06d}" if step is not None else f"checkpoint {i}"
        checkpoint = from_state_dict(state, config, name=label, step=step)
        results.append(measure(checkpoint, Settings(), run=name))
    return results


COLLAPSING = (0.0, 0.3, 0.8, 1.6, 3.0, 6.0)
SOUND = (0.0, 0.05, 0.1, 0.15, 0.2, 0.2)


@pytest.fixture(scope="session")
def make_report() -> Callable[..., Report]:
    """Build a report from (run name, growths) pairs."""

    def build(*runs: tuple[str, Sequence[float]], extra: Iterable[Skipped] = (), **shape: object) -> Report:
        results = [result for name, growths in runs for result in measured_run(name, growths, **shape)]  # type: ignore[arg-type]
        return judge([*results, *extra], Settings())

    return build


@pytest.fixture(scope="session")
def two_runs(make_report: Callable[..., Report]) -> Report:
    """A run that collapses beside a sound one, with a file that was skipped."""
    skipped = Skipped("lost", "step-000320", "step-000320/model.safetensors: is 12 bytes, too short; save it again")
    return make_report(("lost", COLLAPSING), ("sound", SOUND), extra=[skipped])


@pytest.fixture(scope="session")
def one_run(make_report: Callable[..., Report]) -> Report:
    return make_report(("lost", COLLAPSING))


@pytest.fixture(scope="session")
def with_maps(one_run: Report) -> Report:
    """The collapsing run with pictures of its maps at steps 0 and 160, errors only of the latter."""
    pictures, errors = {}, {}
    config = {"model_type": "gpt2", "n_head": 4, "n_layer": 3, "n_positions": 64}
    for step, growth in ((0, COLLAPSING[0]), (160, COLLAPSING[5])):
        checkpoint = from_state_dict(gpt2_state(growth, layers=3, heads=4), config, name=f"step-{step:06d}", step=step)
        for layer in attention_layers(checkpoint):
            key = f"lost/{checkpoint.name}/{layer.name}"
            pictures[key] = picture(predicted_map(layer))
            if step:
                errors[key] = np.full((4, 4), 0.0123)
    given = {"measured": {key: codes[:, ::-1] for key, codes in pictures.items() if key.endswith("h.1.attn")}}
    return replace(one_run, maps=Maps(pictures, errors, 1, "only two were wanted", given))


@pytest.fixture(scope="session")
def evil() -> str:
    """A name in which a terminal, a forge or a browser could find something to run."""
    return "[red]x[/red]\x1b[31m\u202e::error::<b>[link=http://evil]y\n\x9b2J"


@pytest.fixture(scope="session")
def rename() -> Callable[[Report, str], Report]:
    """Put a name in front of every name in a report."""
    return _renamed


def _renamed(report: Report, name: str) -> Report:
    columns = dict(report.readings.columns)
    for key in ("run", "module", "block"):
        column = np.empty(len(report.readings), dtype=object)
        column[:] = [name + str(value) for value in columns[key]]
        columns[key] = column
    return assemble(
        Readings(columns),
        report.applicable,
        report.limits,
        checkpoints=tuple(
            replace(fact, run=name + fact.run, family=name, remarks=(name,)) for fact in report.checkpoints
        ),
        skipped={name + where: name + why for where, why in report.skipped.items()},
        spectra={},
    )
