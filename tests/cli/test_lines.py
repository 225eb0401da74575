"""Lines on a terminal: as wide as it is, in the letters that it has."""

import sys

import pytest

from qkspec.cli import compare, lines, simulate
from qkspec.simulate import Setup
from qkspec.simulate import simulate as modes

SENTENCE = "  FAIL run h.0.attn head 0: κ 3.24 ≥ 1; 7 checkpoints, first step 60, /a/path/without/a/blank" + "/x" * 40


@pytest.fixture
def terminal(monkeypatch):
    """Stdout as a terminal of so many columns."""

    def make(columns):
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(columns))

    return make


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 200])
def test_no_line_is_wider_than_the_terminal_and_none_is_lost(terminal, columns):
    terminal(columns)
    broken = lines.fitted(SENTENCE, 2).splitlines()
    assert max(map(len, broken)) <= columns
    assert "".join("".join(broken).split()) == "".join(SENTENCE.split())
    assert all(line.startswith("    ") for line in broken[1:])
    drawn = simulate.lines(modes(Setup(16, 32, 24, None, False, 0)), lines.columns())
    table = [line for line in drawn if ": " not in line]
    assert columns < 34 or max(map(len, table)) <= columns


def test_where_stdout_is_no_terminal_lines_stay_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    assert lines.columns() is None
    assert lines.fitted(SENTENCE) == SENTENCE


def test_a_comparison_drops_columns_that_have_no_room(two_sides):
    for room, metrics in ((40, 1), (60, 2), (80, 4), (None, 4)):
        text = compare.lines(two_sides, room)
        table = text[text.index("medians over heads:") + 1 :]
        table = table[: table.index("")]
        assert table[0].count(" A") == metrics
        assert room is None or max(map(len, table)) <= room


@pytest.fixture(scope="module")
def two_sides():
    from pathlib import Path

    from qkspec.analysis import analyze
    from qkspec.comparison import compare as compared

    samples = Path(__file__).parents[2] / "sample_ckpts"
    sides = [
        analyze([samples / name / f"step-{step:06d}" for step in (0, 40)]) for name in ("adamw-no-warmup", "adamw2")
    ]
    return compared(*((side, next(iter(side.states))) for side in sides))
