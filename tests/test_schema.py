import math

import pytest

from edgeopt.schema import Column, column, display_unit, label, quantity, signed, significant

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("artifact_bytes", 8000, "7.812 KiB"),
        ("memory_mb", 0.5, "512 KiB"),
        ("peak_rss_bytes", 3 * 2**20, "3 MiB"),
        ("energy_proxy_j", 6.25e-5, "62.5 \N{MICRO SIGN}J"),
        ("energy_model_j", 2e-12, "0.002 nJ"),
        ("latency_p50_ms", 0.12345, "0.1235 ms"),
        ("accuracy", 0.881, "88.1%"),
        ("accuracy_drop", 0.0056, "0.56 points"),
        ("throughput_sps", 46449.3, "46,450 images/s"),
        ("macs", 1_234_567, "1,234,567"),
        ("macs", None, DASH),
        ("accuracy", math.nan, DASH),
    ],
)
def test_quantity_has_the_unit_that_suits_it(name, value, text):
    assert quantity(name, value) == text


def test_signed_has_a_sign_unless_it_is_written_as_zero():
    texts = [signed(value, digits=1) for value in (1.26, -1.26, 0.04, -0.04, 0)]
    assert texts == ["+1.3", "\N{MINUS SIGN}1.3", "0.0", "0.0", "0.0"]


def test_a_name_in_ms_has_that_unit():
    assert column("slower_ms") == Column("Slower", "ms")
    assert column("slower") == Column("Slower")


def test_quantity_exact_tells_close_numbers_apart():
    assert quantity("accuracy_drop", 0.050001, exact=True) == "5.0001 points"
    assert quantity("accuracy", 0.90501, exact=True) == "90.501%"
    assert quantity("latency_p50_ms", 0.123456, exact=True) == "0.123456 ms"
    assert quantity("memory_mb", 0.05 + 1 / 2**20, exact=True) == "52,429.8 bytes"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.005, "+0.50 points"), (-0.005, f"{MINUS}0.50 points"), (-1e-6, "0.00 points")],
)
def test_quantity_signed_has_no_sign_on_what_rounds_to_zero(value, text):
    assert quantity("accuracy_change", value, signed=True) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0190712, "0.01907"), (1234.5, "1,234"), (-2.5, f"{MINUS}2.5"), (math.inf, "inf"), (7, "7")],
)
def test_significant_has_four_digits(value, text):
    assert significant(value) == text


def test_display_unit_is_that_of_the_largest():
    assert display_unit("artifact_bytes", 2**20 - 1) == (1 / 1024, "KiB")
    assert display_unit("artifact_bytes", 2**20) == (1 / 2**20, "MiB")
    assert display_unit("memory_mb", 0.9) == (1024, "KiB")
    assert display_unit("accuracy", 1.0) == (100, "%")
    assert display_unit("latency_ms_mean", 1.0) == (1, "ms")
    assert display_unit("unheard_of", 1.0) == (1, "")


def test_label_has_the_unit_but_for_shares():
    assert label("latency_p50_ms") == "Latency, median (ms)"
    assert label("accuracy") == "Validation accuracy"
    assert label("true_class") == "True class"
    assert column("violates_2mb").title == "Over 2 MiB of weights"
