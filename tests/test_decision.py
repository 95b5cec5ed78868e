import json

import pandas as pd
import pytest

from edgeopt.decision import decide, find_baseline
from edgeopt.gates import Constraints, Gates, gate_table

NAN = float("nan")
COLUMNS = ["candidate", "accuracy", "latency_p50_ms", "memory_mb", "pruning_level", "precision"]
BASE = ("base", 0.90, 1.0, 0.10, 0.0, "fp32")


def sweep(*rows, **columns):
    frame = pd.DataFrame([BASE, *rows], columns=COLUMNS)
    return frame.assign(**{"active_budget_mb": 1.0, "status": "ok", "error": "", **columns})


def row(name, accuracy, latency, memory):
    return (name, accuracy, latency, memory, 0.5, "int8")


def recalls(**per_candidate):
    return pd.DataFrame(
        [
            (candidate, name, recall)
            for candidate, values in per_candidate.items()
            for name, recall in values.items()
        ],
        columns=["candidate", "class_name", "recall"],
    )


class TestGates:
    def test_limits_of_the_design_card_are_the_defaults(self):
        gates = Gates()
        assert (gates.accuracy_drop_good, gates.accuracy_drop_bad) == (0.02, 0.05)
        assert (gates.size_reduction_good, gates.latency_reduction_good) == (0.5, 0.3)
        assert gates.max_recall_drop == 0.10

    @pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
    def test_a_gate_is_a_share(self, value):
        with pytest.raises(ValueError, match=r"gate max_recall_drop is .* share from 0 to 1"):
            Gates(max_recall_drop=value)

    def test_good_is_not_above_bad(self):
        with pytest.raises(ValueError, match=r"accuracy_drop_good is 0.2; allowed: at most .* 0.1"):
            Gates(accuracy_drop_good=0.2, accuracy_drop_bad=0.1)

    @pytest.mark.parametrize(
        ("candidate", "verdict", "missed"),
        [
            (row("x", 0.88, 0.7, 0.05), "good", ""),  # every number exactly on its limit
            (row("x", 0.8799, 0.5, 0.05), "acceptable", "accuracy drop 2.01 points, allowed at mo"),
            (row("x", 0.85, 0.5, 0.05), "acceptable", "accuracy drop 5.00 points, allowed at mo"),
            (row("x", 0.84, 0.5, 0.05), "bad", "accuracy drop 6.00 points, allowed at most 5.00"),
            (row("x", 0.90, 0.8, 0.05), "acceptable", "latency reduction 20.0%, allowed at least"),
            (row("x", 0.90, 0.5, 0.06), "acceptable", "size reduction 40.0%, allowed at least 50"),
            (row("x", NAN, NAN, NAN), "bad", "accuracy drop is not available"),
        ],
    )
    def test_verdicts(self, candidate, verdict, missed):
        table = gate_table(sweep(candidate), baseline="base", gates=Gates())
        judged = table.set_index("candidate").loc["x"]
        assert judged["verdict"] == verdict
        assert judged["missed"].startswith(missed)
        assert bool(judged["missed"]) == bool(missed)

    def test_the_numbers_by_hand(self):
        table = gate_table(sweep(row("x", 0.87, 0.25, 0.02)), baseline="base", gates=Gates())
        drop, size, latency = table.iloc[1][
            ["accuracy_drop", "size_reduction", "latency_reduction"]
        ]
        assert (drop, size, latency) == pytest.approx((0.03, 0.8, 0.75))

    def test_a_class_that_falls_makes_it_bad_and_is_named(self):
        table = gate_table(
            sweep(row("x", 0.90, 0.5, 0.05)),
            baseline="base",
            gates=Gates(),
            recalls=recalls(base={"cat": 0.9, "dog": 0.9}, x={"cat": 1.0, "dog": 0.79}),
        )
        judged = table.iloc[1]
        assert judged["worst_recall_drop"] == pytest.approx(0.11)
        assert judged["verdict"] == "bad"
        assert "fall of recall of class 'dog' 11.00 points" in judged["missed"]

    def test_bad_input(self):
        frame = sweep(row("x", 0.9, 0.5, 0.05))
        with pytest.raises(ValueError, match="unknown baseline candidate 'y'; allowed: base, x"):
            gate_table(frame, baseline="y", gates=Gates())
        with pytest.raises(ValueError, match=r"gate_table needs the column.s. memory_mb"):
            gate_table(frame.drop(columns="memory_mb"), baseline="base", gates=Gates())
        with pytest.raises(ValueError, match=r"candidate.s. x repeat; allowed: each name once"):
            gate_table(pd.concat([frame, frame.iloc[1:]]), baseline="base", gates=Gates())
        with pytest.raises(ValueError, match=r"recalls lack the candidate.s. x"):
            gate_table(frame, baseline="base", gates=Gates(), recalls=recalls(base={"cat": 1.0}))


