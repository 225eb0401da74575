"""Names that come from a checkpoint are data: what a terminal, a log or a page could interpret is escaped."""

import unicodedata

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
