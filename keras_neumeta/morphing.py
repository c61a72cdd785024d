"""`morph`: the plain network of a size."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.calibration import measure
from keras_neumeta.graph import assign, call_once, resize
from keras_neumeta.graph.sizes import sizes_from_names
from keras_neumeta.reduction import reduce_channels, source_of


def choose_sizes(
    hyper, ratio, sizes, params, macs, divisor, extrapolate=False, depth=None
):
    """The sizes for the arguments of `ManifoldHyperModel.morph`."""
    chosen = _choose(
        hyper, ratio, sizes, params, macs, divisor, extrapolate, depth
    )
    if depth is None:
        return chosen
    return hyper.graph.at_depth(chosen, depth)


def check_one_way(subject, ratio=None, sizes=None, params=None, macs=None):
    """Checks that a size is said, and said once.

    Args:
        subject: What needs it, for the message.
    """
    ways = [
        ratio is not None,
        sizes is not None,
        params is not None or macs is not None,
    ]
    if sum(ways) != 1:
        raise ValueError(
            f"{subject} needs one of `ratio` (the kept width), `sizes`, or a "
            "budget (`params`, `macs`, or both). "
            f"Received: ratio={ratio}, sizes={sizes}, "
            f"params={params}, macs={macs}"
        )


def _choose(hyper, ratio, sizes, params, macs, divisor, extrapolate, depth):
    graph = hyper.graph
    if extrapolate and not hyper.field.extrapolates:
        raise ValueError(
            "Argument `extrapolate`: the weight field "
            f"({type(hyper.field).__name__}) has no weights above the full "
            "size."
        )
    limit = np.inf if extrapolate else 1.0
    check_one_way("`morph`", ratio, sizes, params, macs)
    if ratio is not None:
        return graph.sizes(ratio, divisor, limit)
    if sizes is not None:
        if divisor != 1:
            raise ValueError(
                "Argument `divisor` does not go with `sizes`, which says the "
                f"numbers of channels. Received: divisor={divisor}"
            )
        return sizes_from_names(graph, sizes, limit)
    return graph.sizes_within(params, macs, divisor, depth)


def morph(
    hyper,
    sizes,
    samples=1,
    noise=1.0,
    calibration_data=None,
    name=None,
    into=None,
):
    """See `ManifoldHyperModel.morph`; `sizes` are those of the graph."""
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
    if isinstance(noise, bool) or not isinstance(noise, int | float):
        raise TypeError(
            "Argument `noise` must be a number of channels. "
            f"Received: noise={noise!r}"
        )
    if not 0.0 <= noise < np.inf:
        raise ValueError(
            "Argument `noise` must be a finite number of channels, at least "
            f"0. Received: noise={noise}"
        )
    source, start = source_of(hyper, sizes)
    weights = _average_weights(hyper, start, samples, noise)
    statistics = [
        ops.convert_to_numpy(v)
        for v in hyper.statistics.generate(start, weights)
    ]
    if source is not None:
        weights, statistics = reduce_channels(
            hyper.graph, source, start, sizes, weights, statistics
        )
    states = [ops.convert_to_numpy(v) for v in hyper.states]
    values = hyper.networks.full.merge(weights, statistics, states)
    before = None
    if into is None:
        model = resize(hyper.graph, sizes, name=name)
        call_once(model)
    else:
        _check_into(into, hyper.graph, sizes, name)
        model, before = into, into.get_weights()
    assign(model, [values[index] for index in hyper.graph.places(model)])
    try:
        if calibration_data is not None:
            measure("calibration_data", model, calibration_data)
    except BaseException:
        if before is not None:
            model.set_weights(before)
        raise
    return model


def _check_into(model, graph, sizes, name):
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Argument `into` must be a `keras.Model` that `morph` has built. "
            f"Received: into={model!r}"
        )
    if name is not None:
        raise ValueError(
            "Argument `name` does not go with `into`, which has a name. "
            f"Received: name={name!r}"
        )
    places = graph.places(model)
    shapes = [graph.layouts[place].shape_at(sizes) for place in places]
    if sum(layout.exists_at(sizes) for layout in graph.layouts) != len(
        places
    ) or shapes != [tuple(variable.shape) for variable in model.variables]:
        raise ValueError(
            f"Argument `into`: '{model.name}' is not of the size that is "
            "asked for. Give the network that `morph` built for the same "
            "size, or leave `into` out."
        )


def _average_weights(hyper, sizes, samples, noise):
    total = [
        np.asarray(ops.convert_to_numpy(v), "float32")
        for v in hyper.field.generate(sizes)
    ]
    # A generator of its own: morphing leaves the hypermodel as it is.
    seed = keras.random.SeedGenerator(hyper.seed or 0)
    for _ in range(samples - 1):
        offsets = hyper.draw_offsets(sizes, noise, seed)
        sample = hyper.field.generate(sizes, offsets)
        for sum_, value in zip(total, sample):
            sum_ += ops.convert_to_numpy(value)
    return [value / samples for value in total]
