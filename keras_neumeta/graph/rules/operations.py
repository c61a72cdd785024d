"""`keras.ops` calls in the graph: arithmetic and reductions."""

import keras
import numpy as np

from keras_neumeta.graph.masking import fill
from keras_neumeta.graph.rules.merging import broadcast
from keras_neumeta.graph.rules.registry import (
    axes_of,
    block_channels,
    freeze_positions,
    mix_filled,
    register_named,
)
from keras_neumeta.graph.tracer import TracedTensor


def _has_values(operation):
    """Whether an operation holds values that may belong to channels."""
    return any(
        np.ndim(value) > 0 and np.size(value) > 1
        for name, value in vars(operation).items()
        if not name.startswith("_")
        and (
            isinstance(value, np.ndarray | list | tuple)
            or keras.ops.is_tensor(value)
        )
    )


@register_named(
    *(
        "Absolute Abs Fabs Negative Exp Exp2 Expm1 Log1p Square Sin Cos Tan "
        "Sinh Cosh Tanh Arctan Arcsinh Sign Floor Ceil Round Trunc Clip Cast "
        "SaturateCast Copy Conj NanToNum Isfinite Isnan Isinf LogicalNot Erf "
        "Erfc StopGradient ConvertToTensor OnesLike ZerosLike FullLike "
        "Relu Relu6 Sigmoid SparseSigmoid Softplus Softsign SoftShrink "
        "SparsePlus Silu Squareplus LogSigmoid LeakyRelu HardSigmoid HardSilu "
        "Elu Selu Gelu Celu TanhShrink HardTanh HardShrink Threshold"
    ).split()
)
def elementwise(call):
    if _has_values(call.layer):
        call.freeze_inputs(
            f"layer '{call.layer.name}' has a fixed value per channel"
        )
    return call.output(broadcast(call, call.inputs))


def _operands(call):
    return [
        x
        for x in keras.tree.flatten((call.args, call.kwargs))
        if isinstance(x, TracedTensor) or np.ndim(x) or hasattr(x, "shape")
    ]


@register_named(
    *(
        "Add Subtract Multiply Maximum Minimum Fmax Fmin Where Equal NotEqual "
        "Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr LogicalXor "
        "Hypot Logaddexp Logaddexp2 Arctan2 Heaviside DivideNoNan"
    ).split()
)
def arithmetic(call):
    return call.output(broadcast(call, _operands(call)))


def _guarded(call, labels):
    """Where a zero is not a number to compute with, absent inputs are ones.

    Else an infinite value times a zero weight, or its gradient, is NaN.
    """
    places, masked = [], []
    shape = call.output_shapes[0]
    for place, x in enumerate(keras.tree.flatten(call.args)):
        if not isinstance(x, TracedTensor):
            continue
        for axis, value in labels.items():
            own = axis - (len(shape) - len(x.shape))
            if own >= 0 and x.channels(own) is not None:
                masked.append(value)
                places.append(([place], own))
    call.masked(masked, fill(1.0, places))
    return call.output(labels)


@register_named(
    *"Log Log2 Log10 Sqrt Rsqrt Reciprocal Cbrt Arcsin Arccos".split()
)
def guarded(call):
    return _guarded(call, broadcast(call, call.inputs))


@register_named(*"Divide TrueDivide FloorDivide Mod Fmod Power".split())
def guarded_arithmetic(call):
    return _guarded(call, broadcast(call, _operands(call)))


# The value that an absent channel has in a reduction.
_NEUTRAL = {
    "Sum": 0.0,
    "Mean": 0.0,
    "CountNonzero": 0.0,
    "Any": 0.0,
    "All": 1.0,
    "Prod": 1.0,
    "Max": "lowest",
    "Amax": "lowest",
    "Min": "highest",
    "Amin": "highest",
    "Logsumexp": "lowest",
}


def _kept_labels(x, gone, keepdims):
    kept = [axis for axis in range(len(x.shape)) if axis not in gone]
    return {
        axis if keepdims else kept.index(axis): labels
        for axis, labels in x.labels.items()
        if axis not in gone
    }


@register_named(*_NEUTRAL)
def reduction(call):
    (x,) = call.inputs
    layer = call.layer
    kind = type(layer).__name__
    gone = axes_of(layer.axis, len(x.shape))
    mix_filled(call, x, gone, _NEUTRAL[kind], rescale=kind == "Mean")
    keepdims = getattr(layer, "keepdims", False)
    return call.output(_kept_labels(x, gone, keepdims))


@register_named("Var", "Std", "Median", "Argmax", "Argmin", "Norm")
def unmasked_reduction(call):
    """Reductions that zeros, ones or extremes do not leave as they are."""
    (x,) = call.inputs
    layer = call.layer
    gone = axes_of(layer.axis, len(x.shape))
    for axis in gone:
        call.freeze(
            x.channels(axis),
            f"layer '{layer.name}' ({type(layer).__name__}) reduces over them",
        )
    keepdims = getattr(layer, "keepdims", False)
    return call.output(_kept_labels(x, gone, keepdims))


@register_named("Softmax", "LogSoftmax", "Normalize")
def across(call):
    x = call.inputs[0]
    neutral = 0.0 if type(call.layer).__name__ == "Normalize" else "lowest"
    mix_filled(call, x, axes_of(call.layer.axis, len(x.shape)), neutral)
    return call.output(x.labels)


@register_named("Glu")
def gated(call):
    (x,) = call.inputs
    axis = call.layer.axis % len(x.shape)
    labels = dict(x.labels)
    if axis in labels:
        labels[axis] = block_channels(call, labels[axis], 2)
    return call.output(labels)


@register_named(
    "MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool", "Resize"
)
def positionwise(call):
    """Operations on feature maps that keep the channels."""
    x = call.inputs[0]
    first = getattr(call.layer, "data_format", None)
    first = (first or keras.config.image_data_format()) == "channels_first"
    axis = 1 if first else len(x.shape) - 1
    freeze_positions(call, x, axis)
    return call.output({axis: x.channels(axis)})
