import copy
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from edgeopt.data import Split
from edgeopt.model import training
from edgeopt.model.networks import SmallCNN
from edgeopt.model.training import evaluate, fit, memory_format, predict_logits, train_model

ROOT = Path(__file__).parents[2]


def test_training_learns_and_leaves_its_input_alone(small_cnn, striped):
    before = copy.deepcopy(small_cnn.state_dict())
    trained = train_model(small_cnn, striped.loader(32, shuffle=True, seed=0), 3, 0.01, "cpu")
    assert evaluate(small_cnn, striped.loader(64)) < 0.5
    assert evaluate(trained, striped.loader(64)) > 0.95
    assert all(torch.equal(before[key], value) for key, value in small_cnn.state_dict().items())
    assert not trained.training


def test_same_seed_same_trained_weights(small_cnn, striped):
    runs = [
        train_model(small_cnn, striped.loader(32, shuffle=True, seed=5), 1, 0.01) for _ in range(2)
    ]
    assert torch.equal(runs[0].classifier.weight, runs[1].classifier.weight)


def test_one_step_is_adam_on_cross_entropy(small_cnn, striped):
    by_hand = copy.deepcopy(small_cnn).train()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    nn.functional.cross_entropy(by_hand(striped.take(len(striped))), striped.labels).backward()
    optimizer.step()
    trained = train_model(small_cnn, striped.loader(len(striped)), 1, 0.01)
    torch.testing.assert_close(trained.conv1.weight, by_hand.conv1.weight, atol=2e-4, rtol=1e-3)


def test_history_has_one_row_per_epoch(small_cnn, striped):
    options = {"epochs": 2, "learning_rate": 0.01, "progress": False}
    history = fit(small_cnn, striped.loader(64), val_loader=striped.loader(64), **options).history
    assert list(history["epoch"]) == [1, 2]
    assert history["val_accuracy"].between(0, 1).all()
    unscored = fit(small_cnn, striped.loader(64), **options).history
    assert unscored["val_accuracy"].isna().all()


def test_what_rises_is_the_running_mean_of_the_weights(small_cnn, striped):
    by_hand = copy.deepcopy(small_cnn).train()
    optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(striped.take(len(striped))), striped.labels).backward()
        optimizer.step()
        steps.append(by_hand.conv1.weight.detach().clone())
    # One step an epoch: two epochs are two steps, and each mean is half way to the next weights.
    means = [steps[0], (steps[0] + steps[1]) / 2]
    means.append((means[1] + steps[2]) / 2)
    loader, options = striped.loader(len(striped)), {"learning_rate": 0.01, "val_loader": [0]}
    for epochs, mean in enumerate(means, 1):
        rising = iter(range(epochs))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "evaluate", lambda *_, rising=rising: next(rising))
            found = training.fit_while_rising(small_cnn, loader, epochs=epochs, **options)
        torch.testing.assert_close(found.model.conv1.weight, mean, atol=2e-4, rtol=1e-3)
        assert not found.model.training


@pytest.mark.parametrize(
    ("patience", "ran", "best"), [(1, 3, 2), (2, 4, 2), (4, 8, 6), (None, 8, 6)]
)
def test_training_ends_when_validation_has_not_risen(
    patience, ran, best, small_cnn, striped, monkeypatch
):
    told = [0.5, 0.6, 0.6, 0.55, 0.59, 0.7, 0.1, 0.2]
    options = {"learning_rate": 0.01, "val_loader": [0]}

    def fitted(epochs: int, accuracies: list[float], **more):
        given = iter(accuracies)
        monkeypatch.setattr(training, "evaluate", lambda *_: next(given))
        loader = striped.loader(64, shuffle=True, seed=1)
        return training.fit_while_rising(small_cnn, loader, epochs=epochs, **options, **more)

    found = fitted(8, told, patience=patience)
    assert found.history["val_accuracy"].tolist() == told[:ran]
    alone = fitted(best, [*range(best)])
    assert torch.equal(found.model.conv1.weight, alone.model.conv1.weight)


