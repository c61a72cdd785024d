"""Layer rules: how each kind of layer carries channels.

A rule is a function of one `LayerCall`. It says which axes of the layer's
weights hold which channels (`call.weight`, `call.statistic`), which argument
of the layer's config counts them (`call.resize`), which channels are the same
(`call.tie`) or can never change (`call.freeze`), and returns the output with
its channels (`call.output`). A layer without a rule freezes what it touches.
"""

import math

import keras
import numpy as np

from keras_neumeta.graph.tracer import TracedTensor

_RULES: dict = {}
_ELEMENTWISE: set = set()


def register_rule(*layer_classes):
    """Decorator that registers a rule for one or more layer classes.

    A later registration replaces an earlier one, so a user can also replace
    a built-in rule. Rules reach subclasses that do not override `call` or
    `build`.

    Args:
        layer_classes: Classes of `keras.layers.Layer`.

    Returns:
        The decorator, which returns the rule unchanged.

    Raises:
        TypeError: If an argument is not a class.

    Example:

    ```python
    class Scale(keras.layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), name="scale")

        def call(self, x):
            return x * self.scale

    @keras_neumeta.register_rule(Scale)
    def scale_rule(call):
        (x,) = call.inputs
        call.weight(call.layer.scale, {0: x.channels(-1)})
        return call.output({-1: x.channels(-1)})
    ```
    """
    for layer_class in layer_classes:
        if not isinstance(layer_class, type):
            raise TypeError(
                "Argument `layer_classes` of `register_rule` must be classes, "
                f"as in `@register_rule(MyLayer)`. Received: {layer_class!r}"
            )

    def decorator(rule):
        for layer_class in layer_classes:
            _RULES[layer_class] = rule
        return rule

    return decorator


def register_elementwise(*functions):
    """Says that activation functions act on each value alone.

    An activation that the library does not know freezes the channels that it
    touches, since it might mix them (as softmax does).

    Args:
        functions: Activation functions, as given to a layer.

    Example:

    ```python
    def soft_clip(x):
        return keras.ops.tanh(x / 3) * 3

    keras_neumeta.register_elementwise(soft_clip)
    ```
    """
    _ELEMENTWISE.update(functions)


def find_rule(layer):
    """The rule for a layer, or `None`."""
    for layer_class in type(layer).__mro__:
        if layer_class in _RULES:
            same = all(
                getattr(type(layer), method, None)
                is getattr(layer_class, method, None)
                for method in ("call", "build")
            )
            return _RULES[layer_class] if same else None
    return None


def _layer_classes(*names):
    """The classes of these names that this version of Keras has."""
    return [
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    ]


_ELEMENTWISE.update(
    getattr(keras.activations, name)
    for name in (
        "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu "
        "hard_tanh leaky_relu linear log_sigmoid mish relu relu6 selu "
        "sigmoid silu soft_shrink softplus softsign sparse_plus squareplus "
        "tanh tanh_shrink threshold"
    ).split()
    if hasattr(keras.activations, name)
)


def _apply_activation(call, labels):
    """Freezes the channels that a layer's activation may mix."""
    activation = getattr(call.layer, "activation", None)
    if activation is None or activation in _ELEMENTWISE:
        return
    if isinstance(activation, keras.layers.Layer) and type(activation) in (
        _ELEMENTWISE_LAYERS
    ):
        return
    name = getattr(activation, "__name__", type(activation).__name__)
    call.freeze(
        labels,
        f"activation '{name}' of layer '{call.layer.name}' is not known to "
        "act on each channel alone",
    )


