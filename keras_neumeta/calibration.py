"""Measures batch-norm statistics on data."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.batches import BATCH_SIZE, batches


def calibrate(model, data, batch_size=BATCH_SIZE):
    """Sets the batch-norm statistics of a model to those of some data.

    Each statistic becomes the mean over the batches of what the batch
    normalization layer computes in training mode.

    Args:
        model: Sequential or functional `keras.Model`, changed in place.
        data: Inputs (an array, or a list or dict of arrays, cut into
            batches), or an iterable of batches `x` or `(x, y, ...)`.
        batch_size: Examples per batch where `data` is an array.

    Raises:
        TypeError: If `data` is neither arrays nor an iterable.
        ValueError: If `data` holds no batch, or too many or few arrays.
    """
    measure("data", model, data, batch_size)


def measure(argument, model, data, batch_size=BATCH_SIZE):
    """See `calibrate`; `argument` is the one that the data came by."""
    layers = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    statistics = [
        variable
        for layer in layers
        for variable in (layer.moving_mean, layer.moving_variance)
    ]
    place = {id(v): n for n, v in enumerate(model.non_trainable_variables)}
    places = [place[id(v)] for v in statistics]
    totals, num_batches = [0.0] * len(statistics), 0
    try:
        for layer in layers:
            # Then the new moving average is the batch's own statistic.
            layer.momentum = 0.0
        for x in batches(argument, data, batch_size, len(model.inputs)):
            _, updated = model.stateless_call(
                [v.value for v in model.trainable_variables],
                [v.value for v in model.non_trainable_variables],
                x,
                training=True,
            )
            for index, n in enumerate(places):
                totals[index] = totals[index] + np.asarray(
                    ops.convert_to_numpy(updated[n]), "float64"
                )
            num_batches += 1
    finally:
        for layer, momentum in zip(layers, momenta):
            layer.momentum = momentum
    if not num_batches:
        raise ValueError(
            f"Argument `{argument}` must hold at least one batch of inputs. "
            "Received none."
        )
    for variable, total in zip(statistics, totals):
        variable.assign((total / num_batches).astype("float32"))
