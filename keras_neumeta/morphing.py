"""`morph`: the plain network of a size."""

import numpy as np
from keras import ops

from keras_neumeta.calibration import calibrate
from keras_neumeta.graph import resize


def morph(
    hyper,
    ratio,
    *,
    samples=1,
    noise=1.0,
    divisor=1,
    calibration_data=None,
    name=None,
):
    """See `ManifoldHyperModel.morph`."""
    sizes = hyper.graph.sizes(ratio, divisor)
    if isinstance(samples, bool) or not isinstance(samples, int):
        raise TypeError(
            "Argument `samples` must be an integer of at least 1. "
            f"Received: samples={samples!r}"
        )
    if samples < 1:
        raise ValueError(
            "Argument `samples` must be at least 1. "
            f"Received: samples={samples}"
        )
    weights = _average_weights(hyper, sizes, samples, noise)
    statistics = [
        ops.convert_to_numpy(v) for v in hyper.statistics.generate(sizes)
    ]
    states = [ops.convert_to_numpy(v) for v in hyper.states]
    model = resize(hyper.graph, sizes, name=name)
    values = hyper.networks.full.merge(weights, statistics, states)
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)
    if calibration_data is not None:
        calibrate(model, calibration_data)
    return model


def _average_weights(hyper, sizes, samples, noise):
    total = [
        np.asarray(ops.convert_to_numpy(v), "float32")
        for v in hyper.field.generate(sizes)
    ]
    for _ in range(samples - 1):
        offsets = hyper.draw_offsets(sizes, noise)
        sample = hyper.field.generate(sizes, offsets)
        for sum_, value in zip(total, sample):
            sum_ += ops.convert_to_numpy(value)
    return [value / samples for value in total]
