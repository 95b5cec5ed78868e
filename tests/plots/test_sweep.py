import inspect

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Annotation

from edgeopt import plots
from edgeopt.data.splits import Split
from edgeopt.decision.budgets import apply_budgets
from edgeopt.decision.frontier import pareto_frontier
from edgeopt.hardware.tradeoffs import precision_ratios
from edgeopt.plots import annotations as labels
from edgeopt.plots import style
from edgeopt.runtimes.registry import RUNTIMES, runtime_named
from edgeopt.schema import PRECISIONS, REQUESTED_PRECISIONS
from edgeopt.study.tables import FIGURE_STYLE
from tests.artifacts import PRECISIONS_OF_RUNTIME

NAN = float("nan")
LEVELS = (0.0, 0.25, 0.5, 0.7)


@pytest.fixture(autouse=True)
def figures():
    mpl.use("Agg")
    with mpl.rc_context(fname=FIGURE_STYLE):
        yield
    plt.close("all")


@pytest.fixture
def sweep():
    rng = np.random.default_rng(3)
    rows = [
        {"pruning_level": level, "runtime": runtime, "precision": precision}
        for level in LEVELS
        for runtime, precisions in PRECISIONS_OF_RUNTIME.items()
        for precision in precisions
    ]
    frame = pd.DataFrame(rows)
    size = frame["precision"].map({"fp32": 4, "bf16": 4, "fp16": 2}).fillna(1)
    latency = rng.uniform(0.02, 0.5, len(frame)).round(4)
    accuracy = rng.uniform(0.8, 0.9, len(frame)).round(4)
    frame = frame.assign(
        candidate=[f"c{i}" for i in range(len(frame))],
        accuracy=accuracy,
        accuracy_low=accuracy - 0.01,
        accuracy_high=accuracy + 0.01,
        agreement=0.99,
        latency_ms=latency,
        latency_p50_ms=latency,
        memory_mb=(1 - frame["pruning_level"]) * size * 0.02,
        weight_bytes=(1 - frame["pruning_level"]) * size * 0.02 * 2**20,
        energy_proxy_j=latency * 5e-3,
        energy_model_j=size * 1e-6,
        status="ok",
    )
    return apply_budgets(frame, memory_budgets_mb=[0.02, 0.06], active_memory_budget_mb=0.06)


@pytest.fixture
def samples(sweep):
    rng = np.random.default_rng(0)
    frames = [
        pd.DataFrame(
            {
                "candidate": row.candidate,
                "round": np.repeat(range(4), 5),
                "latency_ms": row.latency_ms * rng.uniform(0.9, 1.2, 20),
            }
        )
        for row in sweep.itertuples()
    ]
    return pd.concat(frames, ignore_index=True)


def marks(ax):
    """(x, y, fill or None) of every marker that is drawn alone."""
    return [
        (
            *np.ravel(c.get_offsets()),
            to_hex(c.get_facecolor()[0]) if len(c.get_facecolor()) else None,
        )
        for c in ax.collections
        if len(c.get_offsets()) == 1 and hasattr(c, "get_sizes") and len(c.get_sizes())
    ]


def texts(ax):
    return [text.get_text() for text in ax.texts]


def key(ax):
    return {t.get_text() for legend in ax.figure.legends for t in legend.get_texts()} - {" "}


class TestStyle:
    def test_every_precision_and_runtime_has_its_own_look(self):
        assert len({p.color for p in PRECISIONS.values()}) == len(PRECISIONS)
        assert len({p.hatch for p in PRECISIONS.values()}) == len(PRECISIONS)
        assert len({p.line for p in PRECISIONS.values()}) == len(PRECISIONS)
        assert len({runtime_named(name).marker for name in RUNTIMES}) == len(RUNTIMES)

    def test_precisions_differ_in_greyscale(self):
        grey = sorted(
            255 * np.dot(to_rgb(color), (0.299, 0.587, 0.114))
            for color in [p.color for p in PRECISIONS.values()]
        )
        assert min(np.diff(grey)) > 25

    def test_fonts_are_legible_on_a_phone(self):
        parameters = mpl.rc_params_from_file(FIGURE_STYLE, use_default_template=False)
        sizes = [
            value
            for name, value in parameters.items()
            if name.endswith("size") and "fig" not in name
        ]
        assert min(sizes) >= 10
        assert parameters["figure.figsize"][0] == style.WIDTH == 6.4
        assert parameters["axes.edgecolor"] == style.QUIET

    @pytest.mark.parametrize(("unit", "expected"), [("", "0.002"), ("J", "2 mJ")])
    def test_log_axis_writes_plain_numbers_or_si_prefixes(self, unit, expected):
        ax = style.new_axes(None)
        ax.plot([0.001, 0.01], [1, 2])
        style.log_axis(ax.xaxis, unit=unit)
        assert ax.xaxis.get_major_formatter()(0.002) == expected
        assert ax.get_xscale() == "log"


