import pandas as pd
import pytest

from edgeopt.hardware.tradeoffs import precision_ratios, precision_tradeoff_table
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

    def test_an_empty_sweep_gives_an_empty_table(self):
        table = precision_tradeoff_table(self.frame.iloc[:0])
        assert table.empty
        assert "accepted_ratio" in table

    def test_a_missing_column_is_named(self):
        with pytest.raises(ValueError, match=r"needs the column.s. energy_proxy_j, accepted;"):
            precision_tradeoff_table(self.frame.drop(columns=["energy_proxy_j", "accepted"]))


class TestPrecisionRatios:
    # int8-mixed was needed by the large network only, which alone is four times as slow.
    frame = pd.DataFrame(
        [
            ("small", 0.0, "torch", "fp32", 1.0, 4.0),
            ("small", 0.0, "torch", "int8", 0.5, 1.0),
            ("large", 0.0, "torch", "fp32", 4.0, 8.0),
            ("large", 0.0, "torch", "int8", 8.0, 2.0),
            ("large", 0.0, "torch", "int8-mixed", 3.0, 4.0),
            ("large", 0.5, "torch", "int8", 9.0, 1.0),  # its fp32 failed
            ("large", 0.5, "torch", "fp32", NAN, NAN),
        ],
        columns=["model", "pruning_level", "runtime", "precision", "latency_p50_ms", "memory_mb"],
    )

    def test_ratios_are_of_the_same_network_by_hand(self):
        table = precision_ratios(self.frame).set_index("precision")
        assert table["candidates"].to_dict() == {"int8": 2, "int8-mixed": 1}
        # sqrt(0.5 * 2) and 3 / 4; a quarter of the weights, and half
        assert table["latency_ratio"].to_dict() == pytest.approx({"int8": 1, "int8-mixed": 0.75})
        assert table["weights_ratio"].to_dict() == pytest.approx({"int8": 0.25, "int8-mixed": 0.5})

    def test_without_fp32_nothing_is_compared(self):
        with pytest.raises(ValueError, match="no fp32 row to compare with; there are: int8"):
            precision_ratios(self.frame[self.frame["precision"] == "int8"])
        fp32 = precision_ratios(self.frame[self.frame["precision"] == "fp32"])
        assert fp32.empty
        assert "latency_ratio" in fp32
