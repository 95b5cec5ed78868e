import json

import numpy as np
import pandas as pd
import pytest

from edgeopt.decision.answers import Answers
from edgeopt.decision.choice import decide, find_baseline
from edgeopt.decision.gates import Constraints, Gates, gate_table

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
        assert (gates.max_recall_drop, gates.min_recall) == (0.10, 0.20)
        assert (gates.gate_confidence, gates.latency_tie_cap) == (0.95, 0.05)

    @pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
    def test_a_gate_is_a_share(self, value):
        with pytest.raises(ValueError, match=r"max_recall_drop\s+.* than or equal to"):
            Gates(max_recall_drop=value)

    def test_gate_confidence_is_below_one(self):
        with pytest.raises(ValueError, match=r"(?s)gate_confidence.*less than 1"):
            Gates(gate_confidence=1)

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

    def test_decide_says_where_every_candidate_stands_and_what_decided_it(self):
        data = sweep(
            row("fast", 0.90, 0.2, 0.02),
            row("next", 0.90, 0.4, 0.02),
            row("third", 0.90, 0.45, 0.02),
            row("slow", 0.90, 0.9, 0.02),
            row("wrong", 0.70, 0.1, 0.02),
            row("gone", NAN, NAN, NAN),
        )
        found = decide(data, gates=Gates()).standings.set_index("candidate")
        assert found["standing"].to_dict() == {
            "base": "acceptable",
            "fast": "pick",
            "next": "runner-up",
            "third": "good",
            "slow": "acceptable",
            "wrong": "refused",
            "gone": "failed",
        }
        assert found.loc[["fast", "next", "third"], "decided_by"].tolist() == ["", "", ""]
        assert found.loc["slow", "decided_by"].startswith("latency reduction 10.0%")
        assert found.loc["wrong", "decided_by"].startswith("accuracy drop 20.00 points")
        heavy = decide(data.assign(active_budget_mb=0.05), gates=Gates()).standings
        assert heavy.set_index("candidate").loc["base", "standing"] == "over budget"
        full = decide(data.assign(active_budget_mb=0.02), gates=Gates()).standings
        assert full.set_index("candidate").loc["wrong", "standing"] == "refused"

    def test_the_numbers_by_hand(self):
        data = sweep(row("x", 0.87, 0.25, 0.02))
        data["latency_p50_ms"] *= 3  # a baseline of 1 would hide a product in place of a ratio
        table = gate_table(data, baseline="base", gates=Gates())
        drop, size, latency = table.iloc[1][
            ["accuracy_drop", "size_reduction", "latency_reduction"]
        ]
        assert (drop, size, latency) == pytest.approx((0.03, 0.8, 0.75))
        assert table.columns[: data.shape[1]].tolist() == data.columns.tolist()

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

    def test_gate_table_says_within_which_gate_the_whole_interval_lies(self):
        ends = {"surely": (0.010, 0.02), "about": (0.015, 0.03), "open": (0.03, 0.06)}
        columns = ["candidate", "gate", "class_name", "images", "value", "low", "high"]
        intervals = pd.DataFrame(
            [(name, "accuracy_drop", "", 99, 0.02, *own) for name, own in ends.items()],
            columns=columns,
        )
        frame = sweep(*[row(name, 0.88, 0.5, 0.05) for name in ends])
        table = gate_table(frame, baseline="base", gates=Gates(), intervals=intervals)
        within = table.set_index("candidate")["accuracy_within"]
        assert within.drop("base").tolist() == pytest.approx([0.02, 0.05, NAN], nan_ok=True)

    def test_rules_say_how_accuracy_is_judged(self):
        def told(gates):
            return dict(gates.rules(constraints=Constraints(), active_memory_budget_mb=1.0))

        assert told(Gates())["accuracy and recalls"].startswith("judged by paired intervals at 95.")
        assert told(Gates(gate_confidence=0))["accuracy and recalls"] == "judged by the estimates"
        assert told(Gates())["as fast within noise"] == "at most 5.0% above the fastest"

    def test_bad_input(self):
        frame = sweep(row("x", 0.9, 0.5, 0.05))
        with pytest.raises(ValueError, match="unknown baseline candidate 'y'; allowed: base, x"):
            gate_table(frame, baseline="y", gates=Gates())
        with pytest.raises(ValueError, match=r"decide needs the column.s. memory_mb"):
            decide(frame.drop(columns="memory_mb"), gates=Gates())
        with pytest.raises(ValueError, match=r"candidate.s. x repeat; allowed: each name once"):
            gate_table(pd.concat([frame, frame.iloc[1:]]), baseline="base", gates=Gates())
        with pytest.raises(ValueError, match=r"recalls lack the candidate.s. x"):
            gate_table(frame, baseline="base", gates=Gates(), recalls=recalls(base={"cat": 1.0}))


