"""The registry of layer rules."""

import math

import keras

from keras_neumeta.graph.masking import fill

_RULES: dict = {}  # class -> rule
_NAMED_RULES: dict = {}  # name of a class that Keras does not export -> rule
_ELEMENTWISE: set = set()


def register_rule(*layer_classes):
    """Decorator that registers a rule for one or more layer classes.

    A later registration replaces an earlier one, so a user can also replace
    a built-in rule. Rules reach subclasses that override nothing but
    `__init__` and the config.

    A rule is a function of one call of the layer. It returns what comes out,
    one `call.output(...)` or a list of them. *Labels* are an int array, one
    entry for each channel of an axis, shape `(number,)`. `None` stands for an
    axis that never changes; `resize` and `masked` take arrays only.

    - `call.layer`, `call.args`, `call.kwargs`: the layer and its arguments,
      with traced tensors in the place of tensors; `call.inputs`: these alone,
      as a list, but for masks, which are frozen already. `x.shape` is the
      shape with the batch axis, which is `None`; `x.channels(axis)` the labels
      of an axis.
    - `call.new_channels(number)`: labels of channels that the layer makes.
    - `call.weight(variable, {axis: labels})`: what the axes of a weight hold.
      `summed` are the axes that the layer sums over, `positions` how often
      one example uses each weight (for the multiply-accumulates).
    - `call.statistic(variable, {axis: labels}, minimum=..., momentum=...)`:
      the same for moving statistics, not trained; `minimum` is 0 for a
      variance, `momentum` the share of them that stays in a training step.
    - `call.resize(argument, labels)`: which argument of `get_config()` counts
      these channels. A smaller layer is made from the config.
    - `call.tie(first, second)`: two label arrays of equal length are the same
      channels, one by one, as where two inputs are added.
    - `call.freeze(labels, reason)`: their number can never change.
    - `call.masked([labels], compute)`: for a layer that mixes channels other
      than by a sum with weights (a mean, a softmax). While training, absent
      channels are zeros, which such a layer must leave out:
      `compute(layer, run, present, *args, **kwargs)` gives its result, where
      `run` is the layer's own `call` and `present` has for each label array a
      float tensor of the same shape, 1 where the channel is there, else 0.
    - `call.output({axis: labels}, index=0)`: what comes out, of several
      outputs the one at `index`.

    Args:
        layer_classes: Classes of `keras.layers.Layer`.

    Returns:
        The decorator, which returns the rule unchanged.

    Raises:
        TypeError: If an argument is not a class.

    Example:

    A layer that keeps its channels:

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

    A layer that makes channels of its own, and sums over its inputs:

    ```python
    class Project(keras.layers.Layer):
        def __init__(self, units, **kwargs):
            super().__init__(**kwargs)
            self.units = units

        def build(self, shape):
            shape = (shape[-1], self.units)
            self.kernel = self.add_weight(shape=shape, name="kernel")

        def call(self, x):
            return keras.ops.matmul(x, self.kernel)

        def get_config(self):
            return {**super().get_config(), "units": self.units}

    @keras_neumeta.register_rule(Project)
    def project_rule(call):
        (x,) = call.inputs
        units = call.new_channels(call.layer.units)
        axes = {0: x.channels(-1), 1: units}
        call.weight(call.layer.kernel, axes, summed=(0,), positions=1)
        call.resize("units", units)
        return call.output({-1: units})

    model = keras.Sequential([keras.Input((6,)), Project(8), Project(3)])
    small = keras_neumeta.ManifoldHyperModel(model).morph(ratio=0.5)
    assert [layer.units for layer in small.layers] == [4, 3]
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


def register_named(*names):
    """Like `register_rule`, for classes that Keras does not export.

    These are the operations behind `keras.ops` and the layers that
    `keras.applications` keeps to itself.

    Args:
        names: Names of classes inside Keras.
    """

    def decorator(rule):
        for name in names:
            _NAMED_RULES[name] = rule
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
    """The rule for a layer or operation, or `None`."""
    for layer_class in type(layer).__mro__:
        if layer_class in _RULES:
            if _overrides(type(layer), layer_class):
                return None
            return _RULES[layer_class]
    if type(layer).__module__.startswith("keras.src."):
        return _NAMED_RULES.get(type(layer).__name__)
    return None


# What a subclass may define without computing something else.
_HARMLESS = {"__init__", "__module__", "__doc__", "get_config", "from_config"}


def _overrides(kind, base):
    """Whether a subclass changes anything that its base class defines."""
    between = kind.__mro__[: kind.__mro__.index(base)]
    return any(
        hasattr(base, name) and name not in _HARMLESS
        for part in between
        for name, value in vars(part).items()
        if callable(value) or isinstance(value, property)
    )


def layer_classes(*names):
    """The Keras layers of these names that this version has."""
    return [
        getattr(keras.layers, name)
        for name in names
        if hasattr(keras.layers, name)
    ]


register_elementwise(
    *(
        getattr(keras.activations, name)
        for name in (
            "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu "
            "hard_tanh leaky_relu linear log_sigmoid mish relu relu6 selu "
            "sigmoid silu soft_shrink softplus softsign sparse_plus squareplus "
            "tanh tanh_shrink threshold"
        ).split()
        if hasattr(keras.activations, name)
    )
)


def is_elementwise(activation):
    """Whether an activation is known to act on each value alone."""
    if activation is None or activation in _ELEMENTWISE:
        return True
    return (
        isinstance(activation, keras.layers.Layer)
        and type(activation) in ELEMENTWISE_LAYERS
    )


ELEMENTWISE_LAYERS = layer_classes(
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


# What several rules need


def apply_activation(call, labels):
    """Freezes the channels that a layer's activation may mix."""
    activation = getattr(call.layer, "activation", None)
    if not is_elementwise(activation):
        name = getattr(activation, "__name__", type(activation).__name__)
        call.freeze(
            labels,
            f"activation '{name}' of layer '{call.layer.name}' is not known "
            "to act on each channel alone",
        )