class TestLabels:
    def test_point_labels_cover_no_mark_and_no_label_and_stay_inside(self):
        ax = style.new_axes(None)
        points = [(0.4 + 0.01 * i, 0.5 + 0.02 * i, f"candidate {i}") for i in range(6)]
        places = [(x, y) for x, y, _ in points]
        ax.scatter(*zip(*places, strict=True))
        ax.set(xlim=(0, 1), ylim=(0, 1))
        notes = labels.label_points(ax, points, avoid=places)
        ax.figure.draw_without_rendering()
        boxes = [mpl.text.Text.get_window_extent(note) for note in notes]
        for i, box in enumerate(boxes):
            assert box.count_overlaps(boxes[:i]) == 0
            assert not any(box.contains(*spot) for spot in ax.transData.transform(places))
            assert ax.get_window_extent().contains(*box.min)
            assert ax.get_window_extent().contains(*box.max)

    def test_line_labels_at_one_height_are_pushed_apart(self):
        ax = style.new_axes(None)
        ax.set(xlim=(0, 1), ylim=(0, 1))
        ends = [(1, 0.5, name, "black") for name in "abcd"]
        notes = labels.label_lines(ax, ends)
        heights = sorted(note.get_window_extent().y0 for note in notes)
        assert min(np.diff(heights)) >= labels.FONT_SIZE * ax.figure.dpi / 72


class TestFrontier:
    def test_points_labels_and_fill_are_those_of_the_table(self, sweep):
        ax = plots.frontier(sweep, "latency_p50_ms")
        drawn = marks(ax)
        assert sorted((x, y) for x, y, _ in drawn) == sorted(
            zip(sweep["latency_p50_ms"], sweep["accuracy"], strict=True)
        )
        assert sum(fill is None for *_, fill in drawn) == (~sweep["accepted"]).sum()
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Latency, median (ms)", "Validation accuracy")
        assert key(ax) >= {
            *REQUESTED_PRECISIONS,
            *(runtime_named(name).title for name in RUNTIMES),
            "in budget",
            "over budget",
        }

    def test_a_filled_marker_has_the_colour_of_its_precision(self, sweep):
        fills = {(x, y): fill for x, y, fill in marks(plots.frontier(sweep))}
        for row in sweep[sweep["accepted"]].itertuples():
            wanted = to_hex(PRECISIONS[row.precision].color)
            assert fills[row.latency_p50_ms, row.accuracy] == wanted

    def test_the_line_is_the_frontier_and_each_point_on_it_is_numbered(self, sweep):
        front = pareto_frontier(sweep, "latency_p50_ms")
        ax = plots.frontier(sweep)
        (line,) = [line for line in ax.lines if line.get_drawstyle() == "steps-post"]
        assert line.get_xdata().tolist() == front["latency_p50_ms"].tolist()
        assert line.get_ydata().tolist() == front["accuracy"].tolist()
        tags = [str(n) for n, _ in enumerate(front["candidate"], start=1)]
        assert texts(ax) == tags
        assert key(ax) >= {f"{n}: {name}" for n, name in zip(tags, front["candidate"], strict=True)}

    def test_wilson_bars_are_those_of_the_table(self, sweep):
        ax = plots.frontier(sweep.iloc[:1])
        (bar,) = [c for c in ax.collections if isinstance(c, mpl.collections.LineCollection)]
        x, low, high = sweep.loc[0, ["latency_p50_ms", "accuracy_low", "accuracy_high"]]
        assert bar.get_segments()[0].tolist() == [[x, low], [x, high]]

    def test_the_pick_is_named(self, sweep):
        ax = plots.frontier(sweep, "memory_mb", pick="c5")
        assert texts(ax).count("pick") == 1
        assert "pick: c5" in key(ax)
        assert ax.get_xlabel() == "Weights (MiB)"

    def test_the_refused_are_crossed_out_and_the_baseline_is_named(self, sweep):
        inside, outside = sweep[sweep["accepted"]].iloc[0], sweep[~sweep["accepted"]].iloc[0]
        refused = [inside["candidate"], outside["candidate"]]
        ax = plots.frontier(sweep, baseline=outside["candidate"], refused=refused)
        [crosses] = [c for c in ax.collections if c.get_zorder() == 5]
        assert crosses.get_offsets().tolist() == [[inside["latency_p50_ms"], inside["accuracy"]]]
        assert "refused" in key(ax)
        assert "baseline" in texts(ax)
        assert f"baseline: {outside['candidate']}" in key(ax)

    def test_more_probable_points_are_larger(self, sweep):
        two = sweep.iloc[:2].assign(frontier_probability=[0.0, 1.0])
        small, large = [c.get_sizes()[0] for c in plots.frontier(two).collections[:2]]
        assert large > 2 * small

    def test_an_unknown_pick_and_a_missing_column_are_named(self, sweep):
        with pytest.raises(ValueError, match="pick 'nobody' is not among the measured candidates"):
            plots.frontier(sweep, pick="nobody")
        with pytest.raises(ValueError, match=r"frontier figure needs the column\(s\) speed"):
            plots.frontier(sweep, "speed")

    @pytest.mark.parametrize("figure", [plots.frontier, plots.budgets, plots.energy_tiers])
    def test_a_sweep_without_numbers_says_so(self, sweep, figure):
        empty = sweep.assign(accuracy=NAN, memory_mb=NAN, energy_proxy_j=NAN, accepted=False)
        assert "no candidate was measured" in texts(figure(empty))

    def test_all_rejected_has_hollow_points_and_no_labels(self, sweep):
        ax = plots.frontier(sweep.assign(accepted=False))
        assert len(marks(ax)) == len(sweep)
        assert all(fill is None for *_, fill in marks(ax))
        assert texts(ax) == []


