"""Text for terminals: names from a checkpoint are data and made inert, ours is put in letters that are there."""

import unicodedata

_PLAIN = str.maketrans(
    {"σ": "sigma", "κ": "kappa", "τ": "tau", "≤": "<=", "≥": ">=", "·": "|", "→": "->", "…": "...", "×": "x",
     "√": "sqrt", "‖": "|", "–": "-", "—": "-", "’": "'", "∘": "o", "γ": "gamma", "∧": "and", "Σ": "sum", "²": "^2",
     "±": "+/-", "α": "alpha", "Δ": "Delta", "∇": "grad ", "ρ": "rho", "⌈": "ceil(",
     "⌉": ")"}
)  # fmt: skip
_UNSAFE = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def clean(value: object, limit: int = 300) -> str:
    r"""Return text that is inert and on one line: control, format, bidi and separator characters become \x.. escapes.

    Args:
        value: anything; its str() is taken.
        limit: characters kept; the middle of a longer text is left out.
    """
    text = str(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-(limit // 2) :]}"
    return "".join(_escape(c) if unicodedata.category(c) in _UNSAFE else c for c in text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def in_ascii(text: str) -> str:
    """Return text of ours, which knows some Greek and mathematics, in letters that every terminal has."""
    return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode("ascii")
