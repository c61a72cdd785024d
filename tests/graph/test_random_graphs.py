"""Equivalences that hold for every network, on random ones."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers, ops

from keras_neumeta import trace

from .equivalence import (
    check_counts,
    check_fields,
    check_fold,
    check_gradients,
    check_masked_equals_small,
    check_morphed,
    check_reduced,
    check_smooth,
)
from .strategies import draw_network, draw_sizes, randomize

# A single channel that is left makes some softmax trivial; Keras warns.
pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*You are using a softmax over axis:UserWarning"
)


# Shrinking a network takes minutes and hardly ever helps to understand it.
unshrunk = hypothesis.settings(
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)
# JAX compiles each network anew: seconds instead of a tenth.
few = hypothesis.settings(
    unshrunk, max_examples=5 if keras.backend.backend() == "jax" else 16
)

SCALES = st.sampled_from([0.0, 1.0])
CONFIGS = st.one_of(
    st.fixed_dictionaries(
        {
            "interpolation": st.sampled_from(["linear", "cubic"]),
            "stretch": st.sampled_from([0.0, 0.5, 1.0]),
            "scale": SCALES,
        }
    ),
    st.fixed_dictionaries({"levels": st.just((0.3, 0.6)), "scale": SCALES}),
)


def draw_all(draw):
    model = draw_network(draw)
    graph = trace(model, blocks=draw(st.booleans()))
    return model, graph, draw_sizes(draw, graph)


@few
@hypothesis.given(st.data())
def test_masked_full_size_equals_small_network(data):
    check_masked_equals_small(*draw_all(data.draw))


@few
@hypothesis.given(st.data())
def test_gradients_of_the_masked_network(data):
    check_gradients(*draw_all(data.draw))


def draw_limit(draw, graph, sizes):
    """Sizes that are nowhere below the given ones."""
    return tuple(map(max, sizes, draw_sizes(draw, graph)))


@few
@hypothesis.given(st.data())
def test_masked_network_of_a_limit_equals_small_network(data):
    model, graph, sizes = draw_all(data.draw)
    limit = draw_limit(data.draw, graph, sizes)
    check_masked_equals_small(model, graph, sizes, limit)


@few
@hypothesis.given(st.data())
def test_gradients_of_the_masked_network_of_a_limit(data):
    model, graph, sizes = draw_all(data.draw)
    limit = draw_limit(data.draw, graph, sizes)
    check_gradients(model, graph, sizes, limit)


@few
@hypothesis.given(st.data(), CONFIGS)
def test_fields_fill_the_masked_network(data, config):
    model, graph, sizes = draw_all(data.draw)
    limit = None
    if data.draw(st.booleans()):
        limit = draw_limit(data.draw, graph, sizes)
    check_fields(model, graph, sizes, config, limit)


@few
@hypothesis.given(st.data())
def test_counts_and_shapes_are_those_of_the_resized_network(data):
    model, graph, sizes = draw_all(data.draw)
    check_counts(graph, sizes)
    check_morphed(model, graph, sizes)


@few
@hypothesis.given(st.data())
def test_smooth_keeps_the_function(data):
    check_smooth(draw_network(data.draw))


@few
@hypothesis.given(st.data())
def test_fold_keeps_the_function(data):
    check_fold(draw_network(data.draw))


# Eight parts, so that they can run beside one another.
@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_all_equivalences(seed):
    @hypothesis.seed(seed)
    @hypothesis.settings(unshrunk, max_examples=250)
    @hypothesis.given(st.data())
    def check(data):
        model, graph, sizes = draw_all(data.draw)
        check_masked_equals_small(model, graph, sizes)
        check_gradients(model, graph, sizes)
        check_counts(graph, sizes)
        check_smooth(model)
        check_fold(model)
        keras.backend.clear_session()

    check()


@pytest.mark.slow
@hypothesis.settings(unshrunk, max_examples=100)
@hypothesis.given(st.data(), CONFIGS)
def test_fields_of_many_networks(data, config):
    model, graph, sizes = draw_all(data.draw)
    check_fields(model, graph, sizes, config)
    check_morphed(model, graph, sizes)


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


@few
@hypothesis.given(st.data())
def test_channels_that_nothing_reads_are_cut(data):
    check_reduced(*draw_all(data.draw))
