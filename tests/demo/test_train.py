"""The data is split once and for all, and training gives the same weights every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sidecar.demo.train import (
    HOLD_OUT_SHARE,
    Recipe,
    Split,
    build_network,
    load_digits,
    train,
    weights_hash,
)

SHORT = Recipe("0", epochs=1, learning_rate=1e-3)


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_the_same_each_time_and_shares_no_digit(digits: tuple[Split, Split]):
    training, hold_out = digits
    again_training, again_hold_out = load_digits()
    np.testing.assert_array_equal(training.images, again_training.images)
    np.testing.assert_array_equal(hold_out.labels, again_hold_out.labels)
    seen = {image.tobytes() for image in training.images}
    assert not [image for image in hold_out.images if image.tobytes() in seen]
    total = len(training.labels) + len(hold_out.labels)
    assert total == 1797
    assert abs(len(hold_out.labels) / total - HOLD_OUT_SHARE) < 0.01


def test_images_are_as_documented_and_every_class_is_held_out(digits: tuple[Split, Split]):
    for split in digits:
        assert split.images.dtype == np.float32
        assert split.images.shape[1:] == (1, 8, 8)
        assert split.images.min() == 0
        assert split.images.max() == 16
        assert split.labels.dtype == np.int64
        counts = np.bincount(split.labels, minlength=10) / len(split.labels)
        assert counts.min() > 0.09


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(digits: tuple[Split, Split]):
    first = weights_hash(train(SHORT, digits[0]))
    torch.rand(3)  # what the process drew before must not matter
    assert weights_hash(train(SHORT, digits[0])) == first
    assert weights_hash(train(SHORT, digits[0], seed=8)) != first


def test_training_leaves_the_process_as_it_was(digits: tuple[Split, Split]):
    torch.set_num_threads(2)
    state, flag = torch.random.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    model = train(SHORT, digits[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == 2
    assert torch.are_deterministic_algorithms_enabled() == flag
    assert not model.training


def test_the_hash_sees_one_changed_weight():
    model = build_network()
    before = weights_hash(model)
    with torch.no_grad():
        model.head[2].bias[0] += 1e-6
    assert weights_hash(model) != before
