"""Moments of sums over channels."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import trace

# Layer, stride, kernel, dilation, length; Keras has no strides together with
# dilation.
CASES = [
    case
    for case in itertools.product(
        (layers.Conv1D, layers.Conv2D), (1, 2, 3), (1, 2, 3), (1, 2), (7, 8)
    )
    if case[1] == 1 or case[3] == 1
]


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
def test_mean_of_sums_over_a_constant_image(padding):
    """Exact, with every border, stride and dilation."""
    random = np.random.default_rng(0)
    for layer, stride, kernel, dilation, length in CASES:
        if padding == "causal" and layer is not layers.Conv1D:
            continue
        dimensions = 1 if layer is layers.Conv1D else 2
        inputs = keras.Input((length,) * dimensions + (2,))
        x = layer(3, 1)(inputs)
        sums = layer(
            4,
            kernel,
            strides=stride,
            padding=padding,
            dilation_rate=dilation,
            use_bias=False,
            name="sums",
        )
        x = layers.BatchNormalization()(sums(x))
        x = layers.Flatten()(x)
        graph = trace(keras.Model(inputs, layers.Dense(2)(x)))
        (found,) = graph.normalized_sums
        assert found.layer == "sums"
        weights = random.normal(size=sums.kernel.shape).astype("float32")
        sums.kernel.assign(weights)
        mean = random.normal(size=3).astype("float32")
        image = np.broadcast_to(mean, (1, *(length,) * dimensions, 3))
        true = ops.convert_to_numpy(sums(image.copy()))
        predicted = found.predict_mean(sums.kernel, ops.convert_to_tensor(mean))
        np.testing.assert_allclose(
            ops.convert_to_numpy(predicted),
            true.reshape(-1, 4).mean(axis=0),
            atol=1e-4,
            err_msg=str((layer, stride, kernel, dilation, length)),
        )
