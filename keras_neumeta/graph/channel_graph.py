"""`trace`: from a functional Keras model to its channel graph."""

import dataclasses
import itertools
import math

import keras

from keras_neumeta.graph.blocks import blocks_of_variables, find_blocks
from keras_neumeta.graph.functional import function_of, nodes_of
from keras_neumeta.graph.masking import gates
from keras_neumeta.graph.moments import find_sums
from keras_neumeta.graph.rules import find_rule
from keras_neumeta.graph.sizes import (
    at_depth,
    matching,
    sizes_from_ratio,
    sizes_within,
)
from keras_neumeta.graph.tracer import LayerCall, TracedTensor, Tracer


class ChannelGraph:
    """Which channels of which variables of a network belong together.

    Made by `trace`.

    Attributes:
        model: The traced model.
        groups: List of `ChannelGroup`.
        layouts: List of `VariableLayout`, in the order of
            `model.variables`.
        sums: Tuple of `LinearSum`: the sums over changing channels.
        normalized_sums: Tuple of `NormalizedSum`: one for each batch norm
            that follows one of them.
        blocks: Tuple of `Block`: what may be left out, in the order in which
            it is kept.

    The *sizes* of a network are a tuple of integers: the channels of each
    group and, where the graph has blocks, the number of them that is kept.
    """

    def __init__(self, model, groups, layouts, resizes, masks, blocks=()):
        repeats = _repeats(groups, layouts)
        groups = [
            dataclasses.replace(group, repeats=repeats[group.index])
            for group in groups
        ]
        if blocks:
            place = blocks_of_variables(function_of(model), blocks)
            layouts = [
                dataclasses.replace(layout, block=place.get(id(variable)))
                for layout, variable in zip(
                    layouts, model.variables, strict=True
                )
            ]
        self.model = model
        self.groups = groups
        self.layouts = layouts
        self.resizes = resizes
        self._mixing = [axis for axes, _ in masks.values() for axis in axes]
        self.masks = {**masks, **gates(blocks, len(groups))}
        self.blocks = blocks
        self.sums, self.normalized_sums = find_sums(
            function_of(model), model.variables, layouts, groups
        )
        weights = {id(v) for v in model.weights}
        self._counted = [
            layout
            for layout, variable in zip(layouts, model.variables, strict=True)
            if id(variable) in weights
        ]
        self._larger_graphs = {}

    @property
    def full_sizes(self):
        """The sizes of the whole network."""
        depth = (len(self.blocks),) if self.blocks else ()
        return tuple(group.num_channels for group in self.groups) + depth

    @property
    def depth_place(self):
        """Place of the number of kept blocks among the sizes."""
        return len(self.groups)

    def places(self, model):
        """Where the variables of a network lie among those of the target.

        Without some blocks, Keras may order the layers of parallel branches
        anew: it goes by their distance from the outputs.

        Args:
            model: Network of some size, from `keras_neumeta.graph.resize`.

        Returns:
            List of integers, one per variable.
        """
        index = {id(v): n for n, v in enumerate(self.model.variables)}
        own = {layer.name: layer.variables for layer in self.model.layers}
        found = (v for layer in model.layers for v in own.get(layer.name, ()))
        # A layer may be in a nested model too: its first place counts.
        return list(dict.fromkeys(index[id(variable)] for variable in found))

    def at_depth(self, sizes, depth):
        """The same sizes with another number of kept blocks.

        Raises:
            TypeError, ValueError: If `depth` is not possible.
        """
        return at_depth(self, sizes, depth)

    @property
    def statistics(self):
        """Layouts of the moving statistics, and of the mean inputs behind."""
        return [
            *(x for x in self.layouts if x.role == "statistic"),
            *(each.layout for each in self.normalized_sums),
        ]

    @property
    def is_linear(self):
        """Whether all that mixes channels that change is a known sum.

        Then channels that stay can make up for those that go, in all layers.
        """
        known = {(each.kernel, each.number) for each in self.sums}
        weights = (x for x in self.layouts if x.role == "weight")
        unknown = self._mixing + [
            layout.axes[number]
            for index, layout in enumerate(weights)
            for number in layout.summed
            if number in layout.axes and (index, number) not in known
        ]
        return not any(
            self.groups[piece.group].morphable
            for axis in unknown
            for piece in axis.pieces
        )

    @property
    def morphable_groups(self):
        return [group for group in self.groups if group.morphable]

    @property
    def morphable_share(self):
        """Share of the parameters in variables that change their shape."""
        changing = sum(
            math.prod(layout.shape)
            for layout in self._counted
            if any(self.groups[index].morphable for index in layout.groups)
        )
        return changing / max(self.count_params(), 1)

    def sizes(self, ratio, divisor=1, limit=1.0):
        """Channels per group at a ratio.

        Args:
            ratio: Kept width in (0, 1], or a dict from names of groups, of
                the layers that make their channels, or patterns such as
                `"stage3*"`, to the ratio of these groups; all others keep
                their size.
            divisor: Sizes are rounded to multiples of this number (never
                above the full size, never below one channel).
            limit: Largest ratio that is allowed.

        Returns:
            The sizes. Frozen groups keep theirs, and all blocks stay.

        Raises:
            ValueError: If `ratio` or `divisor` is out of range, if a name is
                unknown or its channels cannot change, or if channels that
                are tied are given different ratios.
            TypeError: If they are of another type.
        """
        return sizes_from_ratio(self, ratio, divisor, limit)

    def sizes_within(self, params=None, macs=None, divisor=1, depth=None):
        """Channels per group of the largest ratio within a budget.

        Args:
            params, macs: At most so many parameters and multiply-accumulates
                (of kernels, for one example): an integer, or a float in
                (0, 1] for a share of the full size.
            divisor: As for `sizes`.
            depth: Number of kept blocks. Default: all.

        Returns:
            The sizes.

        Raises:
            ValueError: If no size is small enough.
        """
        return sizes_within(self, params, macs, divisor, depth)

    def axes_at(self, layout, sizes):
        """The axes of a variable at `sizes`, which may be above the full.

        Args:
            layout: One of `layouts` or of those of `sums`.
            sizes: See above.

        Returns:
            Dict from axis number to `Axis`.
        """
        if all(n <= full for n, full in zip(sizes, self.full_sizes)):
            return {
                n: axis if axis.size_at(sizes) == len(axis) else axis.at(sizes)
                for n, axis in layout.axes.items()
            }
        # With all blocks, whose variables have channels too.
        depth = self.full_sizes[self.depth_place :]
        larger = self._larger((*sizes[: self.depth_place], *depth))
        for here, there in zip(self.layouts, larger.layouts, strict=True):
            if here is layout:
                return there.axes
        # The larger network may have more of these: there, all layers change.
        layouts = {s.layout.path: s.layout for s in larger.sums}
        return layouts[layout.path].axes

    def _larger(self, sizes):
        """The channel graph of a larger network of the same kind."""
        if sizes not in self._larger_graphs:
            # Not at the top: `resize` builds on this module.
            from keras_neumeta.graph.resize import resize

            graph = trace(resize(self, sizes), blocks=bool(self.blocks))
            if graph.full_sizes != sizes:
                raise ValueError(
                    f"'{self.model.name}' cannot grow to {sizes} channels: "
                    f"its larger network has {graph.full_sizes}."
                )
            self._larger_graphs = {sizes: graph}
        return self._larger_graphs[sizes]

    def count_params(self, sizes=None):
        """Number of parameters at `sizes`, as `Model.count_params` counts."""
        sizes = self.full_sizes if sizes is None else sizes
        return sum(layout.count_params(sizes) for layout in self._counted)

    def count_macs(self, sizes=None):
        """Multiply-accumulates of kernels for one example at `sizes`."""
        sizes = self.full_sizes if sizes is None else sizes
        return sum(layout.count_macs(sizes) for layout in self.layouts)

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
                    str(group.num_channels)
                    + (f" x {group.repeats}" if group.repeats > 1 else ""),
                    "yes" if group.morphable else f"no: {group.frozen}",
                    ", ".join(group.layers),
                )
            )
        widths = [min(max(len(row[i]) for row in rows), 60) for i in range(3)]
        lines = [f"Channel graph of '{self.model.name}'"]
        for row in rows:
            cells = [row[i].ljust(widths[i]) for i in range(3)]
            lines.append("  ".join([*cells, row[3]]).rstrip())
        total = self.count_params()
        morphable = round(self.morphable_share * total)
        lines.append(
            f"{len(self.morphable_groups)} of {len(self.groups)} groups are "
            f"morphable; {morphable:,} of {total:,} parameters "
            f"({100 * self.morphable_share:.1f} %) are in variables that "
            "change."
        )
        if self.blocks:
            names = ", ".join(block.name for block in self.blocks)
            lines.append(
                f"{len(self.blocks)} blocks can be left out, the last first: "
                f"{names}."
            )
        reasons = [group.frozen or "" for group in self.groups]
        for words, name in (
            ("has no rule", "register_rule"),
            ("not known to act", "register_elementwise"),
        ):
            if any(words in reason for reason in reasons):
                lines.append(f"See `keras_neumeta.{name}` for: {words}.")
        return "\n".join(lines)


