"""Moving statistics of every size."""

import functools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import (
    AnchoredField,
    Discrete,
    ManifoldHyperModel,
    Sandwich,
    Switches,
    Uniform,
    calibrate,
    trace,
)
from keras_neumeta.statistics import StatisticsField

from .graph.equivalence import crop


def network():
    """Batch norm behind layers that are no sum over changing channels."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, name="conv")(inputs)
    y = layers.Conv2D(4, 3, padding="same", name="branch")(x)
    x = layers.Concatenate()([x, y])
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.8, name="norm")(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def linear_network(momentum=0.8):
    """Batch norm behind sums over channels, whose means are predicted."""
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, name="first")(inputs)
    norm = functools.partial(layers.BatchNormalization, momentum=momentum)
    x = layers.ReLU()(norm()(x))
    x = layers.Conv2D(12, 3, padding="same", use_bias=False, name="conv")(x)
    x = layers.ReLU()(norm(name="norm")(x))
    x = layers.Flatten()(layers.MaxPooling2D()(x))
    x = layers.Dense(16, name="dense")(x)
    x = layers.ReLU()(norm(name="last")(x))
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


NETWORKS = pytest.mark.parametrize("build", [network, linear_network])


class Statistics:
    """A `StatisticsField`, given the weights of each size."""

    def __init__(self, graph, **arguments):
        self.field = StatisticsField(**arguments)
        self.weights = AnchoredField(stretch=self.field.stretch)
        random = np.random.default_rng(3)
        shapes = [x.shape for x in graph.layouts if x.role == "weight"]
        self.values = [random.normal(size=s) for s in shapes]
        self.weights.attach(graph, self.values)

    def attach(self, graph, values):
        self.field.attach(graph, values, self.values)

    def __getattr__(self, name):
        return getattr(self.field, name)

    def generate(self, sizes):
        return self.field.generate(sizes, self.weights.generate(sizes))

    def update(self, sizes, before, after):
        self.field.update(sizes, self.weights.generate(sizes), before, after)


def attached(build=network, **arguments):
    graph = trace(build())
    random = np.random.default_rng(0)
    values = [
        random.uniform(1.0, 2.0, layout.shape).astype("float32")
        for layout in graph.layouts
        if layout.role == "statistic"
    ]
    field = Statistics(graph, **arguments)
    field.attach(graph, values)
    return field, values


def arrays(tensors):
    return [ops.convert_to_numpy(x) for x in tensors]


def tensor(sizes):
    return ops.convert_to_tensor(sizes, "int32")


@NETWORKS
def test_starts_at_the_target(build):
    field, values = attached(build)
    for got, value in zip(field.generate(field.graph.full_sizes), values):
        np.testing.assert_allclose(ops.convert_to_numpy(got), value, atol=1e-6)


def test_sums_go_by_the_width_of_their_inputs():
    """What is learned at full size holds for few outputs, not few inputs."""
    field, _ = attached(linear_network, stretch=0.0)
    graph = field.graph
    place = graph.normalized_sums[0].variance
    few = [graph.sizes({name: 0.5}) for name in ("conv", "first")]

    def variances():
        return [arrays(field.generate(sizes))[place] for sizes in few]

    before = field.generate(graph.full_sizes)
    after = [3.0 * x if n == place else x for n, x in enumerate(before)]
    old = variances()
    field.update(graph.full_sizes, before, after)
    for factor, one, other in zip((3.0, 1.0), old, variances(), strict=True):
        np.testing.assert_allclose(other / one, factor, rtol=0.02)


@NETWORKS
@pytest.mark.parametrize("stretch", [0.0, 0.5, 1.0])
def test_tensor_sizes_equal_static_sizes(stretch, build):
    field, _ = attached(build, stretch=stretch)
    random = np.random.default_rng(1)
    for knots in field.knots:
        knots.assign(random.normal(size=knots.shape))
    for ratio in (0.25, 0.4, 0.8, 1.0):
        sizes = field.graph.sizes(ratio)
        static = arrays(field.generate(sizes))
        dynamic = arrays(field.generate(tensor(sizes)))
        for a, b, layout in zip(static, dynamic, field.layouts, strict=True):
            assert a.shape == layout.shape_at(sizes)
            np.testing.assert_allclose(a, crop(layout, b, sizes), atol=1e-4)


# What the mean inputs account for differs from channel to channel.
@pytest.mark.parametrize(
    "build, stretch",
    [(network, 0.0), (network, 1.0), (linear_network, 0.0)],
)
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ratio", [0.25, 0.45, 0.5, 0.9, 1.0])
def test_update_moves_a_size_by_the_change(build, ratio, stretch, dynamic):
    """A change that is the same for all channels arrives unchanged."""
    field, _ = attached(build, stretch=stretch)
    sizes = field.graph.sizes(ratio)
    given = tensor(sizes) if dynamic else sizes
    start = arrays(field.generate(sizes))
    before = field.generate(given)

    def changed(values):
        # Variances by a factor, and what is added to them before the log.
        return [
            1.5 * x + 0.5 * field.least[number]
            if number in field.least
            else x + 0.5
            for number, x in enumerate(values)
        ]

    field.update(given, before, changed(before))
    for a, b in zip(changed(start), arrays(field.generate(sizes)), strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 1.0])
def test_updates_arrive_at_what_is_measured(ratio, dynamic):
    """Many updates with one measurement give that measurement."""
    field, _ = attached()
    sizes = field.graph.sizes(ratio)
    random = np.random.default_rng(2)
    measured = [
        random.uniform(0.5, 3.0, layout.shape_at(sizes)).astype("float32")
        for layout in field.layouts
    ]
    given, goals = sizes, measured
    if dynamic:
        given, goals = tensor(sizes), []
        for goal, layout in zip(measured, field.layouts, strict=True):
            whole = np.zeros(layout.shape, "float32")
            whole[layout.axes[0].keep(sizes)] = goal
            goals.append(whole)
    for _ in range(60):
        before = field.generate(given)
        after = [
            b + 0.3 * (ops.convert_to_tensor(goal) - b)
            for b, goal in zip(before, goals, strict=True)
        ]
        field.update(given, before, after)
    for got, goal in zip(arrays(field.generate(sizes)), measured, strict=True):
        np.testing.assert_allclose(got, goal, atol=0.02)


def test_static_and_tensor_updates_are_the_same():
    first, _ = attached()
    second, _ = attached()
    sizes = first.graph.sizes(0.6)
    for field, given in ((first, sizes), (second, tensor(sizes))):
        before = field.generate(given)
        field.update(given, before, [x * 1.5 for x in before])
    for a, b in zip(first.knots, second.knots, strict=True):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), atol=1e-5
        )


@pytest.mark.parametrize(
    "momentum, turns, factor",
    [(0.8, 5, 1), (0.95, 1, 1), (0.95, 5, 2), (0.99, 5, 5), (0.99, 20, 10)],
)
def test_random_sizes_make_up_for_the_turns_that_knots_wait(
    momentum, turns, factor
):
    field, _ = attached(
        lambda: linear_network(momentum), turns=turns, fixed=(0.5, 1.0)
    )
    sizes = field.graph.sizes(0.5)
    for given, times in ((sizes, 1), (tensor(sizes), factor)):
        start = arrays(field.generate(sizes))
        before = field.generate(given)
        after = [
            x * 1.001 if n in field.least else x + 0.001
            for n, x in enumerate(before)
        ]
        field.update(given, before, after)
        moved = arrays(field.generate(sizes))
        # The means of sums follow from the mean inputs as well.
        (free,) = {n for n in range(6) if n not in field.least} - {
            each.mean for each in field.graph.normalized_sums
        }
        np.testing.assert_allclose(
            moved[free] - start[free], 0.001 * times, rtol=0.01
        )
        for number in field.least:
            np.testing.assert_allclose(
                np.log(moved[number] / start[number]), 0.001 * times, rtol=0.02
            )


def test_fixed_sizes_take_along_what_lies_between():
    ratios = (0.25, 0.5, 0.75, 1.0)
    field, _ = attached(ratios=ratios, fixed=(0.25, 0.75, 1.0))
    graph = field.graph
    starts = [arrays(field.generate(graph.sizes(ratio))) for ratio in ratios]
    sizes = graph.sizes(0.75)
    before = field.generate(sizes)
    field.update(sizes, before, [x + 1.0 for x in before])
    for ratio, start, moved in zip(ratios, starts, (0, 0.5, 1, 0)):
        mean, _ = arrays(field.generate(graph.sizes(ratio)))
        np.testing.assert_allclose(mean - start[0], moved, atol=1e-5)


def test_update_leaves_far_sizes_alone():
    field, values = attached()
    small = field.graph.sizes(0.25)
    before = field.generate(small)
    field.update(small, before, [x + 1.0 for x in before])
    for got, value in zip(field.generate(field.graph.full_sizes), values):
        np.testing.assert_allclose(ops.convert_to_numpy(got), value, atol=1e-6)


def test_leading_slice_updates_only_the_channels_it_reads():
    field, values = attached(stretch=0.0, ratios=(1.0,))
    sizes = field.graph.sizes(0.5)
    before = field.generate(sizes)
    field.update(sizes, before, [x + 1.0 for x in before])
    kept = field.layouts[0].axes[0].keep(sizes)
    (full, *_) = arrays(field.generate(field.graph.full_sizes))
    expected = np.isin(np.arange(len(full)), kept)
    np.testing.assert_allclose(full - values[0], expected, atol=1e-5)


@pytest.mark.parametrize(
    "sampler, ratios",
    [
        (Sandwich(num_fixed=2), np.linspace(0.25, 1.0, 13)),
        (Sandwich(), [*np.linspace(0.25, 0.75, 13), 1.0]),
        # None beside 0.533333 and 0.766667.
        (
            Sandwich(0.3, max_random=0.536),
            [*np.linspace(0.3, 0.536, 13)[:-1], 0.533333, 0.766667, 1.0],
        ),
        (Sandwich(0.5, 0.7, num_random=0, num_fixed=3), [0.5, 0.6, 0.7, 1.0]),
        (Switches((1.0, 0.3)), [0.3, 1.0]),
        (Discrete([0.3, 0.6, 0.5]), [0.3, 0.5, 0.6, 1.0]),
        (Uniform(1.0), [1.0]),
    ],
)
def test_knots_are_where_sizes_are_trained(sampler, ratios):
    np.testing.assert_allclose(sampler.knots, ratios, atol=1e-6)


def test_variances_stay_positive():
    """Neighbours of very different variance do not push one below zero."""
    field, _ = attached()
    sizes = field.graph.sizes(0.6)
    random = np.random.default_rng(0)
    lowest = np.inf
    for _ in range(20):
        before = field.generate(sizes)
        batch = [10.0 ** random.uniform(-6, 2, b.shape) for b in before]
        batch[0] = -batch[0]
        after = [
            b + 0.5 * (ops.convert_to_tensor(x, "float32") - b)
            for b, x in zip(before, batch, strict=True)
        ]
        field.update(sizes, before, after)
        for ratio in (0.25, 0.6, 1.0):
            mean, variance = arrays(field.generate(field.graph.sizes(ratio)))
            assert (variance >= 0).all()
            lowest = min(lowest, mean.min())
    assert lowest < 0


def test_training_measures_what_calibration_would():
    keras.utils.set_random_seed(0)
    random = np.random.default_rng(0)
    x = random.normal(1.0, 2.0, size=(64, 6, 6, 1)).astype("float32")
    y = random.integers(0, 2, 64)
    hyper = ManifoldHyperModel(
        network(), sampler=Sandwich(num_random=1, seed=0), seed=0
    )
    hyper.compile(
        keras.optimizers.SGD(1e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    hyper.fit(x, y, batch_size=32, epochs=20, verbose=0)
    for ratio in (1.0, 0.5, 0.25):
        kept = hyper.morph(ratio).get_layer("norm")
        measured = hyper.morph(ratio, calibration_data=x).get_layer("norm")
        deviation = ops.convert_to_numpy(measured.moving_variance) ** 0.5
        mean = ops.convert_to_numpy(kept.moving_mean - measured.moving_mean)
        assert (np.abs(mean) < 0.3 * deviation).all()
        ratio = ops.convert_to_numpy(
            kept.moving_variance / measured.moving_variance
        )
        assert (ratio > 0.6).all() and (ratio < 1.8).all()


def test_moments_of_sums_by_hand():
    field, _ = attached(linear_network, stretch=0.0, ratios=(1.0,))
    sizes = field.graph.sizes(0.5)
    start = arrays(field.generate(sizes))
    conv, dense = field.graph.normalized_sums
    assert (conv.layer, dense.layer) == ("conv", "dense")
    random = np.random.default_rng(4)
    before = [ops.zeros_like(x) for x in start]
    inputs = [random.normal(size=(n,)).astype("float32") for n in (4, 6 * 4)]
    # Only the mean inputs are new.
    field.update(sizes, before, [*before[:-2], *inputs])
    after = arrays(field.generate(sizes))
    for a, b in zip(start[:-2], after[:-2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    # Now other weights: the moments follow.
    old = arrays(field.weights.generate(sizes))
    field.weights.control_points[conv.kernel].assign(
        2.0 * field.weights.control_points[conv.kernel]
    )
    field.weights.control_points[dense.kernel].assign(
        3.0 * field.weights.control_points[dense.kernel]
    )
    got = arrays(field.generate(sizes))
    # A kernel of 3 on an image of 4, padded: its ends miss one place in four.
    seen = np.outer([0.75, 1.0, 0.75], [0.75, 1.0, 0.75])
    expected = np.einsum("ijco,ij,c->o", old[conv.kernel], seen, inputs[0])
    moved = got[conv.mean] - after[conv.mean]
    np.testing.assert_allclose(moved, expected, rtol=1e-3, atol=1e-4)
    moved = got[dense.mean] - after[dense.mean]
    np.testing.assert_allclose(
        moved, 2.0 * inputs[1] @ old[dense.kernel], rtol=1e-3, atol=1e-4
    )
    for each, factor in ((conv, 4.0), (dense, 9.0)):
        np.testing.assert_allclose(
            got[each.variance], factor * after[each.variance], rtol=1e-3
        )


def test_variances_do_not_fall_to_zero():
    """Beyond the sizes that are drawn, whatever the curve."""
    field, values = attached(linear_network)
    variances = list(field.least)
    for step in range(200):
        ratio, value = ((0.8, 9.0), (0.97, 0.1))[step % 2]
        sizes = field.graph.sizes(ratio)
        before = field.generate(sizes)
        after = list(before)
        for number in variances:
            after[number] = before[number] + 0.2 * (value - before[number])
        field.update(sizes, before, after)
    full = arrays(field.generate(field.graph.full_sizes))
    for number in variances:
        assert (full[number] > 1e-3).all()


@pytest.mark.tensorflow  # So many steps take minutes on the others.
@pytest.mark.parametrize(
    "sampler, momentum, ratios",
    [
        # Each knot has its turn 15 times.
        (Sandwich(seed=0), 0.95, (0.27, 0.32, 0.4, 0.6, 0.7)),
        (Sandwich(max_random=1.0, seed=0), 0.8, (0.32, 0.4, 0.6, 0.7, 0.95)),
    ],
)
def test_sizes_between_knots_have_the_moments_of_calibration(
    sampler, momentum, ratios
):
    """With weights that stay."""
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(1.0, 2.0, size=(64, 6, 6, 1))
    x, y = x.astype("float32"), np.zeros((64, 2))
    model = linear_network(momentum)
    for variable in model.trainable_variables:
        if "kernel" in variable.path:
            random = np.random.default_rng(len(variable.path))
            variable.assign(random.normal(size=variable.shape))
    calibrate(model, x)
    hyper = ManifoldHyperModel(model, sampler=sampler, smooth=False)
    hyper.compile(keras.optimizers.SGD(0.0), "mse")
    hyper.fit(x, y, batch_size=64, epochs=100, verbose=0)
    for ratio in ratios:
        kept = hyper.morph(ratio)
        measured = hyper.morph(ratio, calibration_data=x)
        for name, mean_bound, bound in (
            ("norm", 0.01, 0.07),
            ("last", 0.12, 0.16),
        ):
            a, b = kept.get_layer(name), measured.get_layer(name)
            deviation = ops.convert_to_numpy(b.moving_variance) ** 0.5
            mean = ops.convert_to_numpy(a.moving_mean - b.moving_mean)
            assert np.abs(mean / deviation).mean() < mean_bound, ratio
            spread = np.log(ops.convert_to_numpy(a.moving_variance))
            spread = spread - 2 * np.log(deviation)
            assert np.abs(spread).mean() < bound, ratio