class TestConstraints:
    def test_unknown_kinds_are_refused(self):
        with pytest.raises(ValueError, match=r"(?s)memory.*'weights', .*input_value='ram'"):
            Constraints(memory="ram")
        with pytest.raises(ValueError, match=r"(?s)energy.*'proxy' or 'model' .*input_value='x'"):
            Constraints(energy="x")

    @pytest.mark.parametrize("value", [0, -1, NAN, float("inf")])
    def test_limits_are_positive(self, value):
        with pytest.raises(ValueError, match=r"(?s)max_energy_j.*(greater than 0|finite)"):
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
            "median latency 0.4 ms (\N{MINUS SIGN}60.0%), weights 51.2 KiB (\N{MINUS SIGN}50.0%), "
            "accuracy 88.5% (\N{MINUS SIGN}1.50 points), against base."
        )
        assert decision.what_it_would_take == (
            "For mid to win it would have to cut its median latency "
            "from 0.5 ms to below 0.4 ms (\N{MINUS SIGN}20.0%)."
        )
        assert not decision.recall_checked

    def test_a_gain_over_the_baseline_has_a_plus(self):
        decision = decide(sweep(row("fast", 0.91, 0.4, 0.05)), gates=Gates())
        assert "accuracy 91.0% (+1.00 points), against base" in decision.reason

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
        assert decision.what_it_would_take.endswith(
            "raise its accuracy from 89.0% to above 90.0% (+1.1%)."
        )

    @pytest.mark.parametrize(("accuracy", "target"), [(0.89, 0.381), (0.90, 0.4), (0.91, 0.42)])
    def test_of_two_as_heavy_the_accuracy_says_how_fast_is_fast_enough(self, accuracy, target):
        def decided(latency):
            frame = sweep(row("fast", 0.90, 0.40, 0.05), row("next", accuracy, latency, 0.05))
            ends = {"low": -0.02, "high": 0.02}
            wide = {f"latency_p50_{end}_ms": frame["latency_p50_ms"] + d for end, d in ends.items()}
            return decide(frame.assign(**wide), gates=Gates())

        # 5% are taken for noise: less accurate it has to be faster, more accurate it may be slower
        assert f"to below {target} ms (" in decided(0.5).what_it_would_take
        assert decided(target - 0.001).pick["candidate"] == "next"
        assert decided(target + 0.001).pick["candidate"] == "fast"

    def test_good_beats_a_faster_acceptable_one(self):
        frame = sweep(row("fast", 0.87, 0.1, 0.05), row("good", 0.90, 0.6, 0.05))
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "good"
        assert decision.what_it_would_take == (
            "For base to win it would have to meet what it misses "
            "(size reduction 0.0%, allowed at least 50.0%; "
            "latency reduction 0.0%, allowed at least 30.0%) "
            "and cut its median latency from 1 ms to below 0.6 ms (\N{MINUS SIGN}40.0%)."
        )

    def test_without_a_good_one_little_loss_goes_before_speed(self):
        frame = sweep(row("lossy", 0.86, 0.1, 0.09), row("true", 0.895, 0.8, 0.09))
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "true"
        assert "none is good by every gate" in decision.reason

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
        assert decision.standings["standing"].tolist() == ["refused"]  # it ran

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
        assert decision.reason.startswith("Nothing fits: none of the 2 candidates could be judged")
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

    def test_the_baseline_of_several_networks_is_that_of_the_most_accurate_one(self):
        rows = [("a", "torch", 0.8), ("a", "onnxruntime", 0.9), ("b", "onnxruntime", 0.85)]
        frame = pd.DataFrame(rows, columns=["model", "runtime", "accuracy"])
        frame["candidate"] = frame["model"] + "-" + frame["runtime"]
        frame = frame.assign(pruning_level=0.0, precision="fp32")
        assert find_baseline(frame) == "b-onnxruntime"  # 0.80 is what a is compared by
        assert find_baseline(frame[frame["model"] == "a"]) == "a-torch"


