"""Targets of many kinds: what they hold besides kernels must survive."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def data(number=32, features=6):
    random = np.random.default_rng(0)
    x = random.normal(size=(number, features)) * 3 + 2
    return x.astype("float32"), random.integers(0, 3, number).astype("int32")


def array(x):
    return ops.convert_to_numpy(x)


def fit(model, x, y=None, loss=CROSSENTROPY, field="anchored", **kwargs):
    hyper = nm.ManifoldHyperModel(model, field, smooth=False, seed=0)
    hyper.compile(keras.optimizers.SGD(0.1), loss, **kwargs)
    history = hyper.fit(x, y, batch_size=16, verbose=0).history
    return hyper, history


def test_adapted_normalization_survives(tmp_path):
    x, y = data()
    normalization = layers.Normalization()
    normalization.adapt(x)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            normalization,
            layers.Dense(8, activation="relu"),
            layers.Dense(3),
        ]
    )
    expected = array(model(x))
    hyper = nm.ManifoldHyperModel(model)
    for same in (
        hyper,
        hyper.morph(1.0),
        nm.smooth(model),
        nm.cut(model, 1.0),
        nm.fold_batch_norm(model),
    ):
        np.testing.assert_allclose(array(same(x)), expected, atol=1e-5)
    hyper.save(tmp_path / "hyper.keras")
    loaded = keras.saving.load_model(tmp_path / "hyper.keras")
    np.testing.assert_allclose(array(loaded(x)), expected, atol=1e-5)
    np.testing.assert_allclose(
        array(loaded.morph(0.5)(x)), array(hyper.morph(0.5)(x)), atol=1e-5
    )


def test_operations_fold_train_and_morph():
    x, y = data()
    inputs = keras.Input((6,))
    hidden = ops.relu(layers.Dense(10, name="first")(inputs)) * 2.0
    hidden = layers.Dense(12, name="second")(hidden)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    np.testing.assert_allclose(
        array(nm.fold_batch_norm(model)(x)), array(model(x)), atol=1e-5
    )
    hyper, _ = fit(model, x, y)
    small = hyper.morph(0.5)
    assert small.get_layer("first").units == 5
    assert small.get_layer("second").units == 6
    assert small(x).shape == (32, 3)


def test_target_with_added_losses_only():
    x, _ = data()
    inputs = keras.Input((6,))
    hidden = layers.Dense(8)(inputs)
    hidden = layers.ActivityRegularization(l2=0.1)(hidden)
    model = keras.Model(inputs, hidden)
    outer = keras.Model(inputs, layers.Dense(3, trainable=False)(model.output))
    _, history = fit(outer, x, loss=None)
    assert history["loss"][0] > 0


def test_dict_of_outputs_distils_each_by_its_loss_and_weight():
    x, y = data()
    inputs = keras.Input((6,))
    hidden = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(
        inputs,
        {
            "z_class": layers.Dense(3, name="d1")(hidden),
            "a_value": layers.Dense(1, name="d2")(hidden),
        },
    )
    targets = {"z_class": y, "a_value": x[:, :1] * 100}
    losses = {"z_class": CROSSENTROPY, "a_value": "mse"}
    _, history = fit(
        model,
        x,
        targets,
        losses,
        loss_weights={"z_class": 1.0, "a_value": 0.0},
    )
    # A cross-entropy of three classes alone, not that of values near 100.
    assert 0.3 < history["distillation_loss"][0] < 20.0


@pytest.mark.parametrize(
    "field", ["anchored", nm.ImplicitField(imitation_steps=2, seed=0)]
)
def test_weights_without_channels_and_frozen_layers_are_held(field):
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.Embedding(300, 4, mask_zero=True, name="words")(inputs)
    hidden = layers.SimpleRNN(6)(hidden)
    hidden = layers.Dense(10, name="frozen", trainable=False)(hidden)
    hidden = layers.Dense(8, activation="relu", name="free")(hidden)
    model = keras.Model(inputs, layers.Dense(3)(hidden))
    x = np.random.default_rng(0).integers(0, 300, (32, 5))
    hyper, _ = fit(model, x, data()[1], field=field)
    full = hyper.morph(1.0)
    np.testing.assert_allclose(
        array(full.get_layer("frozen").kernel),
        array(model.get_layer("frozen").kernel),
        atol=1e-6,
    )
    words = array(full.get_layer("words").embeddings)
    moved = words - array(model.get_layer("words").embeddings)
    assert 0 < np.abs(moved).max() < 0.5
    # No network has a row of 300 words to make.
    assert hyper.field.count_params() < 110_000
    assert hyper.morph(0.5)(x).shape == (32, 3)


def test_statistics_over_fixed_channels_belong_to_a_size():
    x, y = data(64)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            layers.Dense(16, activation="relu"),
            layers.Dense(3, name="fixed"),
            layers.BatchNormalization(momentum=0.5, name="norm"),
        ]
    )
    # Two sizes only: no others move the knots between which they lie.
    sampler = nm.Sandwich(num_fixed=2, num_random=0)
    hyper = nm.ManifoldHyperModel(model, sampler=sampler, seed=0)
    hyper.compile(keras.optimizers.SGD(0.0), CROSSENTROPY)
    hyper.fit(x, y, batch_size=64, epochs=40, verbose=0)
    for ratio in (1.0, 0.25):
        kept = hyper.morph(ratio).get_layer("norm").moving_variance
        measured = hyper.morph(ratio, calibration_data=x).get_layer("norm")
        np.testing.assert_allclose(
            array(kept), array(measured.moving_variance), rtol=0.05
        )


def test_dropout_with_a_fixed_noise_shape_freezes():
    inputs = keras.Input((4, 6))
    x = layers.Dense(8)(inputs)
    x = layers.Dropout(0.5, noise_shape=(None, 1, 8), name="drop")(x)
    graph = nm.trace(keras.Model(inputs, layers.Dense(3)(x)))
    assert "'drop' has a fixed `noise_shape`" in graph.groups[0].frozen


def test_full_size_whatever_the_divisor():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(20), layers.Dense(3)]
    )
    graph = nm.trace(model)
    assert graph.sizes(1.0, divisor=8) == (20, 3)
    assert graph.sizes(0.5, divisor=8) == (8, 3)


def test_morphing_changes_nothing_and_repeats():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(20), layers.Dense(3)]
    )
    hyper = nm.ManifoldHyperModel(model)
    seed = array(hyper.seed_generator.state)
    first = hyper.morph(0.5, samples=3).get_weights()
    second = hyper.morph(0.5, samples=3).get_weights()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(array(hyper.seed_generator.state), seed)
    with pytest.raises(ValueError, match="`noise` must be a finite number"):
        hyper.morph(0.5, samples=3, noise=float("nan"))


def test_sampler_follows_the_global_seed():
    starts = []
    for _ in range(2):
        keras.utils.set_random_seed(7)
        starts.append(array(nm.Uniform().next()))
    np.testing.assert_array_equal(*starts)