def _repeats(groups, layouts):
    """Per group, the least number of blocks on the axes that hold it."""
    least: dict = {}
    for layout in layouts:
        for axis in layout.axes.values():
            for piece in axis.pieces:
                known = least.get(piece.group, piece.blocks)
                least[piece.group] = min(known, piece.blocks)
    return [least.get(group.index, 1) for group in groups]


def own_classes(model):
    """The classes of a model that are the user's own, not Keras'."""
    return itertools.takewhile(
        lambda part: not part.__module__.startswith("keras."),
        type(model).__mro__,
    )


def _own_call(model):
    """Whether a functional model computes something else than its graph."""
    return any("call" in vars(part) for part in own_classes(model))


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
            "since all is read from its graph. Received the "
            f"subclassed model '{model.name}' "
            f"({type(model).__name__}): rebuild it with the functional API, "
            "`keras.Model(inputs, outputs)`."
        )
    elif _own_call(model):
        raise ValueError(
            f"Argument `{argument}`: '{model.name}' ({type(model).__name__}) "
            "has a `call` of its own, which its graph does not show. Build it "
            "with `keras.Model(inputs, outputs)`, and what `call` adds as "
            "layers."
        )
    for layer in model._flatten_layers():
        for key in ("activation", "recurrent_activation"):
            value = getattr(layer, key, None)
            if _learns(value):
                raise ValueError(
                    f"Argument `{argument}`: layer '{layer.name}' of "
                    f"'{model.name}' has an activation with weights "
                    f"({type(value).__name__}), which Keras makes only when "
                    "the layer runs. Use it as a layer of its own, after "
                    f"'{layer.name}'."
                )