class TestScaling:
    def test_equal_latencies_of_two_batches_are_written_side_by_side(self):
        rows = [("c", 1, 1, 0.02), ("c", 2, 1, 0.04), ("c", 1, 4, 0.01), ("c", 1, 16, 0.01)]
        names = ["candidate", "threads", "batch_size", "ms_per_image"]
        ax = plots.scaling(pd.DataFrame(rows, columns=names))
        ax.figure.draw_without_rendering()
        boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
        assert boxes.keys() == {"2", "4", "16"}
        assert all(box.count_overlaps(list(boxes.values())) == 1 for box in boxes.values())


class TestSweep:
    def test_budgets(self, sweep):
        ax = plots.budgets(sweep)
        assert texts(ax) == ["0.02", "0.06 active"]
        assert [line.get_xdata()[0] for line in ax.lines] == [0.02, 0.06]
        distinct = sweep.drop_duplicates(["pruning_level", "precision"])
        assert sorted(x for x, *_ in marks(ax)) == sorted(distinct["memory_mb"])
        assert [t.get_text() for t in ax.get_yticklabels()] == ["0%", "25%", "50%", "70%"]
        assert ax.get_xlabel() == "Weights (MiB)"

    def test_precision_ratios_are_drawn_by_runtime(self, sweep):
        ratios = precision_ratios(sweep.assign(model="net"))
        ax = plots.precision_ratios(ratios)
        ticks = {
            y: t.get_text() for y, t in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)
        }
        latency = {ticks[y]: x for x, y, _ in reversed(marks(ax)) if y < len(ticks) / 2}
        assert len(marks(ax)) == 2 * len(latency) == 2 * 7
        for row in ratios.itertuples():
            name = f"{runtime_named(row.runtime).title} {row.precision}"
            assert latency[name] == row.latency_ratio

    def test_precision_ratios_of_fp32_alone_say_so(self, sweep):
        fp32 = sweep[sweep["precision"] == "fp32"].assign(model="net")
        ax = plots.precision_ratios(precision_ratios(fp32))
        assert "nothing beside fp32 was measured" in texts(ax)

    def test_energy_tiers_name_both_as_estimates(self, sweep):
        ax = plots.energy_tiers(sweep, unavailable="unavailable: no RAPL on this host")
        assert "estimates" in ax.get_title(loc="left")
        assert "Measurement: unavailable: no RAPL on this host" in texts(ax)
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert len(marks(ax)) == len(sweep)


