import pytest

from qkspec.errors import UsageError
from qkspec.ranges import whole_numbers


def test_lists_and_ranges_of_whole_numbers():
    assert whole_numbers(" 0, 2,8-11", "--layers") == {0, 2, 8, 9, 10, 11}
    assert whole_numbers([3, 1], "layers") == {1, 3}
    assert whole_numbers(None, "layers") == frozenset()
    assert whole_numbers("999999999", "--layers") == {999_999_999}


@pytest.mark.parametrize("text", ["1000000000", "0-1000000000", "1" * 5000, "-1", "3-1", "0-100001", "²", "x", ""])
def test_what_is_no_list_of_numbers_is_refused(text):
    with pytest.raises(UsageError, match="--layers"):
        whole_numbers(text, "--layers")
