"""Batch-norm statistics measured on data."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import calibrate


def network():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.BatchNormalization(momentum=0.9, name="first"),
            layers.Dense(4, activation="relu", name="dense"),
            layers.Dropout(0.5, seed=0),
            layers.BatchNormalization(name="second"),
        ]
    )


def data(number=32):
    random = np.random.default_rng(0)
    return (random.normal(size=(number, 3)) * 3 + 2).astype("float32")


def statistics(model, name="first"):
    layer = model.get_layer(name)
    return (
        ops.convert_to_numpy(layer.moving_mean),
        ops.convert_to_numpy(layer.moving_variance),
    )


def test_one_batch_gives_its_own_statistics():
    model, x = network(), data()
    before = model.get_layer("dense").get_weights()
    calibrate(model, x)
    mean, variance = statistics(model)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-4)
    assert model.get_layer("first").momentum == 0.9
    for a, b in zip(
        before, model.get_layer("dense").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    second, _ = statistics(model, "second")
    assert (second != 0).any()


def test_several_batches_give_the_mean():
    model, x = network(), data()
    calibrate(model, x, batch_size=8)
    mean, variance = statistics(model)
    batches = x.reshape(4, 8, 3)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(
        variance, batches.var(axis=1).mean(axis=0), rtol=1e-4
    )


@pytest.mark.parametrize("labelled", [False, True])
def test_iterables_of_batches(labelled):
    model, x = network(), data()
    batches = list(x.reshape(4, 8, 3))
    if labelled:
        batches = [(b, np.zeros(8)) for b in batches]
    calibrate(model, iter(batches))
    other = network()
    calibrate(other, x, batch_size=8)
    for a, b in zip(statistics(model), statistics(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_tf_data():
    tf = pytest.importorskip("tensorflow")
    model, x = network(), data()
    calibrate(model, tf.data.Dataset.from_tensor_slices(x).batch(8))
    np.testing.assert_allclose(statistics(model)[0], x.mean(0), rtol=1e-4)


def test_several_inputs():
    inputs = {
        "a": keras.Input((3,), name="a"),
        "b": keras.Input((2,), name="b"),
    }
    x = layers.Concatenate()([inputs["a"], inputs["b"]])
    model = keras.Model(inputs, layers.BatchNormalization(name="first")(x))
    values = {"a": data(), "b": data()[:, :2]}
    calibrate(model, values)
    np.testing.assert_allclose(
        statistics(model)[0],
        np.concatenate([values["a"], values["b"]], axis=1).mean(0),
        rtol=1e-4,
    )


def test_nested_models_are_calibrated():
    model = keras.Sequential([keras.Input((3,)), network()])
    calibrate(model, data())
    assert (statistics(model.layers[0])[0] != 0).all()


def test_model_without_batch_norm_is_left_alone():
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    before = model.get_weights()
    calibrate(model, data())
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("empty", [[], np.zeros((0, 3), "float32")], ids=str)
def test_no_data(empty):
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError, match="`data` must hold at least one batch"):
        calibrate(model, empty)
    assert model.get_layer("first").momentum == 0.9
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_failed_batch_restores_the_momenta():
    model = network()
    with pytest.raises(ValueError, match="incompatible with the layer"):
        calibrate(model, np.zeros((4, 7), "float32"))
    assert model.get_layer("first").momentum == 0.9
