"""Sums over channels that change, and what their moments follow from.

Batch norm behind a linear layer keeps the mean and the variance of sums over
input channels. From one size to the next they jump: each channel adds its own
share. What a channel's input is on average hardly depends on the size, though,
and with the weights of a size it tells the mean of the sum; most of its
variance is that of its squared weights.
"""

import dataclasses

import keras
import numpy as np
from keras import layers, ops

from keras_neumeta.graph.functional import (
    function_of,
    normalized_layers,
    own_calls,
    readers_of,
)
from keras_neumeta.graph.layout import VariableLayout
from keras_neumeta.graph.rules.registry import channel_axis, has_plain_weights

_DISTURBING = (
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
)
_PASSING = (
    layers.Flatten,
    layers.Reshape,
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
)
_LINEAR = (layers.Dense, layers.Conv1D, layers.Conv2D, layers.Conv3D)


@dataclasses.dataclass(frozen=True)
class LinearSum:
    """The sums of a linear layer over input channels that change.

    Attributes:
        layer: Name of the linear layer.
        kernel: Place of its kernel among the weights.
        bias: Place of its bias, or `None`.
        layout: `VariableLayout` of the mean input, one value per channel.
        taps: How much of the input each kernel position sees: below 1 where
            it reaches into the padding. `(positions,)`, one for `Dense`.
        axis: Channel axis of the input.
        number: Channel axis of the input in the kernel.
        normalized: Whether nothing but batch norm reads the sums, which
            therefore may be moved by a constant.
    """

    layer: str
    kernel: int
    bias: int | None
    layout: VariableLayout
    taps: np.ndarray
    axis: int
    number: int
    normalized: bool

    def measure(self, inputs):
        """Mean of a batch of inputs, `(channels,)`."""
        axes = [n for n in range(len(inputs.shape)) if n != self.axis]
        return ops.mean(ops.cast(inputs, "float32"), axis=axes)

    def predict_mean(self, kernel, inputs):
        """Mean of the sums, `(output channels,)`, for a mean input."""
        seen = ops.convert_to_tensor(self.taps)[:, None] * inputs[None]
        kernel = ops.reshape(kernel, (-1, kernel.shape[-1]))
        return ops.matmul(ops.reshape(seen, (1, -1)), kernel)[0]


@dataclasses.dataclass(frozen=True)
class NormalizedSum(LinearSum):
    """Such sums that batch norm follows.

    Attributes:
        mean, variance: Places of the moving mean and variance among the
            statistics.
        epsilon: Variance that counts as none.
    """

    mean: int
    variance: int
    epsilon: float

    def predict_variance(self, kernel):
        """Variance of the sums but for a factor, plus `epsilon`."""
        axes = list(range(len(kernel.shape) - 1))
        return ops.sum(ops.square(kernel), axis=axes) + self.epsilon


def find_sums(function, variables, layouts, groups):
    """The sums over channels that change, of linear layers called once.

    Args:
        function: The functional graph of a network.
        variables, layouts: Its variables and their layouts.
        groups: Its channel groups.

    Returns:
        Tuple of `LinearSum`, and tuple of `NormalizedSum`, one for each batch
        norm that follows one of them.
    """
    place, counts = {}, {}
    for variable, layout in zip(variables, layouts, strict=True):
        number = counts.get(layout.role, 0)
        counts[layout.role] = number + 1
        place[id(variable)] = number, layout
    norms: dict = {}
    for call, following in normalized_layers(function):
        if _measures(following.operation):
            norms.setdefault(id(call), []).append(following)
    readers = readers_of(function)
    sums, normalized = [], []
    for call in own_calls(function).values():
        linear = call.operation
        if not _is_plain(linear):
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
        following = norms.get(id(call), [])
        known = {
            "layer": linear.name,
            "kernel": number,
            "bias": place[id(linear.bias)][0] if linear.use_bias else None,
            "layout": VariableLayout(
                path=f"{linear.name}/mean_input",
                shape=(len(axis),),
                axes={0: axis},
                role="statistic",
                trainable=False,
                block=kernel.block,
            ),
            "taps": _taps(linear, given, made, channels),
            "axis": channels,
            "number": rank - 2,
            "normalized": {id(node) for node in following}
            == set(readers.get(id(call.outputs[0]), ())),
        }
        sums.append(LinearSum(**known))
        for norm in (node.operation for node in following):
            layout = dataclasses.replace(
                known["layout"], momentum=norm.momentum
            )
            normalized.append(
                NormalizedSum(
                    **{**known, "layout": layout},
                    mean=place[id(norm.moving_mean)][0],
                    variance=place[id(norm.moving_variance)][0],
                    epsilon=norm.epsilon,
                )
            )
    return (
        tuple(sorted(sums, key=lambda each: each.kernel)),
        tuple(sorted(normalized, key=lambda each: each.mean)),
    )


def _measures(norm):
    """Whether it is a batch norm that keeps the moments of what it is given."""
    return (
        type(norm) is layers.BatchNormalization
        and norm.trainable
        and norm.moving_mean is not None
    )


def with_inputs(model, names):
    """A network that also returns what the layers of these names are given.

    Before dropout and noise of the training, if there are any.

    Args:
        model: Sequential or functional `keras.Model`.
        names: Names of layers that it calls once: a network of another size
            has layers of the same names.

    Returns:
        `keras.Model` with the same layers; its output is a list of the
        network's output and the list of those inputs.
    """
    function = function_of(model)
    calls = {n.operation.name: n for n in own_calls(function).values()}
    inputs = [_undisturbed(calls[name].input_tensors[0]) for name in names]
    return keras.Model(function.input, [function.output, inputs])


def _undisturbed(x):
    """The tensor as it is without dropout and noise right before it."""
    operation, node, _ = x._keras_history
    if not isinstance(operation, (*_DISTURBING, *_PASSING)):
        return x
    (before,) = operation._inbound_nodes[node].input_tensors
    after = _undisturbed(before)
    if isinstance(operation, _DISTURBING):
        return after
    return x if after is before else operation(after)


def _is_plain(layer):
    return (
        type(layer) in _LINEAR
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
            before = reach - 1 if layer.padding == "causal" else missing // 2
            places = (
                stride * np.arange(outputs)[None]
                + dilation * np.arange(kernel)[:, None]
                - before
            )
            seen = ((places >= 0) & (places < length)).mean(axis=1)
        taps = taps[..., None] * seen
    return taps.reshape(-1).astype("float32")
