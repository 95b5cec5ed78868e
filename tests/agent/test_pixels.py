import numpy as np
import pytest

from edgeopt.agent.pixels import converted


def test_pixels_are_scaled_repeated_and_normalized():
    pixels = np.array([[[[0, 51]]], [[[255, 102]]]], np.uint8)  # 0, 0.2, 1 and 0.4
    images = converted(pixels, channels=3, mean=[0.0, 0.2, 0.5], std=[1.0, 0.5, 2.0])
    expected = [
        [[[0, 0.2]], [[-0.4, 0]], [[-0.25, -0.15]]],
        [[[1, 0.4]], [[1.6, 0.4]], [[0.25, -0.05]]],
    ]
    assert images.dtype == np.float32
    assert images == pytest.approx(np.array(expected), abs=1e-7)


def test_floating_point_pixels_are_taken_as_they_are():
    pixels = np.array([[[[3.0]], [[-1.0]]]], np.float32)
    images = converted(pixels, channels=2, mean=None, std=None)
    assert images.tolist() == [[[[3.0]], [[-1.0]]]]
    images[0] = 0
    assert pixels[0, 0, 0, 0] == 3  # a copy