class TestLatency:
    def test_every_sample_of_the_fastest_is_drawn_in_its_colour(self, sweep, samples):
        ax = plots.latency_distribution(samples, sweep, rows=5)
        order = samples.groupby("candidate")["latency_ms"].median().sort_values().index[:5]
        strips = [line for line in ax.lines if line.get_marker() == "."]
        for name, strip in zip(order, strips, strict=True):
            expected = samples.loc[samples["candidate"] == name, "latency_ms"]
            assert strip.get_xdata().tolist() == expected.tolist()
            precision = sweep.set_index("candidate").loc[name, "precision"]
            assert strip.get_color() == PRECISIONS[precision].color
        assert ax.get_title(loc="left") == f"5 fastest of {len(sweep)} candidates"
        assert ax.get_xlabel() == "Latency of one call (ms)"

    def test_drift_names_what_a_round_slowed_by_more_than_a_tenth(self):
        samples = pd.DataFrame(
            {"candidate": list("aabb"), "round": [0, 1, 0, 1], "latency_ms": [1, 1.05, 1, 2.0]}
        )
        assert texts(plots.drift(samples)) == ["b"]

    def test_drift_is_the_round_median_over_the_own_median(self):
        samples = pd.DataFrame(
            {
                "candidate": ["a"] * 4 + ["b"] * 4,
                "round": [0, 0, 1, 1] * 2,
                "latency_ms": [1.0, 1.0, 3.0, 3.0, 20.0, 20.0, 20.0, 20.0],
            }
        )
        *candidates, median = plots.drift(samples).lines
        assert [line.get_ydata().tolist() for line in candidates] == [[0.5, 1.5], [1.0, 1.0]]
        assert median.get_ydata().tolist() == [0.75, 1.25]


class TestHardware:
    ceilings = pd.DataFrame(
        [
            ("compute", "fp32", 48.0, "measured"),
            ("compute", "int8", 224.0, "configured"),
            ("memory", "", 35.0, "measured"),
            ("cache", "", 90.0, "measured"),
        ],
        columns=["name", "precision", "value", "kind"],
    )
    points = pd.DataFrame(
        {
            "candidate": ["a", "b"],
            "precision": ["fp32", "int8"],
            "runtime": ["torch", "openvino"],
            "arithmetic_intensity": [3.0, 9.0],
            "achieved_gmacs": [7.0, 40.0],
        }
    )

    def test_layers_show_both_shares(self):
        table = pd.DataFrame(
            {"layer": ["conv1", "relu", "fc"], "macs": [90, 0, 10], "measured_ms": [1.0, 2.0, 1.0]}
        )
        ax = plots.layer_breakdown(table, rows=2)
        assert [bar.get_width() for bar in ax.patches] == [0.9, 0.0, 0.25, 0.5]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["conv1", "relu"]
        hatched = [bool(bar.get_hatch()) for bar in ax.patches]
        assert hatched == [True, True, False, False]
        assert key(ax) == {"estimate: MACs", "measured time"}

    def test_roofline_has_roofs_slopes_and_points(self):
        ax = plots.roofline(self.points, self.ceilings)
        assert [(x, y) for x, y, _ in marks(ax)] == [(3.0, 7.0), (9.0, 40.0)]
        assert {"DRAM 35 GB/s", "cache 90 GB/s", "fp32 48 GMAC/s"} <= set(texts(ax))
        assert "int8 224 GMAC/s (configured)" in texts(ax)
        for slope, value in zip(ax.lines[:2], (35, 90), strict=True):
            assert slope.get_ydata() / slope.get_xdata() == pytest.approx([value, value])
            assert slope.get_ydata()[-1] == pytest.approx(224)
        assert ax.get_xlabel() == "Arithmetic intensity (MACs per byte)"
        assert ax.get_ylabel() == "Achieved rate (GMAC/s)"
        assert key(ax) == {"fp32", "int8", "PyTorch", "OpenVINO"}

    def test_device_estimates_never_look_measured(self):
        table = pd.DataFrame(
            {
                "device": ["M7", "M7", "Pi", "Pi"],
                "candidate": ["a", "b", "a", "b"],
                "precision": "int8",
                "runtime": "torch",
                "pruning_level": [0.0, 0.5, 0.0, 0.5],
                "latency_estimate_ms": [10.0, 20.0, 1.0, NAN],
                "latency_estimate_high_ms": [NAN, 20.0, 3.0, NAN],
                "fits_ram": [True, False, True, True],
                "fits_flash": True,
            }
        )
        ax = plots.device_estimates(table)
        assert [(x, fill) for x, _, fill in marks(ax)] == [(x, "#ffffff") for x in (10, 20, 1)]
        assert "estimate" in ax.get_xlabel()
        assert "Estimates, not measurements" in ax.get_title(loc="left")
        assert texts(ax) == [
            "10, unpruned",
            "20, 50% pruned (does not fit)",
            "1 to 3, unpruned",
            "no rate known for int8, 50% pruned",
        ]


