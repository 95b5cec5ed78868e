import math

import pytest
import torch

from edgeopt.runtimes.parity import ExportError, Parity, check_parity, parity_images


def test_parity_images_are_the_same_every_time_and_in_range():
    first, second = parity_images((1, 3, 8, 8), at_least=4), parity_images((1, 3, 8, 8), at_least=4)
    assert first.shape == (4, 3, 8, 8)
    assert torch.equal(first, second)
    assert 0 <= first.min() < first.max() <= 1


def test_check_parity_is_in_proportion_to_the_largest_logit():
    expected = torch.tensor([[125.0, -3.0], [0.5, 0.25]])
    actual = torch.tensor([[125.0, -3.0], [0.5, 0.2578125]])  # 1/128 off
    assert check_parity(expected, actual, tolerance=1e-4) == Parity(1 / 128 / 125, 1.0)
    assert check_parity(1000 * expected, 1000 * actual, tolerance=1e-4) == Parity(1 / 128 / 125, 1)
    with pytest.raises(ExportError, match=r"up to 6.25e-05 of the largest, 125, .* allowed: 6e-05"):
        check_parity(expected, actual, tolerance=6e-5)


def test_check_parity_that_fails_names_both_figures():
    expected = torch.tensor([[4.0, 0.0], [4.0, 3.5], [0.0, 1.0], [2.0, 1.0]])
    actual = torch.tensor([[4.0, 0.0], [3.5, 4.0], [0.0, 1.0], [2.0, 1.0]])
    message = (
        r"up to 0\.125 of the largest, 4, and give the same class on 75\.0% of 4 images; "
        r"allowed: 0\.0001 and 100%"
    )
    with pytest.raises(ExportError, match=message):
        check_parity(expected, actual, tolerance=1e-4)


def test_check_parity_takes_either_of_two_classes_that_tie():
    expected = torch.tensor([[8.0, 8.0, 0.0], [8.0, 7.9990234375, 0.0]])  # 2**-10 apart
    actual = torch.tensor([[7.9995, 8.0, 0.0], [7.9994, 7.9996, 0.0]])
    assert (expected.argmax(1) != actual.argmax(1)).all()
    found = check_parity(expected, actual, tolerance=1e-4)
    assert found.agreement == 1
    assert 7e-5 < found.difference <= 1e-4


def test_check_parity_of_logits_that_are_all_zero():
    assert check_parity(torch.zeros(1, 2), torch.zeros(1, 2), tolerance=0.0) == Parity(0.0, 1.0)
    with pytest.raises(ExportError, match=r"up to 0\.5 of the largest, 0,"):
        check_parity(torch.zeros(1, 2), torch.full((1, 2), 0.5), tolerance=0.1)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_check_parity_refuses_logits_that_are_not_finite(value):
    finite, broken = torch.ones(1, 2), torch.full((1, 2), value)
    for expected, actual in ((finite, broken), (broken, finite), (broken, broken)):
        with pytest.raises(ExportError, match=r"by up to (nan|inf)"):
            check_parity(expected, actual, tolerance=1.0)


def test_check_parity_refuses_another_shape():
    with pytest.raises(ExportError, match=r"returns \(1, 3\), torch \(1, 2\)"):
        check_parity(torch.zeros(1, 2), torch.zeros(1, 3), tolerance=1.0)
