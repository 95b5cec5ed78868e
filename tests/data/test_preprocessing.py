"""How a network takes its images: what is allowed, and what is stored under which name."""

import pytest

from edgeopt.data.preprocessing import IMAGENET, Preprocessing, per_channel


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number at least 1, got 0"),
        ({"image_size": 2.5}, "image_size must be a whole number at least 1, got 2.5"),
        ({"max_image_pixels": True}, "max_image_pixels must be a whole number at least 1"),
        ({"resize": "pad"}, "unknown resize 'pad'; allowed: stretch, crop"),
        ({"interpolation": "lanczos"}, "unknown interpolation 'lanczos'; allowed: bilinear, bic"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"mean": (0.1, 0.2), "channels": 3}, r"mean has 2 numbers \(0.1, 0.2\) for 3 channel"),
        ({"std": "imagenet", "channels": 1}, r"std has 3 numbers .* for 1 channel"),
        ({"std": 0}, "std is 0; allowed: finite numbers above 0"),
        ({"std": [0.5, -1, 1]}, r"std is \[0.5, -1, 1\]; allowed: finite numbers above 0"),
        ({"mean": float("nan")}, "mean is nan; allowed: finite numbers"),
        ({"mean": ()}, r"mean is \(\); allowed"),
        ({"mean": "cifar"}, "unknown mean 'cifar'; allowed: imagenet"),
        ({"mean": True}, "mean is True"),
    ],
)
def test_preprocessing_refuses_and_says_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**options)


def test_preprocessing_is_equal_for_equal_values_and_can_be_a_key():
    listed = Preprocessing(channels=3, mean=[0.485, 0.456, 0.406], std="imagenet")
    named = Preprocessing(channels=3, mean="imagenet", std=IMAGENET["std"])
    assert {listed: 1}[named] == 1
    assert named.mean == (0.485, 0.456, 0.406)


def test_geometry_is_of_what_decides_the_bytes_and_of_nothing_else():
    base = Preprocessing(image_size=64)
    assert Preprocessing(image_size=64, mean=0.5, std=2).geometry == base.geometry
    others = [
        {"image_size": 65},
        {"image_size": None},
        {"resize": "crop"},
        {"interpolation": "bicubic"},
        {"channels": 1},
    ]
    names = {Preprocessing(**{"image_size": 64, **other}).geometry for other in others}
    assert len(names | {base.geometry}) == 6


def test_geometry_without_a_size_knows_no_scaling():
    assert Preprocessing(resize="crop", interpolation="nearest").geometry == (
        Preprocessing().geometry
    )


def test_per_channel_repeats_one_number_and_leaves_nothing_alone():
    assert per_channel(0.5, name="mean", channels=3) == (0.5, 0.5, 0.5)
    assert per_channel((0.5,), name="mean", channels=3) == (0.5, 0.5, 0.5)
    assert per_channel(None, name="mean", channels=3) is None