def timed(rounds=20, **latencies):
    """Samples of one call a round, in rounds that slow all candidates alike by up to 60%."""
    slow = 1 + 0.6 * np.random.default_rng(0).random(rounds)
    return pd.concat(
        pd.DataFrame(
            {"candidate": name, "round": np.arange(rounds), "latency_ms": slow * np.array(values)}
        )
        for name, values in latencies.items()
    )


def medians(frame, samples):
    own = samples.groupby("candidate")["latency_ms"].median()
    return frame.assign(latency_p50_ms=frame["candidate"].map(own))


class TestTies:
    noisy = sweep(row("fast", 0.89, 1.0, 0.05), row("rival", 0.89, 2.9, 0.05 - 2**-20)).assign(
        latency_p50_ms=[9.0, 1.0, 2.9],
        latency_p50_low_ms=[8.9, 0.9, 2.85],
        latency_p50_high_ms=[9.1, 3.0, 2.95],
    )

    def test_decide_gives_a_noisy_fastest_candidate_its_win(self):
        assert decide(self.noisy, gates=Gates()).pick["candidate"] == "fast"
        spread = np.tile([0.5, 1.0, 1.0, 5.0], 5)  # its ratio to the rival is not settled
        samples = timed(base=9 * np.ones(20), fast=spread, rival=2.9 * np.ones(20))
        decision = decide(medians(self.noisy, samples), gates=Gates(), samples=samples)
        assert decision.pick["candidate"] == "fast"

    def test_decide_ties_up_to_the_cap_what_is_not_measurably_slower(self):
        gates = {cap: Gates(latency_tie_cap=cap) for cap in (0, 0.049, 0.05, 1)}
        close = self.noisy.assign(latency_p50_ms=[9.0, 1.0, 1.05], latency_p50_low_ms=0.9)
        picks = {cap: decide(close, gates=own).pick["candidate"] for cap, own in gates.items()}
        assert picks == {0: "fast", 0.049: "fast", 0.05: "rival", 1: "rival"}
        exact = close.assign(latency_p50_ms=[9.0, 1.0, 1.0])
        assert decide(exact, gates=gates[0]).pick["candidate"] == "rival"

    def test_decide_takes_the_fastest_of_what_is_alike_in_all_else(self):
        frame = sweep(row("next", 0.89, 0.41, 0.05), row("fast", 0.89, 0.40, 0.05))
        frame = frame.assign(latency_p50_low_ms=0.39, latency_p50_high_ms=0.42)
        assert decide(frame, gates=Gates()).pick["candidate"] == "fast"

    def test_decide_compares_in_the_same_rounds(self):
        # 2% apart: every round says so, or half of the rounds say the contrary
        frame = sweep(row("fast", 0.89, 1, 0.05), row("light", 0.89, 1, 0.04))
        one = np.ones(20)
        rounds = timed(base=9 * one, fast=one, light=1.02 * one)
        always = decide(medians(frame, rounds), gates=Gates(), samples=rounds)
        assert always.pick["candidate"] == "fast"
        wave = np.tile([0.9, 1.14], 10)
        rounds = timed(base=9 * one, fast=one, light=wave)
        unsure = decide(medians(frame, rounds), gates=Gates(), samples=rounds)
        assert unsure.pick["candidate"] == "light"
        assert "cut its weights from 51.2 KiB to below 40.96 KiB" in unsure.what_it_would_take

    def test_decide_ties_nothing_in_too_few_rounds(self):
        frame = sweep(row("fast", 0.89, 1, 0.05), row("light", 0.89, 1, 0.04))
        rounds = timed(5, base=[9] * 5, fast=[1, 1, 1, 1, 1], light=[1.01, 0.9, 1.01, 1.2, 1.01])
        assert decide(medians(frame, rounds), gates=Gates(), samples=rounds).pick["candidate"] == (
            "fast"
        )

    def test_decide_asks_no_more_speed_of_a_runner_up_that_is_faster(self):
        frame = sweep(row("good", 0.90, 0.6, 0.05), row("fast", 0.89, 0.1, 0.09))
        assert decide(frame, gates=Gates()).what_it_would_take == (
            "For fast to win it would have to meet what it misses "
            "(size reduction 10.0%, allowed at least 50.0%)."
        )

    def test_decide_asks_a_lighter_runner_up_for_a_tie_and_a_heavier_one_for_the_lead(self):
        light = sweep(row("fast", 0.89, 0.4, 0.05), row("next", 0.89, 0.5, 0.04))
        assert "from 0.5 ms to below 0.4 ms" in decide(light, gates=Gates()).what_it_would_take
        spread = light.assign(
            latency_p50_low_ms=light["latency_p50_ms"] * 0.98, latency_p50_high_ms=[1.1, 0.404, 0.6]
        )
        # interval of the ratio from 0.49 / 0.404: it reaches 1 when the median is 0.404 / 0.98
        lighter = decide(spread, gates=Gates()).what_it_would_take
        assert "from 0.5 ms to below 0.4122 ms (\N{MINUS SIGN}17.6%)" in lighter
        heavier = decide(spread.assign(memory_mb=[0.1, 0.04, 0.05]), gates=Gates())
        assert "from 0.5 ms to below 0.3881 ms" in heavier.what_it_would_take
        capped = decide(spread, gates=Gates(latency_tie_cap=0.01)).what_it_would_take
        assert "to below 0.404 ms" in capped