def _channel_axis(layer, rank):
    """The channel axis by `data_format`, from the front."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def _spatial_size(shape, channel_axis):
    """Number of positions of a feature map (1 where unknown)."""
    return math.prod(
        size or 1
        for axis, size in enumerate(shape)
        if axis not in (0, channel_axis)
    )


# Layers with kernels


@register_rule(keras.layers.Dense)
def dense(call):
    (x,) = call.inputs[:1]
    layer = call.layer
    units = call.new_channels(layer.units)
    positions = _spatial_size(x.shape, len(x.shape) - 1)
    _kernel(call, layer, {0: x.channels(-1), 1: units}, (0,), positions)
    call.weight(layer.bias, {0: units})
    call.resize("units", units)
    _apply_activation(call, units)
    return call.output({**_other_axes(x, -1), -1: units})


def _kernel(call, layer, labels, summed, positions):
    if getattr(layer, "lora_enabled", False) or getattr(
        layer, "quantization_mode", None
    ):
        for value in labels.values():
            call.freeze(
                value,
                f"layer '{layer.name}' has LoRA or quantized weights",
            )
        return
    call.weight(layer.kernel, labels, summed, positions)


def _other_axes(x, axis):
    """Labels of the axes other than `axis`, for layers that keep them."""
    axis = axis % len(x.shape)
    return {n: value for n, value in x.labels.items() if n != axis}


def _block_channels(call, labels, groups):
    """Labels of the channels of one block of a grouped convolution.

    Ties the channels across the blocks, since every block must keep equally
    many.
    """
    if labels is None or groups == 1:
        return labels
    blocks = labels.reshape(groups, -1)
    for block in blocks[1:]:
        call.tie(blocks[0], block)
    return blocks[0]


def _freeze_spatial(call, x, channel_axis):
    for axis, labels in x.labels.items():
        if axis != channel_axis:
            call.freeze(
                labels, f"layer '{call.layer.name}' treats them as positions"
            )


@register_rule(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
)
def conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = _channel_axis(layer, rank)
    _freeze_spatial(call, x, axis)
    filters = call.new_channels(layer.filters)
    _block_channels(call, filters, layer.groups)
    inputs = _block_channels(call, x.channels(axis), layer.groups)
    positions = _spatial_size(call.output_shapes[0], axis)
    _kernel(
        call,
        layer,
        {rank - 2: inputs, rank - 1: filters},
        (rank - 2,),
        positions,
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    _apply_activation(call, filters)
    return call.output({axis: filters})


@register_rule(
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
def conv_transpose(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = _channel_axis(layer, rank)
    _freeze_spatial(call, x, axis)
    filters = call.new_channels(layer.filters)
    call.weight(
        layer.kernel,
        {rank - 2: filters, rank - 1: x.channels(axis)},
        (rank - 1,),
        _spatial_size(x.shape, axis),
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    _apply_activation(call, filters)
    return call.output({axis: filters})


def _depthwise_labels(labels, multiplier):
    return None if labels is None else np.repeat(labels, multiplier)


@register_rule(keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
def depthwise_conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = _channel_axis(layer, rank)
    _freeze_spatial(call, x, axis)
    inputs = x.channels(axis)
    outputs = _depthwise_labels(inputs, layer.depth_multiplier)
    positions = _spatial_size(call.output_shapes[0], axis)
    call.weight(layer.kernel, {rank - 2: inputs}, positions=positions)
    call.weight(layer.bias, {0: outputs})
    _apply_activation(call, outputs)
    return call.output({axis: outputs})


@register_rule(keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
def separable_conv(call):
    (x,) = call.inputs
    layer = call.layer
    rank = len(x.shape)
    axis = _channel_axis(layer, rank)
    _freeze_spatial(call, x, axis)
    inputs = x.channels(axis)
    hidden = _depthwise_labels(inputs, layer.depth_multiplier)
    filters = call.new_channels(layer.filters)
    positions = _spatial_size(call.output_shapes[0], axis)
    call.weight(layer.depthwise_kernel, {rank - 2: inputs}, positions=positions)
    call.weight(
        layer.pointwise_kernel,
        {rank - 2: hidden, rank - 1: filters},
        (rank - 2,),
        positions,
    )
    call.weight(layer.bias, {0: filters})
    call.resize("filters", filters)
    _apply_activation(call, filters)
    return call.output({axis: filters})


# Layers that act on each channel alone


@register_rule(keras.layers.BatchNormalization)
def batch_normalization(call):
    x = call.inputs[0]
    layer = call.layer
    labels = {0: x.channels(layer.axis)}
    call.weight(layer.gamma, labels)
    call.weight(layer.beta, labels)
    call.statistic(layer.moving_mean, labels)
    call.statistic(layer.moving_variance, labels, minimum=0.0)
    return call.output(x.labels)


@register_rule(keras.layers.PReLU)
def prelu(call):
    (x,) = call.inputs
    labels = {
        axis - 1: value
        for axis, value in x.labels.items()
        if call.layer.alpha.shape[axis - 1] == len(value)
    }
    call.weight(call.layer.alpha, labels)
    return call.output(x.labels)


def elementwise(call):
    x = call.inputs[0]
    noise_shape = getattr(call.layer, "noise_shape", None) or ()
    for axis, size in enumerate(noise_shape):
        if size not in (None, 1):
            call.freeze(
                x.channels(axis),
                f"layer '{call.layer.name}' has a fixed `noise_shape`",
            )
    return call.output(x.labels)


@register_rule(keras.layers.Activation)
def activation(call):
    for labels in call.inputs[0].labels.values():
        _apply_activation(call, labels)
    return elementwise(call)


_ELEMENTWISE_LAYERS = _layer_classes(
    "ReLU",
    "LeakyReLU",
    "ELU",
    "Identity",
    "Dropout",
    "AlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
    "ActivityRegularization",
)
register_rule(*_ELEMENTWISE_LAYERS)(elementwise)


@register_rule(keras.layers.Rescaling)
def rescaling(call):
    (x,) = call.inputs
    for value in (call.layer.scale, call.layer.offset):
        if np.ndim(value) > 0:
            call.freeze_inputs(
                f"layer '{call.layer.name}' has a fixed value per channel"
            )
    return call.output(x.labels)


@register_rule(keras.layers.Softmax)
def softmax(call):
    x = call.inputs[0]
    axes = call.layer.axis
    for axis in [axes] if isinstance(axes, int) else axes:
        call.freeze(
            x.channels(axis),
            f"layer '{call.layer.name}' normalizes across them",
        )
    return call.output(x.labels)


# Positions: pooling, padding, resampling


def _positionwise(call):
    """For layers that move or pool positions and keep the channels."""
    (x,) = call.inputs
    axis = _channel_axis(call.layer, len(x.shape))
    _freeze_spatial(call, x, axis)
    return call.output({axis: x.channels(axis)})


register_rule(
    *_layer_classes(
        *(
            f"{kind}{rank}D"
            for kind in (
                "MaxPooling",
                "AveragePooling",
                "AdaptiveAveragePooling",
                "AdaptiveMaxPooling",
                "UpSampling",
                "ZeroPadding",
                "Cropping",
            )
            for rank in (1, 2, 3)
        )
    )
)(_positionwise)


@register_rule(
    *_layer_classes(
        *(
            f"Global{kind}Pooling{rank}D"
            for kind in ("Max", "Average")
            for rank in (1, 2, 3)
        )
    )
)
def global_pooling(call):
    x = call.inputs[0]
    axis = _channel_axis(call.layer, len(x.shape))
    _freeze_spatial(call, x, axis)
    kept = axis if len(call.output_shapes[0]) == len(x.shape) else 1
    return call.output({kept: x.channels(axis)})


# Shape


@register_rule(keras.layers.Flatten)
def flatten(call):
    (x,) = call.inputs
    if x.labels and call.layer.data_format == "channels_first":
        # Keras moves the channels to the end before it flattens.
        order = (0, *range(2, len(x.shape)), 1)
        x = TracedTensor(
            tuple(x.shape[axis] for axis in order),
            {order.index(axis): value for axis, value in x.labels.items()},
        )
    return call.output({1: _merge_labels(call, x.shape[1:], x.labels, 1)})


def _merge_labels(call, shape, labels, offset):
    """Labels of axes of the given shape merged into one (C order)."""
    labels = {axis - offset: value for axis, value in labels.items()}
    if not labels:
        return None
    if None in shape or len(labels) > 1:
        for value in labels.values():
            call.freeze(
                value,
                f"layer '{call.layer.name}' merges them with "
                + ("an axis of unknown size" if None in shape else "others"),
            )
        return None
    ((axis, value),) = labels.items()
    expanded = value.reshape(
        [-1 if n == axis else 1 for n in range(len(shape))]
    )
    return np.broadcast_to(expanded, shape).reshape(-1)


@register_rule(keras.layers.Permute)
def permute(call):
    (x,) = call.inputs
    order = (0, *call.layer.dims)
    return call.output(
        {n: x.channels(axis) for n, axis in enumerate(order) if axis}
    )


@register_rule(keras.layers.RepeatVector)
def repeat_vector(call):
    (x,) = call.inputs
    return call.output({2: x.channels(1)})


@register_rule(keras.layers.Reshape)
def reshape(call):
    (x,) = call.inputs
    shape = call.output_shapes[0]
    if not x.labels:
        return call.output()
    # Leading and trailing axes of equal size pass through.
    sizes = [-1 if size is None else size for size in shape[1:]]
    if x.shape[1:] == shape[1:]:
        for axis, labels in x.labels.items():
            sizes[axis - 1] = labels
        call.resize("target_shape", sizes)
        return call.output(x.labels)
    channels = x.channels(-1)
    others = [axis for axis in x.labels if axis != len(x.shape) - 1]
    if not others and channels is not None and x.shape[-1] == shape[-1]:
        call.resize("target_shape", [*sizes[:-1], channels])
        return call.output({-1: channels})
    if len(shape) == 2 and None not in x.shape[1:]:
        labels = _merge_labels(call, x.shape[1:], x.labels, 1)
        call.resize("target_shape", [labels])
        return call.output({1: labels})
    if len(x.shape) == 2 and None not in shape[1:]:
        # A vector becomes positions times channels: the channels are tied
        # over the positions.
        rows = channels.reshape(-1, shape[-1])
        for row in rows[1:]:
            call.tie(rows[0], row)
        call.resize("target_shape", [*sizes[:-1], rows[0]])
        return call.output({-1: rows[0]})
    call.freeze_inputs(f"layer '{call.layer.name}' reshapes them")
    return call.output()


# Several inputs


@register_rule(
    keras.layers.Add,
    keras.layers.Subtract,
    keras.layers.Multiply,
    keras.layers.Average,
    keras.layers.Maximum,
    keras.layers.Minimum,
)
def merge(call):
    """Elementwise with broadcasting: equal positions are tied."""
    shape = call.output_shapes[0]
    result = {}
    for axis in range(1, len(shape)):
        carriers = []
        for x in call.inputs:
            # Keras merges align axes after the batch axis from the right.
            own = axis - (len(shape) - len(x.shape))
            if own < 1 or (x.shape[own] == 1 and shape[axis] != 1):
                continue
            carriers.append(x.channels(own))
        for labels in carriers[1:]:
            call.tie(carriers[0], labels)
        if carriers and all(labels is not None for labels in carriers):
            result[axis] = carriers[0]
    return call.output(result)


@register_rule(keras.layers.Concatenate)
def concatenate(call):
    axis = call.layer.axis % len(call.output_shapes[0])
    first = call.inputs[0]
    result = {}
    for other in range(1, len(first.shape)):
        labels = [x.channels(other) for x in call.inputs]
        if other != axis:
            for value in labels[1:]:
                call.tie(labels[0], value)
            if all(value is not None for value in labels):
                result[other] = labels[0]
        elif any(value is not None for value in labels):
            result[axis] = np.concatenate(
                [
                    call.fixed_channels(x.shape[axis])
                    if value is None
                    else value
                    for x, value in zip(call.inputs, labels)
                ]
            )
    return call.output(result)
