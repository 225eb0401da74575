"""The reader of pickles as data: plain values equal pickle's own, and nothing is ever called."""

import os
import pickle  # noqa: TID251 - the second reader, on pickles made here
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qkspec.checkpoints import pickles
from qkspec.checkpoints.pickles import PLAIN, Instance, Reader
from qkspec.errors import CheckpointError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(-100, 100), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.lists(inner, max_size=2).map(tuple)
    ),
    max_leaves=12,
)


def load(data: bytes) -> Any:
    return Reader("file.pt", PLAIN).load(data)


@settings(max_examples=200, deadline=None)
@given(VALUES, st.integers(0, 5), st.sampled_from([0, 1 << 20]))
def test_plain_values_at_every_protocol(value: Any, protocol: int, sparse: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pickles, "_SPARSE", sparse)
        assert_loads(value, protocol)


def assert_loads(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    if protocol < 3 and (b"_codecs" in data or b"builtin" in data):  # bytes are a call there, which stays unmade
        load(data)
    else:
        assert load(data) == value


@dataclass
class Args:
    width: int
    path: Path


def test_instances_are_names_and_state() -> None:
    got = load(pickle.dumps(Args(3, Path("x"))))
    assert isinstance(got, Instance)
    assert got.cls.name == "Args"
    assert got.state["width"] == 3
    assert load(pickle.dumps(OrderedDict(a=1))) == {"a": 1}
    assert load(pickle.dumps({1, 2})) in ([1, 2], [2, 1])


class Attack:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, open, getattr, __import__, os.remove, pickle.loads], ids=lambda f: f.__name__
)
def test_a_call_is_refused_by_name(tmp_path: Path, function: Any, protocol: int) -> None:
    marker = tmp_path / "ran"
    data = pickle.dumps({"a": Attack(function, f"touch {marker}")}, protocol)
    with pytest.raises(CheckpointError, match=function.__name__):
        load(data)
    assert not marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"\x80\x02.",
        b"}",
        b"(.",
        b"N",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"cos\nsystem\n(S'id'\ntR.",
        b"(S'id'\nios\nsystem\n.",
        b"(cos\nsystem\nS'id'\no.",
        b"\x82\x01.",
        b"Pid\n.",
        b"S'id'\nQ.",
        b"]2.",
        b"(1.",
        b"0.",
        b"h\x05.",
        b"}N]s.",
        b"]]e.",
        b"Nb.",
        b"N(Nu.",
        b"\x93.",
        b"I" + b"9" * 5000 + b"\n.",
        b"L" + b"9" * 5000 + b"L\n.",
        b"X\xff\xff\xff\x7fabc.",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"F1e\n.",
        b"S'\n.",
        b"\x8b\xff\xff\xff\xff.",
        b"cos\n\n.",
        b"c\xff\n\xff\n.",
        b"N)R.",
        b"N)\x81.",
        b"((t.",
        b"\x85.",
    ],
)
def test_damaged_and_hostile_programs_get_one_sentence(data: bytes) -> None:
    try:
        load(data)
    except CheckpointError as error:
        message = str(error)
    else:
        message = "file.pt: "  # some are odd and harmless
    assert message.startswith("file.pt: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "data",
    [
        b"(" * 30_000_000,
        b"".join(b"c%d\n\n" % n for n in range(20_000)) + b".",
    ],
    ids=["marks", "globals"],
)
def test_bombs_end(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="more than"):
        load(data)


def test_keys_cannot_be_chosen_to_collide() -> None:
    collide = pickle.dumps({(-1 if n >> i & 1 else -2, n): 0 for n in range(4) for i in range(2)})
    assert all(isinstance(key, Instance) for key in load(collide))
    keys = b"".join(b"\x8a\x0a" + (n * (2**61 - 1)).to_bytes(10, "little") + b"N" for n in range(1, 20_000))
    assert len(load(b"}(" + keys + b"u.")) == 19_999  # 20,000 equal hashes: minutes in a dict of the numbers themselves


