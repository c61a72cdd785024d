"""Smoothing: the same function, along a shorter path."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import smooth, total_variation, trace


def randomize(model, seed=0):
    random = np.random.default_rng(seed)
    for variable in model.variables:
        value = random.uniform(0.5, 1.5, variable.shape)
        if "kernel" in variable.name:
            value = random.normal(size=variable.shape) * 0.5
        variable.assign(value.astype("float32"))


def residual_network():
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(6, 3, padding="same", use_bias=False, name="inner")(x)
    y = layers.ReLU()(layers.BatchNormalization(name="norm")(y))
    y = layers.Conv2D(8, 3, padding="same", use_bias=False)(y)
    y = layers.BatchNormalization()(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3)(x), name="residual")
    randomize(model)
    return model


def values(model):
    return [ops.convert_to_numpy(v).copy() for v in model.variables]


def same(first, second):
    return all((a == b).all() for a, b in zip(first, second, strict=True))


def test_residual_network_computes_the_same():
    model = residual_network()
    before = values(model)
    smoothed = smooth(model)
    assert same(values(model), before)
    assert not same(values(smoothed), before)
    x = np.random.default_rng(1).normal(size=(4, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(x)),
        ops.convert_to_numpy(smoothed(x)),
        atol=1e-4,
    )
    assert total_variation(smoothed) < 0.95 * total_variation(model)
    assert smoothed.name == "residual"
    assert [v.path for v in model.variables] == [
        v.path for v in smoothed.variables
    ]


def test_everything_of_a_channel_moves_together():
    model = residual_network()
    smoothed = smooth(model)
    kernel = ops.convert_to_numpy(model.get_layer("inner").kernel)
    moved = ops.convert_to_numpy(smoothed.get_layer("norm").gamma)
    gamma = ops.convert_to_numpy(model.get_layer("norm").gamma)
    order = [int(np.flatnonzero(gamma == g)[0]) for g in moved]
    assert order != sorted(order)
    mean = ops.convert_to_numpy(model.get_layer("norm").moving_mean)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(smoothed.get_layer("norm").moving_mean),
        mean[order],
    )
    # The inputs of `inner` moved as well: compare each filter's sum.
    np.testing.assert_allclose(
        ops.convert_to_numpy(smoothed.get_layer("inner").kernel).sum((0, 1, 2)),
        kernel.sum((0, 1, 2))[order],
        rtol=1e-4,
        atol=1e-5,
    )


def test_same_seed_same_order():
    model = residual_network()
    assert same(values(smooth(model, seed=1)), values(smooth(model, seed=1)))


def test_smoothing_again_changes_no_total():
    once = smooth(residual_network())
    again = total_variation(smooth(once))
    assert again == pytest.approx(total_variation(once), rel=1e-5)


def test_sequential_stays_sequential():
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(9), layers.Dense(2)]
    )
    randomize(model)
    assert type(smooth(model)) is keras.Sequential


def test_total_variation_by_hand():
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(3), layers.Dense(1)]
    )
    model.set_weights(
        [
            np.array([[0.0, 2.0, 1.0]]),
            np.array([1.0, 1.0, 3.0]),
            np.array([[5.0], [5.0], [4.0]]),
            np.array([0.0]),
        ]
    )
    assert total_variation(model) == (2 + 1) + (0 + 2) + (0 + 1)


def test_sorted_channels_are_a_shortest_path():
    model = keras.Sequential(
        [keras.Input((1,)), layers.Dense(20), layers.Dense(1)]
    )
    order = np.random.default_rng(0).permutation(20)
    model.set_weights(
        [order[None] / 1.0, np.zeros(20), np.ones((20, 1)), np.zeros(1)]
    )
    kernel = smooth(model).get_weights()[0][0]
    assert kernel.tolist() in (list(range(20)), list(range(20))[::-1])


def test_layers_choose_what_moves():
    model = residual_network()
    smoothed = smooth(model, layers="inner")
    moved = [
        layout.path
        for layout, a, b in zip(
            trace(model).layouts, values(model), values(smoothed), strict=True
        )
        if (a != b).any()
    ]
    assert "inner/kernel" in moved and "norm/gamma" in moved
    assert not any("dense" in path for path in moved)


def test_progress_goes_to_stderr(capsys):
    model = keras.Sequential(
        [keras.Input((3,)), layers.Dense(16, name="wide"), layers.Dense(2)]
    )
    smooth(model)
    assert capsys.readouterr().err == ""
    smooth(model, verbose=True)
    captured = capsys.readouterr()
    assert "Smoothing 'wide' (16 channels): 100 %\n" in captured.err
    assert captured.out == ""
