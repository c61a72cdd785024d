"""Importance of channels, and cutting by it."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm

LOSS = keras.losses.MeanSquaredError()


@pytest.fixture
def linear():
    """Two dense layers with weights and gradients known by hand."""
    model = keras.Sequential(
        [
            keras.Input((1,)),
            layers.Dense(3, use_bias=False, name="hidden"),
            layers.Dense(1, use_bias=False, name="head"),
        ]
    )
    model.layers[0].kernel.assign([[1.0, -3.0, 2.0]])
    model.layers[1].kernel.assign([[2.0], [1.0], [-1.0]])
    return model


# Outputs 2 x - 3 x - 2 x = -3 x; with y = 0 the loss is 9 x^2.
X = np.array([[1.0], [2.0]], "float32")
DATA = [(X[:1], np.zeros((1, 1))), (X[1:], np.zeros((1, 1)))]


def expected(criterion):
    hidden, head = np.array([1.0, -3.0, 2.0]), np.array([2.0, 1.0, -1.0])
    # d loss / d hidden_i = 2 (-3 x) head_i x, and the same for the head.
    gradients = [[-6.0 * x**2 * head, -6.0 * x**2 * hidden] for x in (1.0, 2.0)]
    if criterion == "l1":
        return np.abs(hidden) + np.abs(head)
    if criterion == "l2":
        return hidden**2 + head**2
    if criterion == "taylor":
        first, second = np.abs(np.mean(gradients, axis=0))
        return np.abs(hidden) * first + np.abs(head) * second
    first, second = np.mean(np.square(gradients), axis=0)
    return hidden**2 * first + head**2 * second


@pytest.mark.parametrize("criterion", ["l1", "l2", "taylor", "hessian"])
def test_importance_by_hand(linear, criterion):
    scores = nm.channel_importance(linear, criterion, DATA, LOSS)
    assert list(scores) == ["hidden"]
    np.testing.assert_allclose(scores["hidden"], expected(criterion), rtol=1e-4)


def test_random_importance_depends_on_the_seed_alone(linear):
    first, again, other = (
        nm.channel_importance(linear, "random", seed=seed)["hidden"]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_the_compiled_loss_is_the_default(linear):
    linear.compile(loss=LOSS)
    given = nm.channel_importance(linear, "taylor", DATA, LOSS)
    compiled = nm.channel_importance(linear, "taylor", DATA)
    np.testing.assert_allclose(given["hidden"], compiled["hidden"])


def test_cut_keeps_the_most_important(linear):
    scores = nm.channel_importance(linear, "taylor", DATA, LOSS)
    best = int(np.argmax(scores["hidden"]))
    small = nm.cut(linear, 0.3, scores)
    np.testing.assert_allclose(
        ops.convert_to_numpy(small.layers[0].kernel),
        ops.convert_to_numpy(linear.layers[0].kernel)[:, [best]],
    )


def test_channels_to_keep_as_booleans(linear):
    small = nm.cut(linear, {"hidden": [False, True, True]})
    expected = nm.cut(linear, {"hidden": [1, 2]})
    for a, b in zip(small.weights, expected.weights, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(a), ops.convert_to_numpy(b)
        )


@pytest.mark.parametrize("channels", [[0.0, 1.0], [True, False], ["a"]])
def test_channels_to_keep_that_are_none(linear, channels):
    with pytest.raises(TypeError, match="`keep` must give.*'hidden'.*3 bool"):
        nm.cut(linear, {"hidden": channels})


def test_variables_that_do_not_train_have_no_importance(linear):
    linear.layers[1].trainable = False
    scores = nm.channel_importance(linear, "taylor", DATA, LOSS)
    hidden, head = np.array([1.0, 3.0, 2.0]), np.array([2.0, 1.0, 1.0])
    np.testing.assert_allclose(scores["hidden"], hidden * 15 * head, rtol=1e-4)


def test_what_is_missing_is_said(linear):
    with pytest.raises(ValueError, match="`criterion` must be one of"):
        nm.channel_importance(linear, "l3")
    with pytest.raises(ValueError, match="needs gradients"):
        nm.channel_importance(linear, "taylor")
    with pytest.raises(ValueError, match="`loss` is needed"):
        nm.channel_importance(linear, "hessian", DATA)
    with pytest.raises(ValueError, match="at least one batch"):
        nm.channel_importance(linear, "hessian", [], LOSS)
