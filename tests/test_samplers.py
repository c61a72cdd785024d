"""Samplers: range, evenness, saved state, the same on every backend."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_neumeta import Discrete, Sandwich, SizeSampler, Uniform


def draw(sampler, number):
    """Ratios of a number of steps, `(number, ratios)`."""
    return np.array(
        [
            [float(ops.convert_to_numpy(r)) for r in sampler.sample()]
            for _ in range(number)
        ]
    )


def test_uniform_covers_its_range_evenly():
    ratios = draw(Uniform(0.25, 0.75, seed=0), 200)
    assert ratios.shape == (200, 1)
    assert ratios.min() >= 0.25 and ratios.max() <= 0.75
    counts, _ = np.histogram(ratios, bins=10, range=(0.25, 0.75))
    # Independent draws scatter by 4; the sequence by about 1.
    assert counts.min() >= 17 and counts.max() <= 23


def test_uniform_draws_many_different_ratios():
    assert len(np.unique(np.round(draw(Uniform(seed=1), 100), 4))) > 95


def test_discrete_follows_its_probabilities():
    ratios = draw(Discrete([0.25, 0.5, 1.0], [0.5, 0.3, 0.2], seed=0), 100)
    values, counts = np.unique(ratios, return_counts=True)
    np.testing.assert_allclose(values, [0.25, 0.5, 1.0])
    np.testing.assert_allclose(counts / 100, [0.5, 0.3, 0.2], atol=0.03)


def test_discrete_is_even_without_probabilities():
    _, counts = np.unique(draw(Discrete([0.25, 1.0]), 60), return_counts=True)
    np.testing.assert_allclose(counts, 30, atol=2)


@pytest.mark.parametrize("num_random", [0, 1, 3])
def test_sandwich_has_the_ends_and_random_ratios(num_random):
    sampler = Sandwich(0.25, 1.0, num_random=num_random, seed=0)
    assert sampler.static_ratios == (1.0, 0.25)
    ratios = draw(sampler, 50)
    assert ratios.shape == (50, num_random + 2)
    assert (ratios[:, 0] == 1.0).all() and (ratios[:, -1] == 0.25).all()
    random = ratios[:, 1:-1]
    assert ((random >= 0.25) & (random <= 1.0)).all()
    if num_random > 1:
        correlation = np.corrcoef(random.T)
        assert np.abs(correlation - np.eye(num_random)).max() < 0.3


def test_ends_of_sandwich_are_python_floats():
    first, *random, last = Sandwich(num_random=1).sample()
    assert isinstance(first, float) and isinstance(last, float)
    assert not isinstance(random[0], float)


def test_first_ratios_are_the_same_on_every_backend():
    np.testing.assert_allclose(
        draw(Uniform(0.25, 1.0, seed=7), 4)[:, 0],
        [0.432347, 0.895873, 0.609398, 0.322924],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        draw(Sandwich(0.25, 1.0, num_random=2, seed=7), 2)[:, 1:3],
        [[0.432347, 0.483571], [0.895873, 0.794231]],
        atol=1e-5,
    )


def test_seed_decides_the_sequence():
    first, again, other = (draw(Uniform(seed=s), 5) for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_state_goes_on_after_loading():
    sampler = Sandwich(seed=0)
    draw(sampler, 3)
    again = Sandwich.from_config(sampler.get_config())
    again.set_weights(sampler.get_weights())
    np.testing.assert_array_equal(draw(sampler, 3), draw(again, 3))
    fresh = Sandwich.from_config(sampler.get_config())
    assert (draw(fresh, 3) != draw(again, 3)).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Uniform(0.0), ValueError, "ratio"),
        (lambda: Uniform(0.9, 0.5), ValueError, "`min_ratio` must not be"),
        (lambda: Uniform(0.5, 1.5), ValueError, "in \\(0, 1\\]"),
        (lambda: Sandwich("0.5"), TypeError, "must be a number"),
        (lambda: Sandwich(num_random=17), ValueError, "at most 16"),
        (lambda: Sandwich(num_random=-1), ValueError, "num_random"),
        (lambda: Discrete([]), ValueError, "must not be empty"),
        (lambda: Discrete([0.5, 2.0]), ValueError, "ratio"),
        (lambda: Discrete([0.5], [0.5, 0.5]), ValueError, "`probabilities`"),
        (lambda: Discrete([0.5, 1.0], [0.9, 0.9]), ValueError, "sum 1"),
        (lambda: Discrete([0.5, 1.0], [1.5, -0.5]), ValueError, "nonneg"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_subclass_must_sample():
    with pytest.raises(NotImplementedError):
        SizeSampler(num_draws=1).sample()


def test_samplers_hold_no_trainable_state():
    sampler = Uniform()
    assert sampler.trainable_variables == []
    assert len(sampler.non_trainable_variables) == 1
    assert keras.backend.standardize_dtype(sampler.state.dtype) == "float32"
