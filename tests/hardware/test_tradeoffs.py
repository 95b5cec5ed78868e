import pandas as pd
import pytest

from edgeopt.hardware.tradeoffs import precision_tradeoff_table
from tests.decision.test_budgets import NAN


class TestPrecisionTradeoffs:
    frame = pd.DataFrame(
        {
            "precision": ["fp32", "int8", "fp32", "int8", "fp16"],
            "runtime": ["torch", "torch", "openvino", "openvino", "torch"],
            "accuracy": [0.9, 0.8, 0.7, 0.6, NAN],
            "latency_ms": [4.0, 1.0, 6.0, 2.0, NAN],
            "memory_mb": [0.4, 0.1, 0.2, 0.1, NAN],
            "energy_proxy_j": [0.04, 0.01, 0.06, 0.02, NAN],
            "accepted": [False, True, True, True, False],
        }
    )

    def test_means_by_hand_fastest_first(self):
        table = precision_tradeoff_table(self.frame)
        assert list(table.columns) == [
            "precision",
            "accuracy_mean",
            "latency_ms_mean",
            "memory_mb_mean",
            "energy_proxy_j_mean",
            "accepted_ratio",
        ]
        assert table["precision"].tolist() == ["int8", "fp32", "fp16"]
        assert table.index.tolist() == [0, 1, 2]
        assert table["latency_ms_mean"].tolist()[:2] == [1.5, 5.0]
        assert table["accuracy_mean"].tolist()[:2] == pytest.approx([0.7, 0.8])
        assert table["memory_mb_mean"].tolist()[:2] == pytest.approx([0.1, 0.3])
        assert table["energy_proxy_j_mean"].tolist()[:2] == pytest.approx([0.015, 0.05])
        assert table["accepted_ratio"].tolist() == [1.0, 0.5, 0.0]

    def test_grouped_by_runtime_as_well(self):
        table = precision_tradeoff_table(self.frame, by=("runtime", "precision"))
        first = table.iloc[0]
        assert (first["runtime"], first["precision"]) == ("torch", "int8")
        assert len(table) == 5

    def test_an_empty_sweep_gives_an_empty_table(self):
        table = precision_tradeoff_table(self.frame.iloc[:0])
        assert table.empty
        assert "accepted_ratio" in table

    def test_a_missing_column_is_named(self):
        with pytest.raises(ValueError, match=r"needs the column.s. energy_proxy_j, accepted;"):
            precision_tradeoff_table(self.frame.drop(columns=["energy_proxy_j", "accepted"]))