class TestQuality:
    def test_history_has_a_line_per_seed_and_kind(self):
        history = pd.DataFrame(
            {
                "seed": [0, 0, 1, 1],
                "epoch": [1, 2, 1, 2],
                "train_accuracy": [0.5, 0.6, 0.4, 0.7],
                "val_accuracy": [0.4, 0.5, 0.3, 0.6],
            }
        )
        ax = plots.training_history(history)
        drawn = [line.get_ydata().tolist() for line in ax.lines]
        assert drawn == [[0.5, 0.6], [0.4, 0.7], [0.4, 0.5], [0.3, 0.6]]
        assert sorted(texts(ax)) == ["training", "validation"]

    def test_history_without_validation_leaves_it_out(self):
        history = pd.DataFrame({"epoch": [1], "train_accuracy": [0.5], "val_accuracy": [NAN]})
        assert texts(plots.training_history(history)) == ["training"]

    def test_confusion_is_shares_of_the_true_class(self):
        table = pd.DataFrame([[3, 1], [0, 5]], index=["cat", "dog"], columns=["cat", "dog"])
        ax = plots.confusion_matrix(table)
        assert np.ravel(ax.collections[0].get_array()).tolist() == [75, 25, 0, 100]
        assert texts(ax) == ["75", "25", "", "100"]
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("Predicted class", "True class")

    def test_confusion_change_is_points_of_the_true_class(self):
        names = {"index": ["cat", "dog"], "columns": ["cat", "dog"]}
        before, after = (pd.DataFrame([row, [0, 5]], **names) for row in ([3, 1], [2, 2]))
        ax = plots.confusion_matrix(after, before=before)
        assert np.ravel(ax.collections[0].get_array()).tolist() == [-25, 25, 0, 0]
        assert texts(ax) == ["\N{MINUS SIGN}25", "+25", "", ""]

    def test_a_class_without_images_leaves_the_colours_of_the_others(self):
        names = {"index": ["cat", "dog"], "columns": ["cat", "dog"]}
        before, after = (pd.DataFrame([row, [0, 0]], **names) for row in ([3, 1], [2, 2]))
        ax = plots.confusion_matrix(after, before=before)
        assert ax.collections[0].get_clim() == (-25, 25)
        assert texts(ax) == ["\N{MINUS SIGN}25", "+25"]

    def test_confusion_beside_another_has_no_bar_and_no_labels_between_them(self):
        names = {"index": ["shirt", "coat"], "columns": ["shirt", "coat"]}
        figure, axes = plt.subplots(1, 2)
        for ax in axes:
            plots.confusion_matrix(pd.DataFrame([[3, 1], [0, 5]], **names), ax=ax)
        assert figure.axes == [*axes]
        assert [ax.get_ylabel() for ax in axes] == ["True class", ""]

    def test_lost_images_are_right_before_and_wrong_after(self):
        images = torch.linspace(0.1, 0.4, 4).reshape(4, 1, 1, 1) * torch.ones(1, 1, 4, 4)
        split = Split(images, torch.tensor([0, 0, 1, 1]), mean=0.5, std=0.1)
        before, after = np.array([0, 1, 1, 1]), np.array([1, 1, 0, 1])
        ax = plots.lost_images(split, before=before, after=after, names=["cat", "dog"])
        assert [image.get_array()[0, 0] for image in ax.images] == pytest.approx([0.1, 0.3])
        assert texts(ax) == ["cat\n\u2192 dog", "dog\n\u2192 cat"]
        none = plots.lost_images(split, before=before, after=before, names=["cat", "dog"])
        assert texts(none) == ["There is no such image."]

    def test_per_class_change_has_the_largest_fall_on_top(self):
        table = pd.DataFrame({"class_name": ["a", "b"], "before": [0.9, 0.9], "after": [0.95, 0.7]})
        ax = plots.per_class_change(table)
        assert [t.get_text() for t in ax.get_yticklabels()] == ["b", "a"]
        assert texts(ax) == ["\N{MINUS SIGN}20.0", "+5.0"]
        assert ax.yaxis_inverted()

    def test_sample_images_are_the_first_of_each_class(self):
        images = torch.linspace(0.1, 0.6, 6).reshape(6, 1, 1, 1) * torch.ones(1, 1, 4, 4)
        split = Split(images, torch.tensor([1, 0, 0, 1, 0, 1]), mean=0.5, std=0.1)
        ax = plots.sample_images(split, names=["x", "y"])
        sheet = ax.images[0].get_array()
        assert sheet.shape == (12, 12)
        found = [sheet[y, x] for x, y in ((2, 2), (2, 8), (8, 2), (8, 8))]
        assert found == pytest.approx([0.2, 0.3, 0.1, 0.4])
        assert [t.get_text() for t in ax.get_xticklabels()] == ["x", "y"]

    def test_sample_images_leaves_places_empty_where_a_class_has_too_few(self):
        split = Split(torch.zeros(3, 1, 4, 4), torch.tensor([0, 0, 1]))
        sheet = plots.sample_images(split, names=["x", "y", "z"]).images[0].get_array()
        assert [sheet[y, x] for y, x in ((2, 8), (8, 8), (2, 14))] == [0, 1, 1]