def _learns(activation):
    """Whether an activation is a layer that has weights, or will have."""
    if not isinstance(activation, keras.layers.Layer):
        return False
    if not activation.built:
        activation = type(activation).from_config(activation.get_config())
        activation.build((None, 1))
    return bool(activation.variables)


def trace(model, layers=None, blocks=False):
    """Finds the channel groups of a model.

    Args:
        model: A built Sequential or functional `keras.Model`, nested models
            included.
        layers: The layers whose channels may change: names, patterns such as
            `"stage3*"`, or layers of the model. A group may change if one of
            the layers that make its channels is among them. Default: all.
        blocks: Whether residual blocks may be left out, where the shortcut
            is the identity.

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
    function = function_of(model)
    inputs = [TracedTensor(tuple(x.shape), {}) for x in function.inputs]
    outputs = _walk(tracer, function, inputs)
    for x in outputs:
        for labels in x.labels.values():
            tracer.freeze(labels, "output of the model", first=True)
    groups, layouts, resizes, masks = tracer.finish(model)
    if layers is not None:
        groups = _restrict(model, groups, layers)
    found = find_blocks(function) if blocks else ()
    return ChannelGraph(model, groups, layouts, resizes, masks, found)


def _restrict(model, groups, layers):
    """Freezes the groups that none of the given layers makes."""
    patterns = layer_patterns(layers)
    known = sorted({name for group in groups for name in group.makers})
    for pattern in patterns:
        if not matching(known, pattern):
            raise ValueError(
                f"Argument `layers`: no layer of '{model.name}' that makes "
                f"channels is called '{pattern}'. Such layers: {known}"
            )
    chosen = {name for p in patterns for name in matching(known, p)}
    return [
        group
        if not group.morphable or not chosen.isdisjoint(group.makers)
        else dataclasses.replace(group, frozen="not among `layers`")
        for group in groups
    ]


def layer_patterns(layers):
    """The argument `layers` of `trace` as a list of names and patterns."""
    if isinstance(layers, str | keras.layers.Layer):
        layers = [layers]
    if not isinstance(layers, list | tuple | set):
        raise TypeError(
            "Argument `layers` must be a list of names, patterns or layers. "
            f"Received: {layers!r}"
        )
    patterns = [getattr(layer, "name", layer) for layer in layers]
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(
                "Argument `layers` must hold names, patterns or layers. "
                f"Received: {pattern!r}"
            )
    return patterns


def is_graph(operation):
    """Whether an operation is a nested model whose graph can be followed."""
    if not isinstance(operation, keras.Model):
        return False
    if isinstance(operation, keras.Sequential):
        return operation._functional is not None
    return isinstance(operation, keras.Function) and not _own_call(operation)


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
    for node in nodes_of(function):
        if node.is_input:
            continue
        args, kwargs = node.arguments.fill_in(traced)
        shapes = [tuple(x.shape) for x in node.outputs]
        outputs = _trace_call(tracer, node.operation, args, kwargs, shapes)
        for x, output in zip(node.outputs, outputs, strict=True):
            traced[id(x)] = output
    return [traced[id(x)] for x in function.outputs]


def _inputs_of(function, args, kwargs):
    """The tensors of a call in the order of the inputs of a nested model."""
    given = args[0] if args else None
    if isinstance(given, dict) and not isinstance(function.input, dict):
        # Inputs go by their names.
        return [given[x.name] for x in function.inputs if x.name in given]
    return [
        x
        for x in keras.tree.flatten((args, kwargs))
        if isinstance(x, TracedTensor)
    ]


def _trace_call(tracer, operation, args, kwargs, shapes):
    if is_graph(operation):
        inner = function_of(operation)
        tensors = _inputs_of(inner, args, kwargs)
        if len(tensors) == len(inner.inputs):
            tracer.nest(operation, inner.inputs, tensors)
            return _walk(tracer, inner, tensors)
    call = LayerCall(tracer, operation, args, kwargs, shapes)
    call.freeze_masks()
    rule = None if is_graph(operation) else find_rule(operation)
    if rule is None:
        kind = type(operation).__name__
        call.freeze_inputs(f"layer '{operation.name}' ({kind}) has no rule")
        return [call.output(index=index) for index in range(len(shapes))]
    return keras.tree.flatten(rule(call))
