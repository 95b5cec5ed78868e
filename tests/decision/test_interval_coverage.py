"""Intervals hold the truth as often as they state, in simulations."""

import numpy as np
import pandas as pd
import pytest

from edgeopt.decision.answers import share_interval
from edgeopt.metrics.latency import median_interval
from edgeopt.metrics.quality import wilson_interval


def coverage(intervals, truth):
    return np.mean([low <= truth <= high for low, high in intervals])


def logistic_accuracy(rng, *, spread, count=2_000_000):
    return np.mean(1 / (1 + np.exp(-3.5 - spread * rng.normal(size=count))))


@pytest.mark.slow
def test_wilson_interval_covers_95_percent():
    right = np.random.default_rng(0).binomial(3000, 0.88, size=4000)
    intervals = [wilson_interval(correct, 3000) for correct in right]
    assert 0.93 <= coverage(intervals, 0.88) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "seed_effect"), [(3, 0.2), (5, 0.0), (5, 0.2), (10, 0.2)])
def test_share_interval_over_seeds_and_images_covers_95_percent(seeds, seed_effect):
    rng = np.random.default_rng(1)
    image_effect, noise = 3.0, 1.0
    truth = logistic_accuracy(rng, spread=np.hypot(np.hypot(seed_effect, image_effect), noise))

    def interval():
        score = 3.5 + seed_effect * rng.normal(size=(seeds, 1))
        score = score + image_effect * rng.normal(size=(1, 1000))
        score = score + noise * rng.normal(size=(seeds, 1000)) + rng.logistic(size=(seeds, 1000))
        return share_interval(score > 0)

    assert 0.93 <= coverage([interval() for _ in range(2000)], truth) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(("rounds", "round_effect"), [(10, 0.05), (20, 0.0), (20, 0.2)])
def test_median_interval_covers_95_percent(rounds, round_effect):
    rng = np.random.default_rng(2)

    def latencies(rounds, calls):
        noise = np.exp(0.2 * rng.normal(size=(rounds, calls)))
        return noise + round_effect * rng.normal(size=(rounds, 1))

    truth = np.median(latencies(2_000_000, 1))

    def interval(seed):
        table = pd.DataFrame(
            {"round": np.repeat(np.arange(rounds), 20), "latency_ms": latencies(rounds, 20).ravel()}
        )
        return median_interval(table, replicates=500, seed=seed)

    assert 0.93 <= coverage([interval(seed) for seed in range(1000)], truth) <= 0.97
