"""`trace`: from a functional Keras model to its channel graph."""

import dataclasses
import fnmatch

import keras
import numpy as np

from keras_neumeta.graph.rules import find_rule
from keras_neumeta.graph.tracer import LayerCall, TracedTensor, Tracer


class ChannelGraph:
    """Which channels of which variables of a network belong together.

    Made by `trace`.

    Attributes:
        model: The traced model.
        groups: List of `ChannelGroup`.
        layouts: List of `VariableLayout`, in the order of
            `model.variables`.
    """

    def __init__(self, model, groups, layouts, resizes):
        self.model = model
        self.groups = groups
        self.layouts = layouts
        self.resizes = resizes

    @property
    def full_sizes(self):
        """Channels per group at full size, a tuple of integers."""
        return tuple(group.num_channels for group in self.groups)

    @property
    def morphable_groups(self):
        return [group for group in self.groups if group.morphable]

    def sizes(self, ratio, divisor=1):
        """Channels per group at a ratio.

        Args:
            ratio: Kept width in (0, 1].
            divisor: Sizes are rounded to multiples of this number (never
                above the full size, never below one channel).

        Returns:
            Tuple of integers, one per group. Frozen groups keep theirs.

        Raises:
            ValueError: If `ratio` or `divisor` is out of range.
            TypeError: If they are not numbers.
        """
        ratio = check_ratio(ratio)
        if isinstance(divisor, bool) or not isinstance(
            divisor, int | np.integer
        ):
            raise TypeError(
                "Argument `divisor` must be an integer of at least 1. "
                f"Received: divisor={divisor!r}"
            )
        if divisor < 1:
            raise ValueError(
                "Argument `divisor` must be at least 1. "
                f"Received: divisor={divisor}"
            )
        if ratio == 1.0:
            return self.full_sizes
        full = np.array(self.full_sizes, "int64")
        steps = np.maximum(np.rint(ratio * full / divisor), 1)
        sizes = np.minimum(steps * divisor, full).astype("int64")
        frozen = [not group.morphable for group in self.groups]
        return tuple(int(n) for n in np.where(frozen, full, sizes))

    def count_params(self, sizes=None):
        """Number of parameters at `sizes`, moving statistics included."""
        sizes = self.full_sizes if sizes is None else sizes
        return sum(
            int(np.prod(layout.shape_at(sizes)))
            for layout in self.layouts
            if layout.role != "state"
        )

    def count_macs(self, sizes=None):
        """Multiply-accumulates of kernels for one example at `sizes`."""
        sizes = self.full_sizes if sizes is None else sizes
        return sum(
            layout.positions * int(np.prod(layout.shape_at(sizes)))
            for layout in self.layouts
            if layout.positions
        )

    def summary(self, print_fn=print):
        """Prints the groups: channels, layers, morphable or why not.

        Args:
            print_fn: Function that takes the text.
        """
        print_fn(str(self))

    def __str__(self):
        rows = [("group", "channels", "morphable", "layers")]
        for group in self.groups:
            rows.append(
                (
                    group.name,
                    str(group.num_channels),
                    "yes" if group.morphable else f"no: {group.frozen}",
                    ", ".join(group.layers),
                )
            )
        widths = [min(max(len(row[i]) for row in rows), 60) for i in range(3)]
        lines = [f"Channel graph of '{self.model.name}'"]
        for row in rows:
            cells = [row[i].ljust(widths[i]) for i in range(3)]
            lines.append("  ".join([*cells, row[3]]).rstrip())
        morphable = sum(
            int(np.prod(layout.shape))
            for layout in self.layouts
            if layout.role == "weight"
            and any(self.groups[g].morphable for g in layout.groups)
        )
        total = max(self.count_params(), 1)
        lines.append(
            f"{len(self.morphable_groups)} of {len(self.groups)} groups are "
            f"morphable; {morphable:,} of {total:,} parameters "
            f"({100 * morphable / total:.1f} %) are in weights that change."
        )
        return "\n".join(lines)


def check_ratio(ratio):
    """Returns `ratio` as a float, or raises."""
    if isinstance(ratio, bool) or not isinstance(
        ratio, int | float | np.integer | np.floating
    ):
        raise TypeError(
            "Argument `ratio` (the kept width) must be a number in (0, 1]. "
            f"Received: ratio={ratio!r} of type {type(ratio).__name__}"
        )
    ratio = float(ratio)
    if not 0.0 < ratio <= 1.0:
        raise ValueError(
            "Argument `ratio` (the kept width) must be in (0, 1]: 1.0 is the "
            f"full size, 0.25 a quarter of every width. Received: "
            f"ratio={ratio}"
        )
    return ratio


