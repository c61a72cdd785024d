"""Mean inputs of linear layers, from which the mean of their sums follows.

Batch norm behind a linear layer keeps the mean of sums over input channels.
From one size to the next it jumps: each channel adds its own share. What a
channel's input is on average hardly depends on the size, though, and with the
weights of a size it tells the mean of the sum.
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

from keras_neumeta.graph.functional import (
    function_of,
    normalized_layers,
    single_calls,
)
from keras_neumeta.graph.layout import VariableLayout
from keras_neumeta.graph.rules.registry import channel_axis, has_plain_weights

_LINEAR = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class InputMean:
    """The mean input of a linear layer that batch norm follows.

    Attributes:
        layer: Name of the linear layer.
        kernel: Place of its kernel among the weights.
        statistic: Place of the moving mean among the statistics.
        layout: `VariableLayout` of the mean input, one value per channel.
        taps: How much of the input each kernel position sees: below 1 where
            it reaches into the padding. `(positions,)`, one for `Dense`.
        axis: Channel axis of the input.
        momentum: Of the moving mean.
    """

    layer: str
    kernel: int
    statistic: int
    layout: VariableLayout
    taps: np.ndarray
    axis: int
    momentum: float

    def measure(self, inputs):
        """Mean of a batch of inputs, `(channels,)`."""
        axes = [n for n in range(len(inputs.shape)) if n != self.axis]
        return ops.mean(ops.cast(inputs, "float32"), axis=axes)

    def predict(self, kernel, mean):
        """Mean of the sums, `(output channels,)`, for a mean input."""
        seen = ops.convert_to_tensor(self.taps)[:, None] * mean[None]
        kernel = ops.reshape(kernel, (-1, kernel.shape[-1]))
        return ops.matmul(ops.reshape(seen, (1, -1)), kernel)[0]


def find_input_means(function, variables, layouts, groups):
    """The mean inputs that a network's moving means follow from.

    Args:
        function: The functional graph of a network.
        variables, layouts: Its variables and their layouts.
        groups: Its channel groups.

    Returns:
        Tuple of `InputMean`.
    """
    place, counts = {}, {}
    for variable, layout in zip(variables, layouts, strict=True):
        number = counts.get(layout.role, 0)
        counts[layout.role] = number + 1
        place[id(variable)] = number, layout
    found = []
    for call, following in normalized_layers(function):
        linear, norm = call.operation, following.operation
        if type(norm) is not layers.BatchNormalization or not norm.trainable:
            continue
        if not _is_linear(linear) or norm.moving_mean is None:
            continue
        number, kernel = place[id(linear.kernel)]
        if kernel.role != "weight":
            continue
        rank = len(kernel.shape)
        axis = kernel.axes.get(rank - 2)
        if axis is None or not any(
            groups[piece.group].morphable for piece in axis.pieces
        ):
            continue  # The sums are over the same channels at every size.
        given, made = call.input_tensors[0].shape, call.outputs[0].shape
        channels = channel_axis(linear, len(given))
        found.append(
            InputMean(
                linear.name,
                number,
                place[id(norm.moving_mean)][0],
                VariableLayout(
                    f"{linear.name}/mean_input",
                    (len(axis),),
                    {0: axis},
                    "statistic",
                    False,
                ),
                _taps(linear, given, made, channels),
                channels,
                norm.momentum,
            )
        )
    return tuple(sorted(found, key=lambda mean: mean.statistic))


def with_inputs(model, names):
    """A network that also returns the inputs of the layers of these names.

    Args:
        model: Sequential or functional `keras.Model`.
        names: Names of layers that it calls once.

    Returns:
        `keras.Model` with the same layers; its output is a list of the
        network's output and the list of those inputs.
    """
    function = function_of(model)
    calls = {n.operation.name: n for n in single_calls(function).values()}
    inputs = [calls[name].input_tensors[0] for name in names]
    return keras.Model(function.input, [function.output, inputs])


def _is_linear(layer):
    return (
        type(layer) in _LINEAR
        and layer.activation in (None, keras.activations.linear)
        and getattr(layer, "groups", 1) == 1
        and has_plain_weights(layer)
    )


def _taps(layer, given, made, channels):
    """How much of the input each position of the kernel sees."""
    if isinstance(layer, layers.Dense):
        return np.ones(1, "float32")
    spatial = [n for n in range(1, len(given)) if n != channels]
    taps = np.ones((), "float32")
    for length, outputs, kernel, stride, dilation in zip(
        [given[n] for n in spatial],
        [made[n] for n in spatial],
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        strict=True,
    ):
        seen = np.ones(kernel)
        if layer.padding != "valid" and length is not None:
            reach = (kernel - 1) * dilation + 1
            missing = max((outputs - 1) * stride + reach - length, 0)
            before = missing // 2 if layer.padding == "same" else missing
            places = (
                stride * np.arange(outputs)[None]
                + dilation * np.arange(kernel)[:, None]
                - before
            )
            seen = ((places >= 0) & (places < length)).mean(axis=1)
        taps = taps[..., None] * seen
    return taps.reshape(-1).astype("float32")
