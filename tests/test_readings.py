import numpy as np
import pytest
from build import random_layer, table

from qkspec.readings import KEYS, NO_STEP, Readings, concatenate, empty, plain


def test_columns_must_be_of_equal_length():
    with pytest.raises(ValueError, match="different lengths"):
        Readings({"a": np.zeros(2), "b": np.zeros(3)})


def test_concatenated_tables_keep_rows_and_order():
    parts = [table(random_layer(seed=i), checkpoint=f"step-{i}", step=i) for i in (0, 1)]
    whole = concatenate(parts, parts[0].metrics)
    assert len(whole) == 8
    assert [name for name, _ in whole.groups("checkpoint")] == ["step-0", "step-1"]
    np.testing.assert_array_equal(whole.metric("sigma1")[4:], parts[1].metric("sigma1"))
    assert set(whole.columns) == {*KEYS, *parts[0].metrics}


def test_a_name_is_told_from_one_that_ends_in_a_nul():
    parts = [table(random_layer(heads=1), checkpoint=name) for name in ("a\0", "a", "\0")]
    whole = concatenate(parts, parts[0].metrics)
    assert [whole.rows("checkpoint", name).tolist() for name in ("a\0", "a", "\0", "")] == [
        [True, False, False], [False, True, False], [False, False, True], [False, False, False],
    ]  # fmt: skip
    assert [mask.sum() for _, mask in whole.groups("checkpoint")] == [1, 1, 1]


def test_a_metric_that_was_not_measured_is_not_a_number():
    part = table(random_layer())
    assert np.isnan(part.metric("no_such_metric")).all()
    assert np.isnan(concatenate([part], ["no_such_metric"]).metric("no_such_metric")).all()


def test_an_empty_table_has_every_column_and_no_row():
    assert len(empty(["sigma1"])) == 0
    assert len(concatenate([], ["sigma1"])) == 0


def test_plain_cells():
    assert plain(np.float64(np.nan)) is None
    assert plain(np.float64(np.inf)) is None
    assert plain(np.float64(0)) == 0
    assert plain(np.int64(NO_STEP)) is None
    assert plain("x") == "x"
    assert table(random_layer()).at(1)["head"] == 1
