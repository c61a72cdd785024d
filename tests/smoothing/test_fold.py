"""Folding batch normalization: where it happens, and the same function."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import fold_batch_norm


def randomize(model):
    random = np.random.default_rng(0)
    for variable in model.variables:
        value = random.uniform(0.5, 1.5, variable.shape)
        if "kernel" in variable.name:
            value = random.normal(size=variable.shape) * 0.3
        variable.assign(value.astype("float32"))
    return model


def check_same_function(model, folded):
    x = np.random.default_rng(1).normal(size=(3, *model.inputs[0].shape[1:]))
    x = x.astype("float32")
    expected = ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(
        expected,
        ops.convert_to_numpy(folded(x)),
        rtol=0,
        atol=1e-5 * max(1.0, np.abs(expected).max()),
    )


def norms(model):
    return [
        layer.name
        for layer in model._flatten_layers()
        if isinstance(layer, layers.BatchNormalization)
    ]


def norm(**kwargs):
    return layers.BatchNormalization(epsilon=0.1, **kwargs)


IMAGE = (6, 6, 4)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((4,), lambda **k: layers.Dense(6, **k)),
        ((8, 4), lambda **k: layers.Conv1D(6, 3, **k)),
        (IMAGE, lambda **k: layers.Conv2D(6, 3, **k)),
        (IMAGE, lambda **k: layers.Conv2D(6, 3, groups=2, **k)),
        ((4, 4, 4, 2), lambda **k: layers.Conv3D(4, 3, **k)),
        (IMAGE, lambda **k: layers.Conv2DTranspose(6, 3, strides=2, **k)),
        ((8, 4), lambda **k: layers.Conv1DTranspose(6, 3, **k)),
        (IMAGE, lambda **k: layers.DepthwiseConv2D(3, **k)),
        (
            IMAGE,
            lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
        ),
        ((8, 4), lambda **k: layers.DepthwiseConv1D(3, **k)),
        (
            IMAGE,
            lambda **k: layers.SeparableConv2D(6, 3, depth_multiplier=2, **k),
        ),
        ((8, 4), lambda **k: layers.SeparableConv1D(6, 3, **k)),
    ],
    ids=[
        "dense",
        "conv1d",
        "conv2d",
        "grouped",
        "conv3d",
        "transposed2d",
        "transposed1d",
        "depthwise2d",
        "multiplier",
        "depthwise1d",
        "separable2d",
        "separable1d",
    ],
)
def test_linear_layers(shape, layer, use_bias):
    model = randomize(
        keras.Sequential(
            [
                keras.Input(shape),
                layer(use_bias=use_bias, name="linear"),
                norm(),
                layers.ReLU(),
            ]
        )
    )
    before = model.get_weights()
    folded = fold_batch_norm(model)
    assert norms(folded) == []
    assert folded.get_layer("linear").use_bias
    check_same_function(model, folded)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("center", [True, False])
def test_norm_without_gamma_or_beta(scale, center):
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6),
                norm(scale=scale, center=center),
                layers.Dense(2),
            ]
        )
    )
    folded = fold_batch_norm(model)
    assert type(folded) is keras.Sequential
    assert norms(folded) == []
    check_same_function(model, folded)


def test_residual_network():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(norm()(x))
    y = norm()(layers.Conv2D(4, 3, padding="same", name="inner")(x))
    x = layers.Add()([x, y])
    # After a sum: no linear layer to fold into.
    x = norm(name="kept")(x)
    model = keras.Model(inputs, layers.GlobalAveragePooling2D()(x), name="net")
    randomize(model)
    folded = fold_batch_norm(model)
    assert norms(folded) == ["kept"]
    assert folded.name == "net"
    assert folded.get_layer("inner").use_bias
    check_same_function(model, folded)


def keep_cases():
    inputs = keras.Input((6, 6, 4))
    conv = layers.Conv2D(4, 3, padding="same")

    def branch():
        x = conv(inputs)
        return layers.Add()([x, norm()(x)])

    def shared():
        return norm()(conv(conv(inputs)))

    def shared_norm():
        same = norm()
        return same(layers.Conv2D(4, 3)(same(conv(inputs))))

    def active():
        return norm()(layers.Conv2D(4, 3, activation="relu")(inputs))

    def first():
        return layers.Conv2D(4, 3)(norm()(inputs))

    def other_axis():
        return norm(axis=1)(conv(inputs))

    def output():
        x = conv(inputs)
        return [x, norm()(x)]

    makers = [branch, shared, shared_norm, active, first, other_axis, output]
    return [(maker.__name__, inputs, maker) for maker in makers]


@pytest.mark.parametrize("name", [name for name, _, _ in keep_cases()], ids=str)
def test_norms_that_cannot_be_folded_stay(name):
    maker, inputs = next((m, i) for n, i, m in keep_cases() if n == name)
    model = randomize(keras.Model(inputs, maker()))
    folded = fold_batch_norm(model)
    assert len(norms(folded)) == 1
    assert len(folded.get_weights()) == len(model.get_weights())
    x = np.ones((1, 6, 6, 4), "float32")
    for a, b in zip(
        keras.tree.flatten(model(x)),
        keras.tree.flatten(folded(x)),
        strict=True,
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b), rtol=1e-4
        )


def test_nested_models():
    nested = keras.Sequential(
        [keras.Input((6, 6, 2)), layers.Conv2D(4, 3), norm(), layers.ReLU()],
        name="nested",
    )
    hidden = keras.Input((4, 4, 4))
    deeper = keras.Model(hidden, norm()(layers.Conv2D(3, 3)(hidden)))
    model = randomize(
        keras.Sequential(
            [keras.Input((6, 6, 2)), nested, deeper, layers.Flatten()]
        )
    )
    folded = fold_batch_norm(model)
    assert norms(folded) == []
    assert folded.get_layer("nested").name == "nested"
    check_same_function(model, folded)


def test_frozen_layers_stay_frozen():
    model = randomize(
        keras.Sequential(
            [
                keras.Input((4,)),
                layers.Dense(6, trainable=False, name="frozen"),
                norm(),
                layers.Dense(2, name="free"),
            ]
        )
    )
    folded = fold_batch_norm(model)
    assert not folded.get_layer("frozen").trainable
    assert folded.get_layer("free").trainable


def test_folded_model_saves(tmp_path):
    model = randomize(
        keras.Sequential([keras.Input((4,)), layers.Dense(6), norm()])
    )
    folded = fold_batch_norm(model)
    folded.save(tmp_path / "folded.keras")
    check_same_function(
        model, keras.models.load_model(tmp_path / "folded.keras")
    )
