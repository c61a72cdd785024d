"""Equivalences that hold for every network, on random ones."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers, ops

from keras_neumeta import (
    AnchoredField,
    fold_batch_norm,
    smooth,
    total_variation,
    trace,
)
from keras_neumeta.graph import resize
from keras_neumeta.network import Network
from keras_neumeta.statistics import StatisticsField

from .strategies import batch, draw_network, draw_sizes, randomize


def compiled(function):
    """On JAX one compilation is cheaper than one per operation."""
    if keras.backend.backend() != "jax":
        return function
    import jax

    return jax.jit(function)


def outputs(model, x):
    return compiled(lambda x: model(x, training=False))(x)


def by_role(model, graph):
    values = {"weight": [], "statistic": [], "state": []}
    for variable, layout in zip(model.variables, graph.layouts, strict=True):
        values[layout.role].append(ops.convert_to_numpy(variable))
    return values


def fields(model, graph, **config):
    """A weight field and a statistics field with nothing left at zero."""
    values = by_role(model, graph)
    field = AnchoredField(seed=0, **config)
    field.attach(graph, values["weight"])
    random = np.random.default_rng(0)
    if field.size_correction is not None:
        kernel = field.size_correction.kernels[-1]
        kernel.assign(random.normal(size=kernel.shape) * 0.2)
    statistics = StatisticsField(stretch=field.stretch)
    statistics.attach(graph, values["statistic"])
    for knots in statistics.knots:
        value = ops.convert_to_numpy(knots)
        knots.assign(value * random.uniform(0.8, 1.2, value.shape))
    return field, statistics, values["state"]


def assert_same(first, second, tolerance=1e-4):
    """Equal outputs, relative to the largest value of each."""
    first, second = keras.tree.flatten(first), keras.tree.flatten(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        a, b = ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        assert np.isfinite(a).all()
        limit = tolerance * max(1.0, np.abs(a).max())
        np.testing.assert_allclose(a, b, rtol=0, atol=limit)


def check_masked_equals_small(model, graph, sizes, config):
    field, statistics, states = fields(model, graph, **config)
    full_sizes = graph.full_sizes
    full = Network(resize(graph, full_sizes), graph, full_sizes)
    small = Network(resize(graph, sizes), graph, sizes)
    x = batch(model)
    tensor = ops.convert_to_tensor(sizes, "int32")
    masked = field.generate(tensor), statistics.generate(tensor)
    cropped = field.generate(sizes), statistics.generate(sizes)
    x = keras.tree.map_structure(ops.convert_to_tensor, x)
    for weight, part, layout in zip(
        masked[0], cropped[0], field.layouts, strict=True
    ):
        assert tuple(weight.shape) == layout.shape
        assert tuple(part.shape) == layout.shape_at(sizes)
        assert_same(layout.crop(ops.convert_to_numpy(weight), sizes), part)
    for training in (False, True):

        def run(network, weights, x, training=training):
            def call(weights, x):
                outputs, statistics, _, _ = network(
                    *weights, states, x, training
                )
                return outputs, statistics

            return compiled(call)(weights, x)

        big, new_statistics = run(full, masked, x)
        little, small_statistics = run(small, cropped, x)
        assert_same(big, little)
        for new, part, layout in zip(
            new_statistics, small_statistics, statistics.layouts, strict=True
        ):
            assert_same(layout.crop(ops.convert_to_numpy(new), sizes), part)


def check_counts(graph, sizes):
    resized = resize(graph, sizes)
    own = trace(resized)
    assert graph.count_params(sizes) == resized.count_params()
    assert graph.count_macs(sizes) == own.count_macs()
    assert [x.shape_at(sizes) for x in graph.layouts] == [
        tuple(v.shape) for v in resized.variables
    ]
    assert [x.path for x in graph.layouts] == [
        v.path for v in resized.variables
    ]


def check_smooth(model):
    smoothed = smooth(model)
    x = batch(model)
    assert_same(outputs(model, x), outputs(smoothed, x))
    before, after = total_variation(model), total_variation(smoothed)
    assert after <= before * (1 + 1e-6)


def check_fold(model):
    folded = fold_batch_norm(model)
    x = batch(model)
    assert_same(outputs(model, x), outputs(folded, x))


# Shrinking a network takes minutes and hardly ever helps to understand it.
many = hypothesis.settings(
    max_examples=250,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
# JAX compiles each network anew: seconds instead of a tenth.
few = hypothesis.settings(
    many, max_examples=6 if keras.backend.backend() == "jax" else 20
)

CONFIGS = st.fixed_dictionaries(
    {
        "interpolation": st.sampled_from(["linear", "cubic"]),
        "stretch": st.sampled_from([0.0, 0.5, 1.0]),
        "correction": st.sampled_from(["gain", None]),
    }
)


@few
@hypothesis.given(st.data(), CONFIGS)
def test_masked_full_size_equals_small_network(data, config):
    model = draw_network(data.draw)
    graph = trace(model)
    sizes = draw_sizes(data.draw, graph)
    check_masked_equals_small(model, graph, sizes, config)


@few
@hypothesis.given(st.data())
def test_counts_and_shapes_are_those_of_the_resized_network(data):
    graph = trace(draw_network(data.draw))
    check_counts(graph, draw_sizes(data.draw, graph))


@few
@hypothesis.given(st.data())
def test_smooth_keeps_the_function(data):
    check_smooth(draw_network(data.draw))


@few
@hypothesis.given(st.data())
def test_fold_keeps_the_function(data):
    check_fold(draw_network(data.draw))


@pytest.mark.slow
@many
@hypothesis.given(st.data(), CONFIGS)
def test_all_equivalences(data, config):
    model = draw_network(data.draw)
    graph = trace(model)
    sizes = draw_sizes(data.draw, graph)
    check_masked_equals_small(model, graph, sizes, config)
    check_counts(graph, sizes)
    check_smooth(model)
    check_fold(model)


def test_macs_by_hand():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.Conv2D(8, 3, padding="same"),  # 64 positions
            layers.BatchNormalization(),
            layers.DepthwiseConv2D(3, strides=2, padding="same"),  # 16
            layers.Conv2D(4, 1),
            layers.Flatten(),
            layers.Dense(10),
        ]
    )
    graph = trace(model)
    conv, depthwise, pointwise = 64 * 27 * 8, 16 * 9 * 8, 16 * 8 * 4
    assert graph.count_macs() == conv + depthwise + pointwise + 64 * 10
    conv, depthwise, pointwise = 64 * 27 * 4, 16 * 9 * 4, 16 * 4 * 2
    half = graph.sizes(0.5)
    assert graph.count_macs(half) == conv + depthwise + pointwise + 32 * 10
    # Moving mean and variance count as parameters, as in Keras.
    assert graph.count_params(half) == (
        (27 * 4 + 4) + 4 * 4 + (9 * 4 + 4) + (4 * 2 + 2) + (32 * 10 + 10)
    )


def test_random_weights_reach_every_variable():
    model = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()]
    )
    randomize(model, 0)
    for variable in model.variables:
        assert np.std(ops.convert_to_numpy(variable)) > 0
