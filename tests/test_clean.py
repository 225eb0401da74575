import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from qkspec.clean import clean


@given(st.text(max_size=400))
def test_nothing_that_a_terminal_obeys_is_left(text):
    out = clean(text)
    assert not any(unicodedata.category(c)[0] == "C" or unicodedata.category(c) in ("Zl", "Zp") for c in out)
    assert "\n" not in out


def test_escapes_are_shown_and_long_text_is_cut():
    assert clean("a\x1b[31mb\u202ec\n") == "a\\x1b[31mb\\u202ec\\n"
    assert clean("h.0.attn é λ") == "h.0.attn é λ"
    assert len(clean("x" * 10_000, limit=100)) <= 101