def check_model(model, argument="model"):
    """Raises unless `model` is a built Sequential or functional model."""
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"Argument `{argument}` must be a Sequential or functional "
            f"`keras.Model`. Received: {model!r} of type "
            f"{type(model).__name__}"
        )
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"Argument `{argument}` must be built, so that the shapes of "
                f"its weights are known. Sequential model '{model.name}' has "
                "no input shape yet: begin it with `keras.Input(shape)`, or "
                "call `model.build(input_shape)`."
            )
    elif not isinstance(model, keras.Function):
        raise ValueError(
            f"Argument `{argument}` must be a Sequential or functional model, "
            "since the channels are read from its graph. Received the "
            f"subclassed model '{model.name}' "
            f"({type(model).__name__}): rebuild it with the functional API, "
            "`keras.Model(inputs, outputs)`."
        )


def trace(model, layers=None):
    """Finds the channel groups of a model.

    Args:
        model: A built Sequential or functional `keras.Model`, nested models
            included.
        layers: The layers whose channels may change: names, patterns such as
            `"stage3*"`, or layers of the model. A group may change if one of
            the layers that make its channels is among them. Default: all.

    Returns:
        A `ChannelGraph`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is subclassed or not built, or if `layers` names
            a layer that makes no channels.

    Example:

    ```python
    model = keras.Sequential([
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(10),
    ])
    graph = keras_neumeta.trace(model)
    graph.summary()
    ```
    """
    check_model(model)
    tracer = Tracer()
    function = _function(model)
    inputs = [TracedTensor(tuple(x.shape), {}) for x in function.inputs]
    outputs = _walk(tracer, function, inputs)
    for x in outputs:
        for labels in x.labels.values():
            tracer.freeze(labels, "output of the model")
    groups, layouts, resizes = tracer.finish(model)
    if layers is not None:
        groups = _restrict(model, groups, layers)
    return ChannelGraph(model, groups, layouts, resizes)


def _restrict(model, groups, layers):
    """Freezes the groups that none of the given layers makes."""
    if isinstance(layers, str | keras.layers.Layer):
        layers = [layers]
    patterns = [getattr(layer, "name", layer) for layer in layers]
    known = sorted({name for group in groups for name in group.makers})
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                "Argument `layers` must hold names, patterns or layers. "
                f"Received: {pattern!r}"
            )
        if not fnmatch.filter(known, pattern):
            raise ValueError(
                f"Argument `layers`: no layer of '{model.name}' that makes "
                f"channels is called '{pattern}'. Such layers: {known}"
            )
    return [
        group
        if not group.morphable
        or any(fnmatch.filter(group.makers, p) for p in patterns)
        else dataclasses.replace(group, frozen="not among `layers`")
        for group in groups
    ]


def _function(model):
    """The functional graph inside a model."""
    if isinstance(model, keras.Sequential):
        return model._functional
    return model


def is_graph(operation):
    """Whether an operation is a nested model whose graph can be followed."""
    if not isinstance(operation, keras.Model):
        return False
    if isinstance(operation, keras.Sequential):
        return operation._functional is not None
    return isinstance(operation, keras.Function)


def _walk(tracer, function, inputs):
    """Runs the rules through a graph, in topological order.

    Args:
        tracer: `Tracer` that the rules write to.
        function: Functional model (a `keras.Function`).
        inputs: Flat list of `TracedTensor`.

    Returns:
        Flat list of the `TracedTensor`s of the outputs.
    """
    traced = dict(zip(map(id, function.inputs), inputs, strict=True))
    # Keras keeps the nodes of a graph sorted by depth; that order is
    # topological. There is no public way to the nodes.
    for depth in sorted(function._nodes_by_depth, reverse=True):
        for node in function._nodes_by_depth[depth]:
            if node.is_input:
                continue
            args, kwargs = node.arguments.fill_in(traced)
            shapes = [tuple(x.shape) for x in node.outputs]
            outputs = _trace_call(tracer, node.operation, args, kwargs, shapes)
            for x, output in zip(node.outputs, outputs, strict=True):
                traced[id(x)] = output
    return [traced[id(x)] for x in function.outputs]


def _trace_call(tracer, operation, args, kwargs, shapes):
    if is_graph(operation):
        inner = _function(operation)
        tensors = [
            x
            for x in keras.tree.flatten((args, kwargs))
            if isinstance(x, TracedTensor)
        ]
        if len(tensors) == len(inner.inputs):
            tracer.nest(operation, inner.inputs, tensors)
            return _walk(tracer, inner, tensors)
    call = LayerCall(tracer, operation, args, kwargs, shapes)
    rule = None if is_graph(operation) else find_rule(operation)
    if rule is None:
        kind = type(operation).__name__
        call.freeze_inputs(f"layer '{operation.name}' ({kind}) has no rule")
        return [call.output(index=index) for index in range(len(shapes))]
    return keras.tree.flatten(rule(call))
