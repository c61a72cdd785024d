"""`keras.ops` calls in the graph: shapes, parts and arithmetic."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import trace
from keras_neumeta.graph import resize

from .equivalence import OUTPUT, check_half, check_smooth, groups


def model_of(function, filters=4, size=4):
    """A function of a feature map between two convolutions."""
    inputs = keras.Input((size, size, 2))
    x = layers.Conv2D(filters, 2, padding="same", name="conv")(inputs)
    return keras.Model(inputs, layers.Dense(2, name="head")(function(x)))


def check(function, channels, filters=4):
    """The channels are free; returns graph and small network."""
    model = model_of(function, filters)
    assert groups(model)["conv"] == (channels, None)
    graph, small = check_half(model)
    check_smooth(model)
    return graph, small


@pytest.mark.parametrize(
    "function",
    [
        lambda x: 2.0 * x - 1.0,
        lambda x: -ops.square(x) / 4.0,
        lambda x: ops.maximum(ops.minimum(x, 1.0), ops.tanh(x)),
        lambda x: ops.where(ops.greater(x, 0.0), x, ops.exp(x)),
        lambda x: ops.gelu(x) + ops.silu(x) * ops.sigmoid(x),
        lambda x: ops.clip(ops.leaky_relu(x), -1.0, 1.0),
        lambda x: ops.cast(ops.cast(x, "float32"), x.dtype),
        lambda x: ops.swapaxes(ops.relu(ops.swapaxes(x, 1, 3)), 1, 3),
        lambda x: ops.moveaxis(ops.relu(ops.moveaxis(x, -1, 1)), 1, -1),
        lambda x: ops.transpose(ops.transpose(x, (3, 0, 1, 2)), (1, 2, 3, 0)),
        lambda x: ops.squeeze(ops.expand_dims(x, (1, -1)), (1, -1)),
        lambda x: ops.reshape(x, (-1, 16, 4)),
        lambda x: ops.reshape(x, (-1, 64)),
        lambda x: ops.flip(ops.roll(x, 1, axis=1), axis=2),
        # Without strides, Keras' operation fails on JAX.
        lambda x: ops.max_pool(ops.average_pool(x, 2, 1), 2, 2),
        lambda x: ops.image.resize(x, (3, 3)),
        lambda x: x[:, 1:3, ::2],
        lambda x: x[:, 0],
        lambda x: x[:, None, ..., None, :],
        lambda x: ops.stack([x, ops.relu(x)], axis=1),
        lambda x: ops.concatenate([x, ops.relu(x)], axis=-1),
        lambda x: ops.concatenate([x, ops.relu(x)], axis=1),
        lambda x: ops.repeat(x, 2, axis=-1),
        lambda x: ops.tile(x, (1, 1, 2, 3)),
        lambda x: ops.pad(x, ((0, 0), (1, 1), (0, 2), (0, 0))),
        lambda x: ops.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect"),
        lambda x: (
            x
            + ops.broadcast_to(
                ops.max(x, (0, 1, 2), keepdims=True), (1, 4, 4, 4)
            )
        ),
    ],
)
def test_channels_pass(function):
    check(function, channels=4)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: ops.flip(x, axis=-1), "reorders them"),
        (lambda x: ops.roll(x, 1), "reorders them"),
        (lambda x: x[..., 0], "picks one of them"),
        (lambda x: x[..., ::2], "skips some of them"),
        (lambda x: x * np.ones(4, "float32"), "never change"),
        (lambda x: ops.cumsum(x, axis=-1), "has no rule"),
    ],
)
def test_what_freezes(function, reason):
    model = model_of(function)
    assert reason in groups(model)["conv"][1]
    check_half(model)


def test_padding_that_repeats_channels_freezes():
    """Not run: each backend has its own limits of such padding."""
    for mode in ("reflect", "symmetric"):
        model = model_of(
            lambda x, mode=mode: ops.pad(x, [(0, 0)] * 3 + [(1, 1)], mode)
        )
        assert "repeats them" in groups(model)["conv"][1]


def test_arithmetic_ties_channels():
    inputs = keras.Input((3,))
    x = layers.Dense(4, name="left")(inputs)
    y = layers.Dense(4, name="right")(inputs)
    x = ops.maximum(x, 0.0) + y * x
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph, _ = check_half(model)
    assert [(set(g.makers), g.frozen) for g in graph.groups] == [
        ({"left", "right"}, None),
        ({"head"}, OUTPUT),
    ]


def test_split_in_equal_parts_ties_them():
    """A gate: both halves keep equally many channels."""

    def gate(x):
        first, second = ops.split(x, 2, axis=-1)
        return first * ops.sigmoid(second)

    graph, small = check(gate, channels=3, filters=6)
    assert small.get_layer("conv").filters == 4
    kept = graph.layouts[0].axes[3].keep((1, 2)).tolist()
    assert kept == [0, 3]


def test_split_at_places_keeps_parts_apart():
    def parts(x):
        first, second, third = ops.split(x, [2, 5], axis=-1)
        return ops.concatenate([third, first, second], axis=-1)

    model = model_of(parts, filters=6)
    assert groups(model) == {
        "conv": (2, None),
        "conv#2": (3, None),
        "conv#3": (1, "a single channel"),
        "head": (2, OUTPUT),
    }
    graph, _ = check_half(model)
    check_smooth(model)
    axis = next(x for x in graph.layouts if x.path == "head/kernel").axes[0]
    assert axis.keep((1, 3, 1, 2)).tolist() == [0, 1, 3, 4, 5]


def test_glu():
    check(lambda x: ops.glu(x, axis=-1), channels=2)


@pytest.mark.parametrize(
    ("part", "sizes", "filters"),
    [
        (lambda x: x[..., :4], (1, 2), 3),
        (lambda x: x[..., 4:], (1, 2), 3),
        (lambda x: x[..., -2:], (1, 2), 3),
        (lambda x: x[:, :, :, 1:5], (1, 2, 1), 4),
    ],
)
def test_slices_move_with_their_channels(part, sizes, filters):
    model = model_of(part, filters=6)
    check_half(model)
    check_smooth(model)
    graph = trace(model)
    small = resize(graph, (*sizes, 2))
    assert small.get_layer("conv").filters == filters
    # The slice is that of the small network, without its other channels.
    kept = small.get_layer("head").kernel.shape[0]
    own = trace(small)
    assert own.count_params() == graph.count_params((*sizes, 2))
    assert 1 <= kept < filters


@pytest.mark.parametrize("before", [0, 1, 4])
def test_pad_of_channels_in_a_shortcut(before):
    """Zeros in the place of channels that the other branch makes."""
    inputs = keras.Input((4, 4, 2))
    x = layers.Conv2D(4, 1, name="conv")(inputs)
    y = layers.Conv2D(8, 3, strides=2, padding="same", name="wide")(x)
    x = x[:, ::2, ::2]
    x = ops.pad(x, [(0, 0)] * 3 + [(before, 4 - before)])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x + y))
    graph, small = check_half(model)
    check_smooth(model)
    assert all(g.morphable or g.num_channels == 1 for g in graph.groups[:-1])
    made = {maker for g in graph.groups for maker in g.makers}
    assert "wide" in made
    assert small.get_layer("wide").filters < 8


def test_channel_shuffle():
    def shuffle(x):
        x = ops.reshape(x, (-1, 4, 4, 2, 3))
        x = ops.transpose(x, (0, 1, 2, 4, 3))
        return ops.reshape(x, (-1, 4, 4, 6))

    graph, small = check(shuffle, channels=3, filters=6)
    axis = next(x for x in graph.layouts if x.path == "head/kernel").axes[0]
    # Shuffled, the two copies of each channel are neighbours.
    assert axis.keep((1, 2)).tolist() == [0, 1]
    assert small.get_layer("conv").filters == 4


def test_einsum_and_matmul_sum_over_channels():
    def attend(x):
        x = ops.reshape(x, (-1, 16, 4))
        scores = ops.einsum("bic,bjc->bij", x, x)
        other = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return ops.einsum("bij,bjc->bic", ops.softmax(scores + other), x)

    check(attend, channels=4)


def test_attention_between_channels():
    def attend(x):
        x = ops.reshape(x, (-1, 16, 4))
        scores = ops.softmax(ops.einsum("bic,bid->bcd", x, x) / 16.0, axis=1)
        return ops.einsum("bcd,bic->bid", scores, x)

    graph, _ = check(attend, channels=4)
    # The quotient and the softmax, the sum over its channels.
    assert len(graph.masks) >= 2


def test_operation_after_a_product_with_a_number():
    """Keras takes the product for a sparse tensor while it builds."""
    check(lambda x: ops.softmax(2.0 * x), channels=4)


def test_operations_in_a_nested_model():
    hidden = keras.Input((4, 4, 4))
    y = ops.reshape(hidden[..., :2] / 2.0, (-1, 16, 2))
    nested = keras.Model(hidden, y)
    model = model_of(nested)
    graph, _ = check_half(model)
    assert [g.num_channels for g in graph.morphable_groups] == [2, 2]
