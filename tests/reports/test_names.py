import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qkspec.reports.names import cell, escape, uncell, unescape

NASTY = [
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "'quoted",
    "\tx",
    "a\x1b[31m",
    "\u202egnp",
    "back\\slash",
    "\\x1b",
    "\udc80",
    "",
]


@pytest.mark.parametrize("name", NASTY)
def test_names_survive_and_are_inert(name: str) -> None:
    assert unescape(escape(name)) == name
    assert uncell(cell(name)) == name
    assert not cell(name).startswith(("=", "+", "-", "@", "\t"))


@given(st.text(alphabet=st.characters(), max_size=40))
def test_every_text_comes_back(name: str) -> None:
    assert uncell(cell(name)) == name
    assert all(unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in cell(name))
    cell(name).encode("utf-8")


@given(st.text(max_size=20), st.text(max_size=20))
def test_different_names_stay_different(a: str, b: str) -> None:
    assert (cell(a) == cell(b)) == (a == b)