def test_cosine_schedule_ends_slower_than_constant(small_cnn, striped):
    options = {"epochs": 1, "learning_rate": 0.01, "progress": False}
    loader = striped.loader(len(striped))
    constant = fit(small_cnn, loader, **options).model
    annealed = fit(small_cnn, loader, cosine=True, **options).model
    # A single step is taken before the first annealing: the two must agree exactly.
    assert torch.equal(constant.conv1.weight, annealed.conv1.weight)
    loader = striped.loader(16)
    moved = [
        (
            fit(small_cnn, loader, cosine=cosine, **options).model.conv1.weight
            - small_cnn.conv1.weight
        )
        for cosine in (False, True)
    ]
    assert moved[1].norm() < moved[0].norm()


def test_no_epochs_is_the_same_network(small_cnn, striped):
    same = train_model(small_cnn, striped.loader(64), 0, 0.01)
    assert torch.equal(same.conv1.weight, small_cnn.conv1.weight)


def test_predict_logits_takes_half_precision(small_cnn, striped):
    half = copy.deepcopy(small_cnn).half()
    logits = predict_logits(half, striped.take(5), batch_size=2)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(
        logits, predict_logits(small_cnn, striped.take(5)), atol=5e-3, rtol=5e-2
    )


def test_bad_options_are_named(small_cnn, striped):
    loader = striped.loader(64)
    with pytest.raises(ValueError, match="epochs is -1; allowed: 0 or more"):
        train_model(small_cnn, loader, -1, 0.1)
    for rate in (0.0, math.nan):
        with pytest.raises(ValueError, match=f"learning_rate is {rate}; allowed: above 0"):
            train_model(small_cnn, loader, 1, rate)
    with pytest.raises(ValueError, match="the training loader holds no images"):
        train_model(small_cnn, [], 1, 0.1)
    with pytest.raises(ValueError, match="holds no images"):
        evaluate(small_cnn, [])


class Viewing(nn.Module):
    """As in many tutorials: a view, which channels last has not got, before the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(4 * 12 * 12, 12)

    def forward(self, images):
        return self.head(self.conv(images).view(len(images), -1))


NARROW = nn.Sequential(nn.Conv2d(6, 12, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "shape", "layout"),
    [
        (NARROW, (6, 12, 12), torch.contiguous_format),
        (nn.Conv2d(6, 12, 3, stride=2), (6, 12, 12), torch.channels_last),
        (nn.Conv2d(8, 12, 1, stride=2), (8, 12, 12), torch.channels_last),
        (SmallCNN(), (1, 28, 28), torch.channels_last),
        (Viewing(), (1, 12, 12), torch.contiguous_format),
    ],
)
def test_layout_is_channels_last_where_it_is_sound(model, shape, layout):
    model = model.to(memory_format=torch.channels_last)
    assert memory_format(model, torch.rand(2, *shape)) == layout


def test_a_network_that_views_its_activations_is_trained_as_one_that_flattens_them():
    split = Split(torch.rand(48, 1, 12, 12), torch.arange(48) % 12)
    viewing = Viewing()
    flattening = nn.Sequential(viewing.conv, nn.Flatten(), viewing.head)
    logits = []
    for model in (viewing, flattening):
        loader = split.loader(16, shuffle=True, seed=3)
        trained = train_model(model, loader, 2, 0.01)
        logits.append(predict_logits(trained, split))
    assert torch.allclose(*logits, atol=1e-4)
    assert not torch.allclose(logits[0], predict_logits(viewing, split), atol=1e-2)


def test_a_narrow_residual_network_trains_on_one_thread():
    """Seen from outside: where channels last is unsound, the process dies."""
    script = """
import torch
from torch import nn
from edgeopt.data import Split
from edgeopt.model import fit

torch.set_num_threads(1)
split = Split(torch.rand(60, 6, 12, 12), torch.arange(60) % 12)
model = nn.Sequential(nn.Conv2d(6, 12, 1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
fit(model, split.loader(60), epochs=100, learning_rate=0.01, progress=False)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
