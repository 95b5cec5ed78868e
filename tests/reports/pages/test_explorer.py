import base64
import gzip
import json

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from plotly.offline import get_plotlyjs

from edgeopt.reports.pages.explorer import explorer, script_json
from tests.browser.synthetic import synthetic_sweep
from tests.linear_runtime import NAME as FOREIGN
from tests.linear_runtime import installed
from tests.reports.made_up import results_of

NASTY = "</script><img src=x onerror=alert(1)>"


def page_of(results):
    page = BeautifulSoup(explorer(results).data, "html.parser")
    return page, json.loads(page.find(id="explorer-data").string)


def test_the_chart_has_every_candidate_in_display_units(tmp_path):
    results = results_of(tmp_path)
    _, data = page_of(results)
    sweep = results.sweep
    assert data["names"] == sweep["candidate"].to_list()
    columns = data["columns"]
    assert columns["accuracy"][0] == pytest.approx(100 * sweep["accuracy"][0], rel=1e-5)
    kib = sweep["artifact_bytes"][0] / 1024
    assert columns["artifact_bytes"][0] == pytest.approx(kib, rel=1e-5)
    assert data["bounds"]["latency_p50_ms"] == ["latency_p50_low_ms", "latency_p50_high_ms"]
    failed = sweep.index[sweep["status"] == "failed"][0]
    assert columns["accuracy"][failed] is None
    assert data["roles"]["Pick"] == results.rows["pick"]["candidate"]


def test_the_chart_has_a_symbol_for_a_runtime_of_another_package(tmp_path):
    results = results_of(tmp_path)
    first = results.sweep["candidate"][0]
    results.sweep.loc[0, "runtime"] = FOREIGN
    with installed(tmp_path):
        page, data = page_of(results)
    assert data["symbols"][FOREIGN] == "circle"
    assert FOREIGN not in page_of(results)[1]["symbols"]  # nor is one asked for that is not there
    assert "NumPy" in page.find(id="explorer").text
    assert first in data["names"]


def test_the_table_says_where_each_candidate_stands_and_why(tmp_path):
    results = results_of(tmp_path)
    page, _ = page_of(results)
    heads = [head.text for head in page.select("#candidates thead th")]
    assert heads[:3] == ["Candidate", "Latency, median (ms)", "Validation accuracy (%)"]
    rows = [[cell.text for cell in line(["th", "td"])] for line in page.select("tbody tr")]
    table = pd.DataFrame(rows, columns=heads).set_index("Candidate")
    assert len(table) == 44
    failed = table.loc["small_cnn-p70-torch-fp16"]
    assert failed["Standing"] == "failed"
    assert "no kernel for <Half> & co" in failed["Decided by"]
    assert table.loc["small_cnn-p0-torch-fp32", "Decided by"].startswith("weights 80.04 KiB, allow")
    assert table.loc["small_cnn-p0-torch-fp32", "Weights (KiB)"] == "80.04"


def test_numbers_sort_by_what_they_are_not_how_they_are_written(tmp_path):
    results = results_of(tmp_path)
    page, _ = page_of(results)
    column = [line(["th", "td"])[1]["data-order"] for line in page.select("tbody tr")]
    measured = results.sweep["latency_p50_ms"]
    assert [float(order) for order in column] == measured.fillna(1e308).tolist()


def test_all_failed_is_a_table_of_errors_without_a_chart(tmp_path):
    numbers = synthetic_sweep().select_dtypes("number").columns.drop("pruning_level")
    results = results_of(tmp_path)
    results.sweep[numbers] = np.nan
    results.sweep[["status", "error"]] = "failed", "no kernel"
    page, _ = page_of(results)
    assert page.find(id="frontier") is None
    assert all("no kernel" in row.text for row in page.select("tbody tr"))


def test_names_with_html_are_text(tmp_path):
    sweep = synthetic_sweep(levels=(0.0,))
    sweep.loc[0, "candidate"] = NASTY
    page, data = page_of(results_of(tmp_path, sweep))
    assert page.find("img") is None
    assert data["names"][0] == NASTY
    assert json.loads(script_json({"a": NASTY})) == {"a": NASTY}
    assert "</" not in script_json({"a": NASTY})


def test_the_plotting_library_is_there_once_and_packed(tmp_path):
    html = explorer(results_of(tmp_path)).data
    packed = BeautifulSoup(html, "html.parser").find(id="plotly").string
    assert gzip.decompress(base64.b64decode(packed)).decode() == get_plotlyjs()
    assert len(html) < 3 * 2**20