class TestCompression:
    @pytest.fixture
    def accuracies(self):
        rows = [(seed, 0.0, "baseline", 0.9) for seed in (0, 1)]
        rows += [(0, 0.5, "one-shot", 0.6), (1, 0.5, "one-shot", 0.8)]
        rows += [(0, 0.5, "scratch", 0.8), (1, 0.5, "scratch", 0.8)]
        return pd.DataFrame(rows, columns=["seed", "pruning_level", "recipe", "accuracy"])

    def test_curves_start_at_the_baseline_and_bar_the_range_over_seeds(self, accuracies):
        ax = plots.pruning_curves(accuracies)
        one_shot, scratch = ax.containers
        assert one_shot.lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.7])
        assert scratch.lines[0].get_ydata().tolist() == pytest.approx([0.9, 0.8])
        low, high = one_shot.lines[2][0].get_segments()[1][:, 1]
        assert (low, high) == pytest.approx((0.6, 0.8))
        assert texts(ax) == ["one-shot", "scratch"]

    def test_seeds_may_be_equally_accurate(self):
        # Their mean in floating point is below each of them.
        equal = [0.8926666666666667] * 3
        assert sum(equal) / 3 < equal[0]
        rows = [(seed, level, "scratch", a) for seed, a in enumerate(equal) for level in (0.0, 0.5)]
        columns = ["seed", "pruning_level", "recipe", "accuracy"]
        [line] = plots.pruning_curves(pd.DataFrame(rows, columns=columns)).containers
        assert line.lines[0].get_ydata().tolist() == [equal[0]] * 2

    def test_a_recipe_looks_the_same_whichever_others_are_there(self, accuracies):
        alone = plots.pruning_curves(accuracies[accuracies["recipe"] != "one-shot"]).containers[0]
        beside = plots.pruning_curves(accuracies).containers[1]
        assert alone.lines[0].get_color() == beside.lines[0].get_color()

    def test_a_single_seed_has_its_wilson_interval(self, accuracies):
        single = accuracies[accuracies["seed"] == 0].assign(accuracy_low=0.5, accuracy_high=1.0)
        bars = plots.pruning_curves(single).containers[0].lines[2][0].get_segments()
        assert bars[1][:, 1].tolist() == pytest.approx([0.5, 1.0])

    def test_filter_norms_are_ranked(self):
        norms = pd.DataFrame({"layer": "conv1", "filter": [0, 1, 2], "l1_norm": [1.0, 3.0, 2.0]})
        ax = plots.filter_norms(norms)
        assert ax.collections[0].get_offsets().tolist() == [[1, 3], [2, 2], [3, 1]]
        assert key(ax) == {"conv1"}

    def test_quantization_bars(self, sweep):
        rows = sweep[sweep["pruning_level"] == 0]
        ax = plots.quantization(rows)
        widths = [bar.get_width() for bar in ax.patches]
        assert widths == pytest.approx(sorted(rows["weight_bytes"] / 1024))
        assert ax.get_xlabel() == "Weights (KiB)"
        assert texts(ax)[0] == f"{widths[0]:.4g} KiB, 99.0%"
        large = plots.quantization(rows.assign(weight_bytes=rows["weight_bytes"] * 1024))
        assert large.get_xlabel() == "Weights (MiB)"
        assert texts(large)[0] == f"{widths[0]:.4g} MiB, 99.0%"
        colors = {to_hex(bar.get_facecolor()) for bar in ax.patches}
        assert colors == {to_hex(PRECISIONS[name].color) for name in REQUESTED_PRECISIONS}

    def test_diagnosis_keeps_the_order_and_names_the_worst_channel(self):
        table = pd.DataFrame(
            {
                "layer": list("abc"),
                "sqnr_db": [3.0, 18.0, 25.0],
                "accuracy_alone": [0.3, 0.86, 0.87],
                "worst_channel": [3, 0, 1],
                "outlier_ratio": [900.0, 2.0, 1.5],
            }
        )
        ax = plots.diagnosis_bars(table, rows=2)
        [points] = ax.collections
        assert points.get_offsets().tolist() == [[3, 0], [18, 1]]
        assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
        assert texts(ax)[:2] == ["30.0%, channel 3", "86.0%"]
        assert ax.get_xlabel().endswith("(dB)")

    def test_recovery_fills_fp32_and_the_steps_that_reached_the_goal(self):
        table = pd.DataFrame(
            {
                "remedy": ["none", "as it is", "equalized", "qat"],
                "accuracy": [0.91, 0.3, 0.9, NAN],
                "latency_ms": [0.04, NAN, NAN, NAN],
                "int8_mac_share": [0.0, 1.0, 0.98, NAN],
                "reached": [False, False, True, False],
            }
        )
        ax = plots.recovery(table, target=0.85)
        filled = [to_hex(c) for c in ax.collections[0].get_facecolor()]
        fp32, int8 = (to_hex(PRECISIONS[name].color) for name in ("fp32", "int8"))
        assert filled[:3] == [fp32, "#ffffff", int8]
        assert texts(ax)[:4] == ["91.0%, 0.04 ms", "30.0%", "90.0%, 98% int8", "failed"]
        assert texts(ax)[4] == "wanted: 85.0%"


