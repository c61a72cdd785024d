"""Layers that mix channels: they are told which ones are present."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import ManifoldHyperModel, trace

from .equivalence import (
    OUTPUT,
    check_gradients,
    check_half,
    check_smooth,
    groups,
)
from .strategies import randomize

pytestmark = pytest.mark.filterwarnings(
    "ignore:(?s).*You are using a softmax over axis:UserWarning"
)


def check_mixing(model, makers=("conv",)):
    """The channels may change, by a mask; returns the graph."""
    result = groups(model)
    for name in makers:
        assert result[name][1] is None
    graph, _ = check_half(model)
    assert graph.masks
    check_gradients(model, graph, graph.sizes(0.5))
    check_smooth(model)
    return graph


def with_layer(layer, filters=4, shape=(3, 3, 2)):
    """A layer, or a function of a tensor, between two convolutions."""
    inputs = keras.Input(shape)
    x = layers.Conv2D(filters, 2, padding="same", name="conv")(inputs)
    x = layer(x)
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


@pytest.mark.parametrize("axis", [-1, [1, 2, 3], [2, 3]])
def test_layer_normalization(axis):
    norm = layers.LayerNormalization(axis=axis, name="norm")
    model = with_layer(norm)
    graph = check_mixing(model)
    # Positions among the axes stay.
    place = len(norm.gamma.shape) - 1
    path = next(x for x in graph.layouts if x.path == "norm/gamma")
    assert list(path.axes) == [place]


@pytest.mark.parametrize("axis", [-1, [-2, -1]])
def test_rms_normalization(axis):
    check_mixing(with_layer(layers.RMSNormalization(axis=axis)))


def test_unit_normalization():
    model = with_layer(
        lambda x: layers.UnitNormalization()(layers.ReLU()(x) + 1.0)
    )
    check_mixing(model)


@pytest.mark.parametrize("groups_of_norm", [1, 2])
def test_group_normalization(groups_of_norm):
    norm = layers.GroupNormalization(groups=groups_of_norm, name="norm")
    graph = check_mixing(with_layer(norm))
    assert graph.groups[0].num_channels == 4 // groups_of_norm


def test_group_normalization_of_each_channel():
    for number in (-1, 4):
        norm = layers.GroupNormalization(groups=number, name="norm")
        graph, small = check_half(with_layer(norm))
        assert not graph.masks
        assert graph.groups[0].num_channels == 4
        assert small.get_layer("norm").groups == 2


@pytest.mark.parametrize(
    "softmax",
    [
        layers.Softmax(),
        layers.Softmax(axis=[1, 3]),
        layers.Activation("softmax"),
        ops.softmax,
        ops.log_softmax,
        ops.normalize,
    ],
)
def test_softmax(softmax):
    check_mixing(with_layer(softmax))


def test_softmax_as_activation_of_a_kernel_freezes():
    model = with_layer(layers.Dense(4, activation="softmax", name="dense"))
    result = groups(model)
    assert result["conv"] == (4, None)
    assert "activation 'softmax' of layer 'dense'" in result["dense"][1]
    check_half(model)


@pytest.mark.parametrize(
    "reduce",
    [ops.mean, ops.sum, ops.max, ops.min, ops.amax, ops.amin, ops.logsumexp],
)
@pytest.mark.parametrize("keepdims", [True, False])
def test_reductions(reduce, keepdims):
    # One-sided values: a zero would be the extreme.
    for sign in (1.0, -1.0):
        model = with_layer(
            lambda x, sign=sign: reduce(
                sign * ops.exp(x), axis=-1, keepdims=keepdims
            )
        )
        check_mixing(model)


def test_reduction_over_channels_and_positions():
    check_mixing(with_layer(lambda x: ops.mean(x, axis=(1, 3))))
    model = with_layer(lambda x: ops.mean(x, axis=(1, 2)))
    assert not trace(model).masks
    check_half(model)


@pytest.mark.parametrize("reduce", [ops.var, ops.std, ops.argmax])
def test_reductions_without_a_neutral_value_freeze(reduce):
    def layer(x):
        return ops.cast(reduce(x, axis=-1, keepdims=True), "float32")

    assert "reduces over them" in groups(with_layer(layer))["conv"][1]


def scaled(x, name="scale"):
    """Values that are exactly zero where channels are absent."""
    return layers.DepthwiseConv2D(1, use_bias=False, name=name)(
        ops.exp(ops.tanh(x))
    )


GUARDED = {
    "log": lambda x: ops.log(ops.absolute(scaled(x))),
    "log2": lambda x: ops.log2(ops.absolute(scaled(x))),
    "sqrt": lambda x: ops.sqrt(ops.absolute(scaled(x))),
    "rsqrt": lambda x: ops.rsqrt(ops.absolute(scaled(x))),
    "reciprocal": lambda x: ops.reciprocal(scaled(x)),
    "divide": lambda x: x / scaled(x),
    "number": lambda x: 1.0 / scaled(x),
    "divide_by_number": lambda x: x / 2.0,
    "power": lambda x: ops.power(ops.absolute(scaled(x)), -0.5),
}


@pytest.mark.parametrize("kind", GUARDED)
def test_values_and_gradients_of_guarded_functions_are_finite(kind):
    check_mixing(with_layer(GUARDED[kind]))


@pytest.mark.parametrize("kind", ["log", "sqrt", "divide"])
def test_guarded_functions_train(kind):
    """The gradient of the task loss reaches the field without NaN."""
    model = with_layer(GUARDED[kind])
    randomize(model, 0)
    hyper = ManifoldHyperModel(model, sampler="uniform", seed=0)
    hyper.compile(keras.optimizers.SGD(1e-3), "mse")
    random = np.random.default_rng(0)
    x = random.normal(size=(4, *model.input_shape[1:])).astype("float32")
    y = random.normal(size=(4, *model.output_shape[1:])).astype("float32")
    loss = hyper.fit(x, y, epochs=3, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    for variable in hyper.trainable_variables:
        assert np.isfinite(ops.convert_to_numpy(variable)).all()


def test_shared_normalization_ties_its_inputs():
    inputs = keras.Input((3,))
    norm = layers.LayerNormalization(name="norm")
    x = norm(layers.Dense(4, name="left")(inputs))
    y = norm(layers.Dense(4, name="right")(inputs))
    x = layers.Concatenate()([x, y])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph = check_mixing(model, [])
    assert [(set(g.makers), g.frozen) for g in graph.groups] == [
        ({"left", "right"}, None),
        ({"head"}, OUTPUT),
    ]


@pytest.mark.parametrize("first", ["free", "input"])
def test_softmax_shared_with_other_channels_freezes(first):
    """Both calls would need a presence of their own."""
    inputs = keras.Input((3,))
    softmax = layers.Softmax(name="softmax")
    makers = {
        "free": lambda: softmax(layers.Dense(4, name="free")(inputs)),
        "input": lambda: softmax(inputs),
    }
    parts = [makers[first]()]
    parts += [make() for name, make in makers.items() if name != first]
    x = layers.Dense(6, name="after")(layers.Concatenate()(parts))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    result = groups(model)
    assert "'softmax' is shared" in result["free"][1]
    assert result["after"] == (6, None)
    check_half(model)


def test_softmax_shared_by_widths_freezes():
    inputs = keras.Input((3,))
    softmax = layers.Softmax(name="softmax")
    parts = [softmax(layers.Dense(n, name=f"d{n}")(inputs)) for n in (4, 6)]
    x = layers.Dense(6, name="after")(layers.Concatenate()(parts))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    result = groups(model)
    assert "'softmax' is shared" in result["d4"][1]
    assert "'softmax' is shared" in result["d6"][1]
    check_half(model)


def test_nested_model_that_mixes_is_called_twice():
    hidden = keras.Input((4,))
    y = hidden - ops.mean(hidden, axis=-1, keepdims=True)
    nested = keras.Model(hidden, layers.Softmax()(y))
    inputs = keras.Input((3,))
    x = nested(layers.Dense(4, name="left")(inputs))
    y = nested(layers.Dense(4, name="right")(inputs))
    x = layers.Concatenate()([x, y])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    graph = check_mixing(model, [])
    assert set(graph.morphable_groups[0].makers) == {"left", "right"}


@pytest.mark.parametrize("normalize", [False, True])
def test_dot(normalize):
    inputs = keras.Input((3,))
    x = layers.Dense(4, activation="sigmoid", name="left")(inputs)
    y = layers.Dense(4, activation="sigmoid", name="right")(inputs)
    x = layers.Dot(axes=1, normalize=normalize, name="dot")([x, y])
    x = layers.Dense(6, name="after")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    if normalize:
        assert "'dot' normalizes across them" in groups(model)["left"][1]
        check_half(model)
    else:
        assert groups(model)["left"] == (4, None)
        check_mixing(model, ["left"])


def test_masking_layer():
    """An absent channel is not a reason to keep a step."""
    inputs = keras.Input((5, 2))
    x = layers.Dense(4, activation="sigmoid", name="dense")(inputs)
    gate = layers.Dense(1, activation="relu", name="gate")(inputs)
    x = layers.GRU(4, name="gru")(layers.Masking(0.0)(x * gate))
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    check_mixing(model, ["dense", "gru"])