LABELS = np.repeat([0, 1], [4900, 100])


def right(healthy, defect, *, shuffle=None):
    """Right answers on 4,900 healthy and 100 defect images, the first of each or any of them."""
    rows = np.concatenate([np.arange(4900) < healthy, np.arange(100) < defect])
    if shuffle is not None:
        rng = np.random.default_rng(shuffle)
        rows = np.concatenate([rng.permutation(part) for part in np.split(rows, [4900])])
    return rows


def judged(gates=None, **correct):
    """Decide between candidates that are one faster and lighter than the other, base the last."""
    answers = Answers(correct, LABELS, ["healthy", "defect"])
    shares = {name: np.mean(rows) for name, rows in correct.items()}
    others = [name for name in correct if name != "base"]
    rows = [row(n, shares[n], 0.1 * i + 0.1, 0.01 * i + 0.01) for i, n in enumerate(others)]
    frame = sweep(*rows)
    frame.loc[0, "accuracy"] = shares["base"]
    return decide(frame, gates=gates or Gates(), answers=answers)


class TestThreeVerdicts:
    def test_decide_refuses_only_what_images_prove_to_be_broken(self):
        # 5.1 points lost on 5,000 images: the estimate is beyond the gate, the interval is not
        open_, broken = right(4545, 95), right(4300, 95)
        decision = judged(base=right(4800, 95), open=open_, broken=broken)
        assert decision.rejected["candidate"].tolist() == ["broken"]
        assert decision.rejected["reason"][0].startswith("accuracy drop 10.00 points (at least 9.")
        strict = judged(Gates(gate_confidence=0), base=right(4800, 95), open=open_, broken=broken)
        assert strict.rejected["candidate"].tolist() == ["open", "broken"]
        assert strict.rejected["reason"][0] == (
            "accuracy drop 5.10 points, allowed at most 5.00 points"
        )

    def test_decide_takes_settled_before_not_settled_of_one_class(self):
        # 1.9 points lost or 1.0: both good, the faster one not beyond doubt
        decision = judged(base=right(4800, 95), open=right(4705, 95), sure=right(4750, 95))
        assert [decision.pick["candidate"], decision.runner_up["candidate"]] == ["sure", "open"]
        assert "of the 1 (out of 3) candidates that pass every gate" in decision.reason
        assert "Not settled" not in decision.reason
        assert decision.reason.endswith(" Faster, but not settled: open.")
        slower = judged(base=right(4800, 95), sure=right(4750, 95), open=right(4705, 95))
        assert slower.pick["candidate"] == "sure"
        assert "not settled" not in slower.reason
        alone = judged(base=right(4800, 95), open=right(4705, 95))
        assert "of the 1 (out of 2) candidates that break no gate and no limit" in alone.reason
        assert "Not settled" in alone.reason
        assert decision.what_it_would_take.startswith(
            "For open to win it would have to have settled what is open (accuracy drop 1.90 points "
        )
        assert decision.pick["accuracy_within"] == 0.02
        assert decision.pick["accuracy_drop_low"] < 0.01 < decision.pick["accuracy_drop_high"]
        estimates = judged(
            Gates(gate_confidence=0),
            base=right(4800, 95),
            open=right(4705, 95),
            sure=right(4750, 95),
        )
        assert estimates.pick["candidate"] == "open"
        assert "accuracy_within" not in estimates.pick

    def test_decide_names_three_of_the_faster_ones_that_are_not_settled(self):
        unsettled = {name: right(4705, 95) for name in "abcd"}
        decision = judged(base=right(4800, 95), **unsettled, sure=right(4750, 95))
        assert decision.pick["candidate"] == "sure"
        assert decision.reason.endswith("not settled: a, b, c and 1 more.")

    def test_decide_names_once_what_is_not_settled_and_the_images_that_would_settle_it(self):
        decision = judged(base=right(4800, 40), open=right(4705, 35))
        assert decision.pick["candidate"] == "open"
        text = decision.reason.partition("Not settled: ")[2]
        assert text.count("fall of recall of class 'defect' 5.00 points (up to ") == 1
        assert text.count("accuracy drop 2.00 points (up to ") == 1
        assert "images of 'defect' would settle it" in text
        assert decision.reason.count("images") == 2

    def test_decide_prefers_a_better_class_even_when_it_is_not_settled(self):
        decision = judged(base=right(4800, 95), open=right(4705, 95), lossy=right(4640, 95))
        assert decision.pick["candidate"] == "open"
        assert "about " in decision.pick["not_settled"]
        assert decision.runner_up["verdict"] == "acceptable"

    @pytest.mark.parametrize("defect", [90, 60])
    def test_decide_refuses_98_percent_accuracy_with_12_percent_recall(self, defect):
        decision = judged(
            base=right(4888, defect), lesson=right(4888, 12), fair=right(4850, defect - 2)
        )
        assert decision.pick["candidate"] == "fair"
        assert decision.rejected["candidate"].tolist() == ["lesson"]
        assert "class 'defect'" in decision.rejected["reason"][0]

    def test_decide_refuses_12_percent_recall_that_the_baseline_has_too(self):
        # if 20 were true, chance alone would give 12 of 100 once in 40 times, 8 once in 1,000
        few = judged(base=right(4888, 12), lesson=right(4888, 12), fair=right(4888, 60))
        assert few.pick["candidate"] == "fair"
        assert "recall of class 'defect' 12.0% (at least" in few.runner_up["not_settled"]
        many = judged(base=right(4888, 8), lesson=right(4888, 8), fair=right(4888, 60))
        assert set(many.rejected["candidate"]) == {"lesson", "base"}
        estimates = judged(Gates(gate_confidence=0), base=right(4888, 12), lesson=right(4888, 12))
        assert estimates.pick is None

    def test_decide_judges_the_constraint_on_accuracy_by_its_interval(self):
        correct = {"base": right(4800, 95), "net": right(4600, 95)}
        answers = Answers(correct, LABELS, ["healthy", "defect"])
        frame = sweep(row("net", 0.939, 0.1, 0.01)).assign(accuracy=[0.979, 0.939])
        verdicts = {
            bound: decide(
                frame,
                gates=Gates(accuracy_drop_good=0.05),
                answers=answers,
                constraints=Constraints(min_accuracy=bound),
            )
            for bound in (0.93, 0.94, 0.95)
        }
        assert verdicts[0.93].pick["not_settled"] == ""
        assert (
            "validation accuracy 93.9% (at least 93.2%), allowed at least 94.0%"
            in (verdicts[0.94].pick["not_settled"])
        )
        assert verdicts[0.95].rejected["candidate"].tolist() == ["net"]

    def test_decide_is_not_sure_of_a_candidate_that_lacks_a_seed(self):
        answers = Answers(
            {"base": right(4800, 95), "whole": right(4800, 95)}, LABELS, ["healthy", "defect"]
        )
        frame = sweep(row("partial", 0.979, 0.1, 0.01), row("whole", 0.979, 0.2, 0.02))
        frame.loc[0, "accuracy"] = 0.979
        table = recalls(
            **{name: {"healthy": 0.98, "defect": 0.95} for name in ("base", "partial", "whole")}
        )
        decision = decide(frame, gates=Gates(), answers=answers, recalls=table)
        assert decision.pick["candidate"] == "whole"
        assert "did not run with every seed" in decision.runner_up["not_settled"]

    def test_decide_says_that_estimates_decide_where_no_baseline_has_every_seed(self):
        frame = sweep(row("whole", 0.979, 0.2, 0.02))
        names = ("base", "whole")
        table = recalls(**{name: {"healthy": 0.98, "defect": 0.95} for name in names})
        options = {"gates": Gates(), "recalls": table}
        said = "base did not run with every seed: estimates decide, not intervals."
        partial = Answers({"whole": right(4800, 95)}, LABELS, ["healthy", "defect"])
        assert decide(frame, answers=partial, **options).reason.endswith(said)
        both = Answers(dict.fromkeys(names, right(4800, 95)), LABELS, ["healthy", "defect"])
        assert said not in decide(frame, answers=both, **options).reason

    def test_decide_uses_all_seeds(self):
        # the first seed alone proves 6.4 points, the mean of the three does not
        base = np.stack([right(4800, 95)] * 3)
        net = np.stack([right(healthy, 95) for healthy in (4480, 4600, 4640)])
        alone = judged(base=base[0], net=net[0])
        assert alone.rejected["candidate"].tolist() == ["net"]
        assert judged(base=base, net=net).rejected.empty