class TestConstraints:
    def test_unknown_kinds_are_refused(self):
        with pytest.raises(ValueError, match="unknown kind of memory 'ram'; allowed: weights, "):
            Constraints(memory="ram")
        with pytest.raises(ValueError, match="unknown kind of energy 'x'; allowed: proxy, model"):
            Constraints(energy="x")

    @pytest.mark.parametrize("value", [0, -1, NAN, float("inf")])
    def test_limits_are_positive(self, value):
        with pytest.raises(ValueError, match=r"constraint max_energy_j is .* above 0 and finite"):
            Constraints(max_energy_j=value)


class TestDecide:
    def test_the_fastest_good_candidate_wins_and_the_next_is_runner_up(self):
        frame = sweep(
            row("slow", 0.90, 0.6, 0.02), row("fast", 0.885, 0.4, 0.05), row("mid", 0.9, 0.5, 0.05)
        )
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "fast"
        assert decision.pick["verdict"] == "good"
        assert decision.runner_up["candidate"] == "mid"
        assert decision.baseline["candidate"] == "base"
        assert decision.reason == (
            "fast is the fastest of the 3 (out of 4) candidates that pass every gate and limit: "
            "median latency 0.4 ms (-60.0%), weights 51.2 KiB (-50.0%), "
            "accuracy 88.5% (-1.50 points), against base."
        )
        assert decision.what_it_would_take == (
            "For mid to win it would have to cut its median latency "
            "from 0.5 ms to below 0.4 ms (-20.0%)."
        )
        assert not decision.recall_checked

    def test_within_noise_the_smaller_then_the_more_accurate_wins(self):
        frame = sweep(
            row("fast", 0.89, 0.40, 0.05),
            row("small", 0.89, 0.41, 0.03),
            row("small-accurate", 0.90, 0.42, 0.03),
            row("smallest", 0.90, 0.50, 0.01),
        )
        frame = frame.assign(
            latency_p50_low_ms=frame["latency_p50_ms"] - 0.02,
            latency_p50_high_ms=frame["latency_p50_ms"] + 0.02,
        )
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "small-accurate"
        assert "the lightest of those as fast within noise as the fastest" in decision.reason
        assert decision.runner_up["candidate"] == "small"
        assert "raise its accuracy from 89.0% to above 90.0%" in decision.what_it_would_take

    def test_good_beats_a_faster_acceptable_one(self):
        frame = sweep(row("fast", 0.87, 0.1, 0.05), row("good", 0.90, 0.6, 0.05))
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "good"
        assert decision.what_it_would_take == (
            "For base to win it would have to meet what it misses "
            "(size reduction 0.0%, allowed at least 50.0%; "
            "latency reduction 0.0%, allowed at least 30.0%) "
            "and cut its median latency from 1 ms to below 0.6 ms (-40.0%)."
        )

    def test_without_a_good_one_little_loss_goes_before_speed(self):
        frame = sweep(row("lossy", 0.86, 0.1, 0.09), row("true", 0.895, 0.8, 0.09))
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "true"
        assert "none passes every gate" in decision.reason

    @pytest.mark.parametrize("baseline_recall", [0.90, 0.12])
    def test_98_percent_accuracy_with_12_percent_recall_is_refused(self, baseline_recall):
        frame = sweep(row("lesson", 0.98, 0.1, 0.01), row("fair", 0.97, 0.5, 0.04))
        frame.loc[0, "accuracy"] = 0.985
        table = recalls(
            base={"healthy": 0.99, "defect": baseline_recall},
            lesson={"healthy": 1.0, "defect": 0.12},
            fair={"healthy": 0.98, "defect": 0.88},
        )
        decision = decide(frame, gates=Gates(), recalls=table)
        assert decision.pick["candidate"] == "fair"
        assert decision.recall_checked
        refused = decision.rejected.set_index("candidate").loc["lesson", "reason"]
        assert "recall of class 'defect'" in refused
        assert decide(frame, gates=Gates()).pick["candidate"] == "lesson"  # only accuracy is seen

    @pytest.mark.parametrize(
        ("constraints", "pick"),
        [
            (Constraints(max_latency_p95_ms=0.65), "b"),
            (Constraints(max_memory_mb=0.02), "c"),
            (Constraints(max_memory_mb=2, memory="peak_rss"), "b"),
            (Constraints(max_energy_j=0.3), "c"),
            (Constraints(max_energy_j=3e-6, energy="model"), "b"),
            (Constraints(min_accuracy=0.895), "c"),
            (Constraints(), "a"),
        ],
    )
    def test_each_constraint_binds(self, constraints, pick):
        frame = sweep(
            row("a", 0.89, 0.4, 0.05), row("b", 0.89, 0.5, 0.03), row("c", 0.90, 0.6, 0.02)
        ).assign(
            latency_p95_ms=[2.0, 0.7, 0.6, 0.65],
            peak_rss_bytes=[2**22, 2**21 + 1, 2**21, 2**20],
            energy_proxy_j=[9.0, 0.5, 0.4, 0.3],
            energy_model_j=[9e-6, 4e-6, 3e-6, 2e-6],
        )
        assert decide(frame, gates=Gates(), constraints=constraints).pick["candidate"] == pick

    def test_the_active_memory_budget_binds(self):
        frame = sweep(row("a", 0.9, 0.4, 0.05), row("b", 0.9, 0.5, 0.03), active_budget_mb=0.04)
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "b"
        assert decision.rejected["candidate"].tolist() == ["a", "base"]  # the nearest first
        assert decision.rejected["shortfall"].tolist() == pytest.approx([0.25, 1.5])

    def test_nothing_fits_says_what_is_nearest_and_by_how_much(self):
        frame = sweep(row("a", 0.9, 0.4, 0.05), latency_p95_ms=[2.0, 0.55])
        decision = decide(frame, gates=Gates(), constraints=Constraints(max_latency_p95_ms=0.5))
        assert decision.pick is None
        assert decision.runner_up is None
        assert decision.reason == (
            "Nothing fits: a comes nearest, its largest miss is 10.0% of the limit: "
            "latency, 95th percentile 0.55 ms, allowed at most 0.5 ms."
        )

    def test_a_percentile_that_is_not_known_meets_no_limit(self):
        frame = sweep(latency_p95_ms=NAN)
        decision = decide(frame, gates=Gates(), constraints=Constraints(max_latency_p95_ms=0.5))
        assert "latency, 95th percentile is not available, allowed at most" in decision.reason

    def test_one_candidate_is_its_own_pick(self):
        decision = decide(sweep(), gates=Gates())
        assert decision.pick["candidate"] == "base"
        assert decision.runner_up is None
        assert "the baseline itself" in decision.reason
        assert decision.what_it_would_take.startswith("There is no runner-up")

    def test_all_failed(self):
        frame = sweep(
            ("x", NAN, NAN, NAN, 0.5, "int8"), status="failed", error="RuntimeError: no kernel"
        ).assign(accuracy=NAN, latency_p50_ms=NAN, memory_mb=NAN)
        decision = decide(frame, gates=Gates())
        assert decision.pick is None
        assert decision.reason.startswith("Nothing fits: none of the 2 candidates was measured")
        assert "RuntimeError: no kernel" in decision.reason
        assert decision.to_dict()["rejected"][0]["shortfall"] is None

    def test_a_failed_row_is_never_the_pick(self):
        frame = sweep(row("x", 0.9, 0.1, 0.01), status=["ok", "failed"], error=["", "boom"])
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "base"
        assert decision.rejected["reason"].tolist() == ["failed or not measured: boom"]

    def test_equal_candidates_keep_the_order_of_the_table(self):
        frame = sweep(row("a", 0.9, 0.5, 0.05), row("b", 0.9, 0.5, 0.05))
        decision = decide(frame, gates=Gates())
        assert (decision.pick["candidate"], decision.runner_up["candidate"]) == ("a", "b")
        assert decision.what_it_would_take.startswith("Nothing measured separates b")

    def test_the_dictionary_is_plain_json(self):
        frame = sweep(row("a", 0.9, 0.5, 0.05), row("b", 0.5, 0.5, 0.05), latency_p95_ms=NAN)
        decided = decide(frame, gates=Gates()).to_dict()
        assert json.loads(json.dumps(decided, allow_nan=False)) == decided
        assert decided["pick"]["latency_p95_ms"] is None
        assert not [key for key in decided["pick"] if key.startswith("_")]

    def test_bad_input(self):
        with pytest.raises(ValueError, match="the sweep has no rows"):
            decide(sweep().iloc[:0], gates=Gates())
        with pytest.raises(ValueError, match=r"decide needs the column.s. active_budget_mb"):
            decide(sweep().drop(columns="active_budget_mb"), gates=Gates())
        with pytest.raises(ValueError, match=r"decide needs the column.s. latency_p95_ms"):
            decide(sweep(), gates=Gates(), constraints=Constraints(max_latency_p95_ms=1))
        with pytest.raises(
            ValueError, match=r"no candidate has pruning_level 0 and precision fp32"
        ):
            decide(sweep(pruning_level=0.5), gates=Gates())

    def test_the_baseline_is_the_first_runtime_of_the_schema(self):
        frame = sweep(("torch-base", 0.9, 1.0, 0.1, 0.0, "fp32"), runtime=["openvino", "torch"])
        assert find_baseline(frame) == "torch-base"
        failed = frame.assign(status=["ok", "failed"])
        assert find_baseline(failed) == "base"