@pytest.mark.parametrize("name", sorted(plots.__all__))
def test_every_figure_takes_axes_and_is_short(name):
    figure = getattr(plots, name)
    parameter = inspect.signature(figure).parameters["ax"]
    assert (parameter.kind, parameter.default) == (parameter.KEYWORD_ONLY, None)
    assert len(inspect.getsource(figure).splitlines()) <= 40


def test_given_axes_are_drawn_on(sweep):
    _, ax = plt.subplots()
    assert plots.energy_tiers(sweep, ax=ax) is ax


def test_figures_leave_their_table_as_it_was(sweep):
    before = sweep.copy()
    for figure in (plots.frontier, plots.budgets, plots.energy_tiers, plots.quantization):
        figure(sweep)
    pd.testing.assert_frame_equal(sweep, before)


def test_no_text_is_smaller_than_ten_points(sweep):
    ax = plots.frontier(sweep, pick="c0")
    found = [t for t in ax.figure.findobj(mpl.text.Text) if t.get_text().strip()]
    assert any(isinstance(text, Annotation) for text in found)
    assert min(text.get_fontsize() for text in found) >= 10


def test_a_narrow_log_axis_has_few_numbers() -> None:
    ax = style.new_axes(None)
    ax.scatter([0.0144, 0.016], [0, 1])
    style.log_axis(ax.xaxis)
    low, high = ax.get_xlim()
    assert 2 <= sum(low <= tick <= high for tick in ax.get_xticks()) <= 5