def test_values_are_counted_and_not_only_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long file may take many steps; what it may build at once stays bounded."""
    monkeypatch.setattr(pickles, "MAX_BLOCKS", 50_000)
    many = b"\x80\x04(" + b"}" * 100_000 + b"l."
    with pytest.raises(CheckpointError, match="50000 values"):
        Reader("file.pt", PLAIN, limit=10_000_000).load(many)
    passing = b"\x80\x04(" + b"K\x01" * 100_000 + b"l."  # one value, many times
    assert Reader("file.pt", PLAIN, limit=10_000_000).load(passing) == [1] * 100_000
    with pytest.raises(CheckpointError, match="more than 1000 steps"):
        Reader("file.pt", PLAIN, limit=1000).load(passing)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_remembered_values_out_of_order(protocol: int) -> None:
    shared = ["a"]
    assert load(pickle.dumps([shared, shared], protocol)) == [["a"], ["a"]]
    strange = b"\x80\x02]q\x05]q\x02h\x05h\x02\x86."  # remembered as 5 and 2, asked for both
    assert load(strange) == ([], [])
    with pytest.raises(CheckpointError, match="damaged"):
        load(b"\x80\x02]q\x05h\x04.")


def test_packed_states_are_kept_alone() -> None:
    packers = {"Args": lambda state: tuple(state.values())}
    made = Reader("file.pt", PLAIN, packers=packers).load(pickle.dumps(Args(1, Path("b")), 4))
    assert made.state[0] == 1
    assert made.state[1].args == ("b",)


def test_steps_of_packed_states_do_not_count_unless_something_of_them_stays() -> None:
    many = [Args(n, Path("b")) for n in range(300)]
    packers = {"Args": lambda state: state["width"]}
    data = pickle.dumps(many, 4) + b" " * (1 << 20)  # of a large pickle only what it asks for again is remembered
    made = Reader("file.pt", PLAIN, packers=packers, limit=2100).load(data)
    assert [one.state for one in made] == list(range(300))
    with pytest.raises(CheckpointError, match="2100 steps"):
        Reader("file.pt", PLAIN, limit=2100).load(data)
    with pytest.raises(CheckpointError, match="2100 steps"):
        Reader("file.pt", PLAIN, packers=packers, limit=2100).load(pickle.dumps(many, 4))


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(0, 40), max_size=60), st.integers(4, 5))
def test_a_large_pickle_remembers_what_it_asks_for(picks: list[int], protocol: int) -> None:
    """Shared values come back shared, also when they were remembered long before, among jjjj that look like asking."""
    shared = [[str(n), b"j\x01\x02\x00\x00"] for n in range(41)]
    value = [shared[:20], ["jjjjj" + str(n) for n in range(300)], b"j" * (1 << 20), shared, [shared[n] for n in picks]]
    got = load(pickle.dumps(value, protocol))
    assert got == value
    assert all(got[4][at] is got[3][n] for at, n in enumerate(picks))


def test_a_sink_takes_a_dicts_items() -> None:
    taken: list[Any] = []
    packers = {"Args": lambda state: state["width"]}
    data = pickle.dumps({"a": {Key(n): n for n in range(3)}, "b": {"c": 1}}, 4)
    root = Reader("file.pt", PLAIN, packers={"Key": packers["Args"]}, sinks={"Key": taken.extend}).load(data)
    assert root == {"a": {}, "b": {"c": 1}}
    assert [item.state if isinstance(item, Instance) else item for item in taken] == [0, 0, 1, 1, 2, 2]


@dataclass(frozen=True)
class Key:
    width: int


@pytest.mark.parametrize("maker", [b"cbuiltins\nlist\n", b"ccollections\nOrderedDict\n", b"ccollections\ndeque\n"])
def test_copies_of_copies_end(maker: bytes) -> None:
    """Three bytes that copy a list: a pickle of 300 KB once took 3.4 GB."""
    pairs = b"](" + b"]r\x01\x00\x00\x00(K\x01K\x02e" + b"j\x01\x00\x00\x00" * 20_000 + b"eq\x00"
    data = b"\x80\x02" + pairs + b"(" + maker + b"q\x02h\x00\x85R" + b"h\x02h\x00\x85R" * 1000 + b"l."
    with pytest.raises(CheckpointError, match="copies or widens"):
        load(data)


def test_arguments_kept_a_thousand_times_are_counted() -> None:
    """The tuple of them is new at every call: 126 KB once took 4.7 GB."""
    data = b"\x80\x02(" + b"(" + b"N" * 100_000 + b"tq\x01cbuiltins\nrange\nq\x02"
    with pytest.raises(CheckpointError, match="copies or widens"):
        load(data + b"h\x02h\x01R" * 1000 + b"l.")


def test_long_keys_are_not_compared_again_and_again() -> None:
    long = [b"X" + (10**6).to_bytes(4, "little") + b"k" * 10**6 + b"q" + bytes([n]) for n in (1, 2)]
    root = load(b"\x80\x02(" + b"".join(long) + b"}(" + b"h\x01Nh\x02N" * 2000 + b"ul.")
    assert len(root[-1]) == 4000  # each stands alone: none was compared


def test_long_names_of_classes_are_damage() -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        load(b"\x80\x02c" + b"m" * 5000 + b"\nn\n.")


def test_text_made_into_lists_is_counted() -> None:
    data = b"\x80\x02(" + b"X" + (10**6).to_bytes(4, "little") + b"x" * 10**6 + b"q\x01cbuiltins\nlist\nq\x02"
    with pytest.raises(CheckpointError, match="copies or widens"):
        load(data + b"h\x02h\x01\x85R" * 300 + b"l.")


def test_wide_text_is_counted_by_its_width() -> None:
    letter = "a" * 200 + "\U0001f600"  # 204 bytes here, 804 in memory
    assert load(pickle.dumps([letter] * 1000, 4)) == [letter] * 1000
    wide = b"\x80\x04(" + (b"\x8c\xcc" + letter.encode()) * 170_000 + b"l."
    with pytest.raises(CheckpointError, match="copies or widens"):
        Reader("file.pt", PLAIN).load(wide)


@pytest.mark.parametrize("data", [b"](.", b"](K\x01(K\x02ee.", b"(q\x00."])
def test_nothing_reaches_below_a_mark(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        load(data)


@pytest.mark.parametrize("data", [b"\x80\x04]\x94]q\x07\x86.", b"\x80\x04]q\x00]\x94\x86."])
def test_both_ways_to_remember_in_one_pickle_are_damage(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="damaged"):
        load(data)


def test_a_place_is_remembered_anew() -> None:
    assert load(b"\x80\x02K\x01q\x00K\x02q\x00h\x00\x87.") == (1, 2, 2)
