"""How each verdict looks: one letter, one colour in the terminal, one on light and one on dark paper.

The hues are Okabe and Ito's, told apart by the colour-blind; the letter says the same without any colour.
"""

from dataclasses import dataclass

from qkspec.theorem import Verdict

PALE = ("yellow", "white")  # letters in these are lost on a light ground


@dataclass(frozen=True)
class Look:
    """The appearance of a verdict.

    Args:
        letter: one ASCII character for maps.
        terminal: a rich style.
        light, dark: colours as #rrggbb on a light and on a dark ground.
        marker: a matplotlib marker.
    """

    letter: str
    terminal: str
    light: str
    dark: str
    marker: str

    @property
    def word(self) -> str:
        """The rich style of the verdict as a word in a line: the map's ground as its letters' colour, if that shows."""
        ground = self.terminal.partition(" on ")[2]
        return f"bold {ground}" if ground not in ("", *PALE) else self.terminal


LOOKS = {
    Verdict.BROKEN: Look("X", "bold white on magenta", "#000000", "#ffffff", "x"),
    Verdict.MALIGNANT: Look("M", "bold white on red", "#c8400f", "#ff7a45", "o"),
    Verdict.DEAD: Look("0", "bold black on white", "#5f5f5f", "#b8b8b8", "s"),
    Verdict.SHARP: Look("S", "black on yellow", "#b37a00", "#f0b429", "^"),
    Verdict.LARGE: Look("L", "magenta", "#a8487e", "#e08fbd", "D"),
    Verdict.CONCENTRATED: Look("c", "cyan", "#2c83b8", "#6cc0ee", "v"),
    Verdict.BENIGN: Look("b", "green", "#00765a", "#2fc39b", "P"),
    Verdict.UNJUDGED: Look("?", "bold", "#8a8a8a", "#9a9a9a", "."),
    Verdict.NOT_APPLICABLE: Look("-", "dim", "#a8a8a8", "#7d7d7d", "."),
    Verdict.HEALTHY: Look(".", "dim", "#b9c2cc", "#56606b", "."),
}

STATES = {  # words of RunState.verdict: a rich style, and the sentence's first word stays the state itself
    "broken": "bold white on magenta",
    "lost": "bold white on red",
    "warned": "bold black on yellow",
    "sound": "bold green",
    "unjudged": "bold",
}

SERIES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#000000",
)  # runs and chosen heads, in order
