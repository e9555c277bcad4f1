"""What is said about a wrong name."""

import pytest

from avfewshot.errors import did_you_mean


@pytest.mark.parametrize(
    ("name", "valid", "nearest"),
    [
        ("ave_class", ["ave", "ave_cls"], "ave_cls"),
        ("shotz", ["val_shots", "shots"], "shots"),  # the whole name before one of its words
        ("rigde", ["logistic", "kernel_ridge"], "kernel_ridge"),
        ("TINY", ["base", "tiny"], "tiny"),
    ],
)
def test_the_nearest_name_is_suggested(name, valid, nearest):
    assert did_you_mean(name, valid) == f" Did you mean {nearest!r}?"


def test_nothing_is_suggested_where_nothing_is_near():
    assert did_you_mean("zebra", ["kernel_ridge", "gda"]) == ""
