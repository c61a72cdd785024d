"""Recurrent layers."""

import keras
import numpy as np

from keras_neumeta.graph.rules.registry import (
    freeze_positions,
    is_elementwise,
    num_positions,
    register_rule,
)

# Gates per unit, whose kernels lie side by side.
_CELLS = {
    keras.layers.SimpleRNNCell: 1,
    keras.layers.GRUCell: 3,
    keras.layers.LSTMCell: 4,
}


def _cell(call, cell, prefix, inputs, steps):
    """Registers a cell. Returns the labels of its units and of its states."""
    units = call.new_channels(cell.units)
    gates = np.tile(units, _CELLS[type(cell)])
    call.weight(cell.kernel, {0: inputs, 1: gates}, (0,), steps)
    call.weight(cell.recurrent_kernel, {0: units, 1: gates}, (0,), steps)
    if cell.bias is not None:
        call.weight(cell.bias, {len(cell.bias.shape) - 1: gates})
    call.resize(f"{prefix}units", units)
    for name in ("activation", "recurrent_activation"):
        function = getattr(cell, name, None)
        if not is_elementwise(function):
            call.freeze(
                units,
                f"activation '{getattr(function, '__name__', function)}' of "
                f"layer '{call.layer.name}' is not known to act on each "
                "channel alone",
            )
    return units, [units] * (
        2 if isinstance(cell, keras.layers.LSTMCell) else 1
    )


def _recur(call, layer, x, initial, prefix):
    """A recurrent layer. Returns labels of the outputs and of the states."""
    steps = num_positions(x.shape)
    cell = layer.cell
    if isinstance(cell, keras.layers.StackedRNNCells):
        cells = [
            (part, f"{prefix}cell.config.cells.{n}.config.")
            for n, part in enumerate(cell.cells)
        ]
    elif type(layer) is keras.layers.RNN:
        cells = [(cell, f"{prefix}cell.config.")]
    else:
        cells = [(cell, prefix)]
    labels, states = x.channels(-1), []
    for part, place in cells:
        labels, own = _cell(call, part, place, labels, steps)
        states += own
    for given, state in zip(initial, states):
        call.tie(given.channels(-1), state)
    return labels, states


def _inputs(call):
    """The sequence and the initial states."""
    x, initial = call.bind("sequences", "initial_state")
    return x, [] if initial is None else keras.tree.flatten(initial)


def _known(layer):
    cell = getattr(layer, "cell", None)
    cells = getattr(cell, "cells", [cell])
    return all(type(part) in _CELLS for part in cells)


def _outputs(call, labels, states):
    outputs = [call.output({-1: labels})]
    for index, state in enumerate(states[: len(call.output_shapes) - 1], 1):
        outputs.append(call.output({-1: state}, index))
    return outputs


def _no_rule(call):
    call.freeze_inputs(
        f"layer '{call.layer.name}' has a recurrent cell without a rule"
    )
    return [call.output(index=n) for n in range(len(call.output_shapes))]


@register_rule(
    keras.layers.RNN,
    keras.layers.SimpleRNN,
    keras.layers.GRU,
    keras.layers.LSTM,
)
def recurrent(call):
    if not _known(call.layer):
        return _no_rule(call)
    x, initial = _inputs(call)
    freeze_positions(call, x, -1)
    labels, states = _recur(call, call.layer, x, initial, "")
    return _outputs(call, labels, states)


@register_rule(keras.layers.Bidirectional)
def bidirectional(call):
    layer = call.layer
    forward, backward = layer.forward_layer, layer.backward_layer
    if not _known(forward) or not _known(backward):
        return _no_rule(call)
    x, initial = _inputs(call)
    freeze_positions(call, x, -1)
    half = len(initial) // 2
    first, states = _recur(call, forward, x, initial[:half], "layer.config.")
    second, more = _recur(
        call, backward, x, initial[half:], "backward_layer.config."
    )
    # Keras takes both directions to have equally many units.
    call.tie(first, second)
    states = states + more
    if layer.merge_mode is None:
        outputs = [call.output({-1: first}), call.output({-1: second}, 1)]
        for index in range(2, len(call.output_shapes)):
            outputs.append(call.output({-1: states[index - 2]}, index))
        return outputs
    if layer.merge_mode == "concat":
        return _outputs(call, np.concatenate([first, second]), states)
    return _outputs(call, first, states)
