"""Measures batch-norm statistics on data."""

import keras
import numpy as np
from keras import ops

BATCH_SIZE = 128


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
        ValueError: If `data` holds no batch.
    """
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
        for x in _batches(data, batch_size, len(model.inputs)):
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
            "Argument `calibration_data` must hold at least one batch of "
            "inputs. Received none."
        )
    for variable, total in zip(statistics, totals):
        variable.assign((total / num_batches).astype("float32"))


def _batches(data, batch_size, num_inputs):
    arrays = [x for x in keras.tree.flatten(data) if hasattr(x, "shape")]
    if arrays and len(arrays) == len(keras.tree.flatten(data)):
        if len(arrays) != num_inputs:
            raise ValueError(
                "Argument `calibration_data` must hold one array per input "
                f"of the model ({num_inputs}), without labels, or be an "
                "iterable such as a `tf.data.Dataset` of batches `x` or "
                f"`(x, y)`. Received {len(arrays)} arrays."
            )
        length = arrays[0].shape[0]
        for start in range(0, length, batch_size):
            yield keras.tree.map_structure(
                lambda x, start=start: ops.convert_to_tensor(
                    x[start : start + batch_size]
                ),
                data,
            )
        return
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            "Argument `calibration_data` must be arrays of inputs or an "
            f"iterable of batches. Received: {data!r}"
        )
    for batch in data:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield keras.tree.map_structure(ops.convert_to_tensor, x)
