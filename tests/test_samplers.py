"""Samplers: range, evenness, saved state, the same on every backend."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import (
    Discrete,
    Independent,
    ManifoldHyperModel,
    Sandwich,
    SizeSampler,
    Uniform,
    trace,
)


def value_of(ratio):
    """A drawn ratio without its limit, as an array."""
    ratio = ratio[0] if isinstance(ratio, tuple) else ratio
    return np.array(ops.convert_to_numpy(ratio))


def draw(sampler, number):
    """Ratios of a number of steps, `(number, ratios)`."""
    return np.array(
        [[float(value_of(r)) for r in sampler.sample()] for _ in range(number)]
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
    sampler = Sandwich(0.25, 1.0, 2, num_random, bands=1, seed=0)
    assert sampler.static_ratios == (1.0, 0.25)
    ratios = draw(sampler, 50)
    assert ratios.shape == (50, num_random + 2)
    assert (ratios[:, 0] == 1.0).all() and (ratios[:, -1] == 0.25).all()
    random = ratios[:, 1:-1]
    assert ((random >= 0.25) & (random <= 1.0)).all()
    if num_random > 1:
        correlation = np.corrcoef(random.T)
        assert np.abs(correlation - np.eye(num_random)).max() < 0.3


def test_fixed_ratios_of_sandwich():
    assert Sandwich().static_ratios == (1.0, 0.75, 0.5, 0.25)
    sampler = Sandwich(0.1, 0.8, num_fixed=3, num_random=0)
    assert sampler.static_ratios == (0.8, 0.45, 0.1)
    assert sampler.num_sizes == 3
    assert sampler.sample() == [0.8, 0.45, 0.1]
    with_random = Sandwich(0.1, 0.8, num_fixed=3).sample()
    assert with_random[:1] + with_random[-2:] == [0.8, 0.45, 0.1]


@pytest.mark.parametrize("num_random", [1, 2])
def test_sandwich_has_random_ratios_in_each_band(num_random):
    sampler = Sandwich(0.1, 0.8, 2, num_random, bands=3, seed=0)
    assert sampler.limits == (0.8, 0.4, 0.2)
    assert sampler.num_sizes == 2 + 3 * num_random
    limits = [ratio[1] for ratio in sampler.sample()[1:-1]]
    assert limits == [x for x in (0.8, 0.4, 0.2) for _ in range(num_random)]
    random = draw(sampler, 60)[:, 1:-1].reshape(60, 3, num_random)
    for band, (low, high) in enumerate([(0.4, 0.8), (0.2, 0.4), (0.1, 0.2)]):
        assert random[:, band].min() >= low and random[:, band].max() <= high
        spread = random[:, band].max() - random[:, band].min()
        assert spread > 0.8 * (high - low)
    # Nothing below 1 to compute within.
    assert Sandwich(0.25, bands=1, max_random=1.0).limits == ()
    assert Sandwich(num_random=0).limits == ()


def test_random_ratios_of_sandwich_end_where_they_are_told_to():
    sampler = Sandwich(bands=1, max_random=0.5, seed=0)
    assert sampler.static_ratios == (1.0, 0.75, 0.5, 0.25)
    assert sampler.random_range == (0.25, 0.5) and sampler.limits == (0.5,)
    random = draw(sampler, 60)[:, 1]
    assert random.min() < 0.26 and 0.49 < random.max() <= 0.5
    assert Sandwich(max_random=0.5).limits == (0.5, 0.353553)
    # By default from the largest fixed one but one.
    assert Sandwich().random_range == (0.25, 0.75)
    assert Sandwich(0.2, 0.8).random_range == (0.2, 0.6)
    assert Sandwich(0.2, 0.8, num_fixed=2).random_range == (0.2, 0.8)
    assert Sandwich(0.5, 0.5).random_range == (0.5, 0.5)
    assert Sandwich(0.5, max_random=0.5).random_range == (0.5, 0.5)
    assert Sandwich(num_random=0).random_range is None


@pytest.mark.parametrize("low", [1 / 3, 0.123456789, 0.999999999, 1.0])
@pytest.mark.parametrize("num_fixed", [2, 3, 4])
def test_random_ratios_stay_in_a_range_of_many_digits(low, num_fixed):
    for high in (low, 1.0):
        sampler = Sandwich(low, high, num_fixed)
        bottom, top = sampler.random_range
        assert low == bottom <= top <= high


def test_where_sizes_cannot_follow_all_of_the_range_is_drawn():
    graph = trace(target())
    for follow, top in ((True, 0.75), (False, 1.0)):
        sampler, given = Sandwich(), Sandwich(max_random=0.5)
        sampler.attach(graph, follow)
        given.attach(graph, follow)
        assert sampler.random_range == (0.25, top)
        assert given.random_range == (0.25, 0.5)
        assert sampler.get_config()["max_random"] is None


class Halves(Sandwich):
    """Random ratios of its own."""

    def sample_random(self):
        return [0.5 * self.next()[0] + 0.5, 0.5 * self.next()[0] + 0.5]


class Least(Sandwich):
    """Ratios of its own."""

    def sample(self):
        return [1.0, 0.75 * self.next()[0] + 0.25, 0.25]


@pytest.mark.parametrize("own", [Halves, Least])
def test_random_ratios_of_ones_own_may_be_anywhere(own):
    assert own().random_range == (0.25, 1.0)
    assert own(max_random=0.5).random_range == (0.25, 0.5)


@pytest.mark.parametrize("make", [Uniform, Independent])
def test_serves_one_hypermodel(make):
    sampler = make()
    sampler.attach(trace(target()))
    with pytest.raises(ValueError, match="already draws .* create a new one"):
        sampler.attach(trace(target()))


def test_fixed_ratios_of_sandwich_are_python_floats():
    first, random, *others = Sandwich(bands=1).sample()
    assert all(isinstance(ratio, float) for ratio in (first, *others))
    assert not isinstance(random, float)


def test_first_ratios_are_the_same_on_every_backend():
    np.testing.assert_allclose(
        draw(Uniform(0.25, 1.0, seed=7), 4)[:, 0],
        [0.432347, 0.895873, 0.609398, 0.322924],
        atol=1e-5,
    )
    np.testing.assert_allclose(
        draw(Sandwich(0.25, 1.0, 2, num_random=2, bands=1, seed=7), 2)[:, 1:3],
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
    draw(again, 1)
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
        (lambda: Sandwich(num_random=9), ValueError, "at most 16"),
        (lambda: Sandwich(num_random=-1), ValueError, "num_random"),
        (lambda: Sandwich(num_fixed=1), ValueError, "`num_fixed` .* least 2"),
        (lambda: Sandwich(bands=0), ValueError, "`bands` must be .* least 1"),
        (lambda: Sandwich(max_random=0.2), ValueError, "`max_random` must be"),
        (lambda: Sandwich(0.1, 0.5, max_random=0.6), ValueError, "the range"),
        (lambda: Sandwich(max_random="1"), TypeError, "must be a number"),
        (lambda: Independent(max_random=0.5), TypeError, "max_random"),
        (lambda: Independent(bands=2), TypeError, "bands"),
        (lambda: Sandwich(bands=2.0), TypeError, "`bands` must be an integer"),
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


def target():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(8, activation="relu", name="one"),
            layers.Dense(12, activation="relu", name="two"),
            layers.LayerNormalization(name="norm"),
            layers.Dense(2, name="head"),
        ]
    )


def draw_independent(sampler, number):
    """Random ratios of a number of steps, `(number, random, groups)`."""
    return np.array(
        [[value_of(r) for r in sampler.sample()[1:-1]] for _ in range(number)]
    )


def test_independent_draws_every_group_by_itself():
    sampler = Independent(0.25, 0.75, num_random=2, seed=0)
    graph = trace(target())
    sampler.attach(graph)
    assert sampler.static_ratios == (0.75, 0.25)
    first, *random, last = sampler.sample()
    assert (first, last) == (0.75, 0.25)
    assert [limit for _, limit in random] == [0.75] * 2
    assert [tuple(r.shape) for r, _ in random] == [(len(graph.groups),)] * 2
    ratios = draw_independent(sampler, 400).reshape(400, -1)
    assert ratios.min() >= 0.25 and ratios.max() <= 0.75
    assert ratios.min(0).max() < 0.28 and ratios.max(0).min() > 0.72
    np.testing.assert_allclose(ratios.mean(0), 0.5, atol=0.03)
    # 400 independent draws correlate by 0.05, of one ratio by 1.
    correlation = np.corrcoef(ratios.T) - np.eye(ratios.shape[1])
    assert np.abs(correlation).max() < 0.2


def test_independent_is_seeded():
    drawn = []
    for seed in (1, 1, 2):
        sampler = Independent(seed=seed)
        sampler.attach(trace(target()))
        drawn.append(draw_independent(sampler, 3))
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert (drawn[0] != drawn[2]).any()


def test_independent_sizes_reach_the_step():
    """Ratios per group become sizes per group; frozen groups stay."""
    hyper = ManifoldHyperModel(target(), sampler="independent", seed=0)
    assert isinstance(hyper.sampler, Independent)
    sizes = np.array(
        [
            ops.convert_to_numpy(hyper.sizes_of(hyper.sampler.sample()[1])[0])
            for _ in range(300)
        ]
    )
    assert (sizes[:, 2] == 2).all()
    assert set(sizes[:, 0]) == set(range(2, 9))
    assert set(sizes[:, 1]) == set(range(3, 13))
    # One ratio for all would leave no room for this.
    assert ((sizes[:, 0] < 4) & (sizes[:, 1] > 8)).any()
    assert ((sizes[:, 0] > 6) & (sizes[:, 1] < 6)).any()


def test_independent_trains_saves_and_goes_on(tmp_path):
    hyper = ManifoldHyperModel(
        target(), sampler=Independent(num_random=2, seed=5), seed=0
    )
    hyper.compile("adam", "mse")
    random = np.random.default_rng(0)
    x = random.normal(size=(16, 3)).astype("float32")
    y = random.normal(size=(16, 2)).astype("float32")
    history = hyper.fit(x, y, batch_size=8, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    hyper.save(tmp_path / "hyper.keras")
    again = keras.saving.load_model(tmp_path / "hyper.keras")
    assert isinstance(again.sampler, Independent)
    assert again.sampler.num_random == 2
    # The generator goes on where it was.
    np.testing.assert_array_equal(
        draw_independent(hyper.sampler, 3), draw_independent(again.sampler, 3)
    )
    fresh = Independent(num_random=2, seed=5)
    fresh.attach(again.graph)
    assert (
        draw_independent(fresh, 3) != draw_independent(again.sampler, 3)
    ).any()
    small = {"one": 0.25, "two": 0.75}
    np.testing.assert_allclose(
        ops.convert_to_numpy(hyper.morph(small)(x)),
        ops.convert_to_numpy(again.morph(small)(x)),
        atol=1e-6,
    )


@pytest.mark.parametrize("excess", [-1e-6, 0.0, 1e-6])
def test_random_sizes_stay_within_their_limit(excess):
    hyper = ManifoldHyperModel(target(), seed=0)
    # 0.5625 of 8 channels is 4.5: on either side of a whole number.
    for limit in (0.5625, 0.5):
        ratio = ops.convert_to_tensor(limit + excess, "float32")
        sizes, most = hyper.sizes_of((ratio, limit))
        assert most == hyper.graph.sizes(limit)
        assert (ops.convert_to_numpy(sizes) <= np.array(most)).all()


def test_a_limit_that_was_not_named():
    class Silent(Uniform):
        limits = ()

        def sample(self):
            return [(self.next()[0] * 0.25 + 0.25, 0.5)]

    hyper = ManifoldHyperModel(target(), sampler=Silent(0.25, 0.5), seed=0)
    hyper.compile("sgd", "mse")
    with pytest.raises(ValueError, match="in `limits`"):
        hyper.manifold_loss(np.zeros((2, 3), "float32"), np.zeros((2, 2)))


def test_samplers_hold_no_trainable_state():
    sampler = Uniform()
    # Nor any variable before a hypermodel has them, on devices of its own.
    assert sampler.variables == Independent().variables == []
    sampler.next()
    assert sampler.trainable_variables == []
    assert len(sampler.non_trainable_variables) == 1
    assert keras.backend.standardize_dtype(sampler.state.dtype) == "float32"
