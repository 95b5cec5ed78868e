import pytest
import torch

from edgeopt.parity import ExportError, check_parity, parity_images


def test_images_are_the_same_every_time_and_in_range():
    first, second = parity_images((1, 3, 8, 8), at_least=4), parity_images((1, 3, 8, 8), at_least=4)
    assert first.shape == (4, 3, 8, 8)
    assert torch.equal(first, second)
    assert 0 <= first.min() < first.max() <= 1


def test_a_difference_up_to_the_tolerance_passes_and_one_above_names_both():
    expected = torch.zeros(2, 3)
    actual = expected.clone()
    actual[1, 2] = -0.25
    check_parity(expected, actual, tolerance=0.25)
    with pytest.raises(ExportError, match=r"by up to 0\.25; allowed: 0\.2$"):
        check_parity(expected, actual, tolerance=0.2)


def test_nan_and_another_shape_are_no_parity():
    with pytest.raises(ExportError, match="by up to nan"):
        check_parity(torch.zeros(1, 2), torch.full((1, 2), float("nan")), tolerance=1.0)
    with pytest.raises(ExportError, match=r"returns \(1, 3\), torch \(1, 2\)"):
        check_parity(torch.zeros(1, 2), torch.zeros(1, 3), tolerance=1.0)
