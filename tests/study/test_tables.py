import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure

from edgeopt.study.tables import cell_text, column_heading, table_html, use_style

DASH = "\N{EN DASH}"


def cells(df):
    page = BeautifulSoup(table_html(df), "html.parser")
    return [[cell.text for cell in row(["th", "td"])] for row in page("tr")], page


def test_use_style_sets_the_figures_parameters():
    with mpl.rc_context({"font.size": 3}), pd.option_context("display.max_colwidth", 50):
        use_style()
        assert mpl.rcParams["font.size"] == 11.5
        assert pd.get_option("display.max_colwidth") is None


def test_a_class_name_with_dollars_is_drawn_as_it_is():
    with mpl.rc_context(), pd.option_context("display.max_colwidth", 50):
        use_style()
        figure = Figure()
        figure.text(0.5, 0.5, r"$5 to $10 \\frac{")
        figure.canvas.draw()
        assert not mpl.rcParams["text.parse_math"]


def test_headings_have_units_and_numbers_are_in_them():
    df = pd.DataFrame(
        {
            "candidate": ["a", "b"],
            "accuracy": [0.88421, np.nan],
            "memory_mb": [0.0203, 0.5],
            "latency_p50_ms": [0.0190712, 12.0],
            "accepted": [True, False],
        }
    )
    rows, page = cells(df)
    assert rows[0] == [
        "Candidate",
        "Validation accuracy (%)",
        "Weights (KiB)",
        "Latency, median (ms)",
        "Fits the memory budget",
    ]
    assert rows[1] == ["a", "88.4", "20.79", "0.01907", "yes"]
    assert rows[2] == ["b", DASH, "512", "12", "no"]
    assert len(page.select("td.number")) == 6
    assert [cell.text for cell in page.find_all("th", scope="row")] == ["a", "b"]


def test_per_cent_has_one_decimal_where_the_heading_says_so_itself():
    rows, _ = cells(pd.DataFrame({"One epoch (%)": [90.0, 89.66]}))
    assert rows == [["One epoch (%)"], ["90.0"], ["89.7"]]


def test_means_and_budgets_are_named_by_what_they_are_of():
    assert column_heading("latency_ms_mean", "ms") == "Latency, mean (mean) (ms)"
    assert column_heading("violates_0.03mb", "") == "Over 0.03 MiB of weights"
    assert column_heading("small_cnn-p0", "") == "small_cnn-p0"
    assert column_heading("steal_share", "") == "Steal share"


def test_a_named_index_goes_first_and_a_counter_is_dropped():
    df = pd.DataFrame({"x": [1, 2]})
    assert cells(df.set_axis([7, 3]))[0] == [["X"], ["1"], ["2"]]
    named = df.set_axis(pd.Index(["a", "b"], name="class"))
    assert cells(named)[0] == [["Class", "X"], ["a", "1"], ["b", "2"]]
    levels = df.set_axis(pd.MultiIndex.from_tuples([("a", 0), ("b", 1)], names=["p", "q"]))
    assert cells(levels)[0][1] == ["a", "0", "1"]
    wide = df.set_axis(pd.MultiIndex.from_tuples([("one", "two")]), axis=1)
    assert cells(wide)[0][0] == ["One, two"]


def test_headings_that_are_values_stay_as_they_are():
    df = pd.DataFrame({"model": ["small_cnn", "b"], "level": [0.0, 0.0], "accuracy": [0.5, 1.0]})
    pivot = df.pivot_table("accuracy", "level", "model", sort=False)
    assert cells(pivot)[0] == [["Level", "small_cnn", "b"], ["0", "0.5", "1"]]


def test_long_tables_say_what_they_leave_out_and_cells_are_text():
    html = table_html(pd.DataFrame({"<b>": ["<i>"] * 230}))
    assert html.count("<tr>") == 201
    assert "30 more rows" in html
    assert "<b>" not in html
    assert "<i>" not in html


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, DASH), (np.nan, DASH), (True, "yes"), ((1, 2), "(1, 2)"), (12, "12"), (0.5, "0.5")],
)
def test_cell_text(value, text):
    assert cell_text(value) == text


def test_a_names_column_is_wide_enough_for_two_lines_and_a_long_text_is_wider():
    df = pd.DataFrame(
        {"runtime": ["torch"], "parent": ["small_cnn-p0-torch-fp32"], "error": ["x" * 41]}
    )
    _, page = cells(df)
    assert [cell.get("class") for cell in page.tbody.find_all("td")] == [["name"], ["words"]]
    assert page.tbody.th.get("class") is None
