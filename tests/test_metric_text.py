"""Metric entries as text."""

import pytest

from e2e_utils.metric_text import format_entry


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ((12345.678, 12000.4, 13000.4), "12346 [12000, 13000]"),
        ((40.214, 39.21, 41.2), "40.21 [39.21, 41.20]"),
        ((0.79921, 0.7951, 0.8033), "0.7992 [0.7951, 0.8033]"),
        ((0.00082921, 0.000404, 0.001254), "0.00083 [0.00040, 0.00125]"),
        ((0.5, 0.4, 0.6), "0.50 [0.40, 0.60]"),
        ((0.5, 0.5, 0.5), "0.5000 [0.5000, 0.5000]"),
        ((float("nan"), float("nan"), float("nan")), "nan [nan, nan]"),
        ((120.0, 57.29, float("inf")), "120.0000 [57.2900, inf]"),
    ],
)
def test_as_many_digits_as_the_interval_allows(entry: tuple[float, ...], text: str) -> None:
    assert format_entry(dict(zip(("value", "low", "high"), entry, strict=True))) == text


def test_spread_bold_and_chosen_digits() -> None:
    entry = {"value": 0.5, "low": 0.4, "high": 0.6, "seed_std": 0.012}
    assert format_entry(entry, bold=True) == "**0.500** [0.400, 0.600] ± 0.012"
    assert format_entry(entry, digits=1) == "0.5 [0.4, 0.6] ± 0.01"
    narrow = {"value": 0.99983, "low": 0.99964, "high": 0.99995, "seed_std": 3e-6}
    assert format_entry(narrow) == "0.9998 [0.9996, 1.0000] ± 0.000003"