def channel_axis(layer, rank):
    """The channel axis by `data_format`, from the front."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return 1 if first else rank - 1


def other_axes(x, axis):
    """Labels of the axes other than `axis`, for layers that keep them."""
    axis = axis % len(x.shape)
    return {n: value for n, value in x.labels.items() if n != axis}


def freeze_axes(call, x, axes):
    """Freezes the labels of some axes, which the layer treats as positions."""
    for axis in axes:
        call.freeze(
            x.channels(axis),
            f"layer '{call.layer.name}' treats them as positions",
        )


def freeze_positions(call, x, axis):
    """Freezes the labels of all axes but the channel axis."""
    freeze_axes(call, x, [n for n in x.labels if n != axis % len(x.shape)])


def num_positions(shape, axis=-1):
    """Number of positions of a feature map (1 where unknown)."""
    axis = axis % len(shape)
    return math.prod(
        size or 1 for n, size in enumerate(shape) if n not in (0, axis)
    )


def has_plain_weights(layer):
    """Whether the weights are neither quantized nor extended by LoRA."""
    return not (
        getattr(layer, "lora_enabled", False)
        or getattr(layer, "quantization_mode", None)
    )


def block_channels(call, labels, blocks):
    """Labels of the channels of one of several equal blocks.

    Ties the channels across the blocks, since every block must keep equally
    many.
    """
    first, *others = labels.reshape(blocks, -1)
    for block in others:
        call.tie(first, block)
    return first


def axes_of(axis, rank):
    """An `axis` argument as a sorted list of axes, all for `None`."""
    axes = range(rank) if axis is None else axis
    return sorted(n % rank for n in ([axes] if isinstance(axes, int) else axes))


def mix(call, x, axes, make):
    """Says that a layer mixes the channels on some axes of its input.

    Args:
        call: `LayerCall`.
        x: The input, the first argument.
        axes: The axes that it mixes.
        make: Function that makes the computation (`LayerCall.masked`) from
            those of the axes that have channels.
    """
    labelled = [axis for axis in axes if x.channels(axis) is not None]
    call.masked([x.channels(axis) for axis in labelled], make(labelled))


def mix_filled(call, x, axes, value, rescale=False):
    """Like `mix`, where absent channels get a neutral value."""
    mix(
        call,
        x,
        axes,
        lambda labelled: fill(value, [([0], n) for n in labelled], rescale),
    )