class TestMissingNumbers:
    def test_decide_without_a_measured_baseline_fits_nothing_and_says_why(self):
        frame = sweep(row("net", 0.9, 0.1, 0.01), status=["failed", "ok"], error=["boom", ""])
        frame.loc[0, ["accuracy", "latency_p50_ms", "memory_mb"]] = NAN
        decision = decide(frame, gates=Gates(), recalls=recalls(net={"cat": 0.9}))
        assert decision.pick is None
        assert decision.reason == (
            "Nothing fits: none of the 2 candidates could be judged in full; "
            "base: failed or not measured: boom."
        )
        assert "accuracy drop is not available" in decision.rejected["reason"][1]
        assert decision.baseline["accuracy"] is None

    def test_decide_writes_no_nan_beside_a_baseline_that_was_scored_but_not_timed(self):
        frame = sweep(row("net", 0.88, 0.1, 0.01), status=["failed", "ok"], error=["slow", ""])
        frame.loc[0, "latency_p50_ms"] = NAN
        decision = decide(frame, gates=Gates())
        assert decision.pick["candidate"] == "net"
        assert "median latency 0.1 ms (baseline not known)" in decision.reason
        assert "nan" not in (decision.reason + decision.what_it_would_take).lower()
        assert "accuracy 88.0% (\N{MINUS SIGN}2.00 points)" in decision.reason

    @pytest.mark.parametrize(
        ("over", "miss", "found"),
        [(1, "less than 0.1%", "51,201 bytes"), (26, "0.1%", "50.03 KiB"), (512, "1.0%", "50.5 K")],
    )
    def test_decide_writes_bytes_over_the_budget_so_that_they_show(self, over, miss, found):
        budget, weights = 51_200 / 2**20, (51_200 + over) / 2**20
        frame = sweep(row("net", 0.9, 0.1, weights), active_budget_mb=budget)
        assert decide(frame, gates=Gates()).reason.startswith(
            f"Nothing fits: net comes nearest, its largest miss is {miss} of the limit: "
            f"weights {found}"
        )


def test_the_baseline_is_one_that_ran_with_every_seed():
    frame = sweep(("whole", 0.90, 0.9, 0.10, 0.0, "fp32"), row("small", 0.90, 0.5, 0.01))
    right = np.arange(5000) < 4500
    answers = Answers({"whole": right, "small": right}, LABELS, ["healthy", "defect"])
    assert find_baseline(frame) == "base"  # for which a training or an export failed
    own = recalls(**{name: {"healthy": 0.9, "defect": 0.9} for name in frame["candidate"]})
    decision = decide(frame, gates=Gates(), answers=answers, recalls=own)
    assert decision.baseline["candidate"] == "whole"
    assert decide(frame, gates=Gates()).baseline["candidate"] == "base"
