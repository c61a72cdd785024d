"""Follows channels through a functional graph and ties those that belong
together.

Every channel axis of every tensor in the graph carries *labels*, one integer
per position. Layers that make channels make fresh labels; layers that add,
multiply or share channels tie labels. Connected components of the ties are
the channels; channels that appear in the same way everywhere form a group.
"""

import dataclasses
import inspect

import keras
import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from keras_neumeta.graph.layout import Axis, ChannelGroup, VariableLayout


@dataclasses.dataclass(frozen=True)
class TracedTensor:
    """A tensor of the graph: its shape and the labels of its channel axes.

    Attributes:
        shape: Tuple, `None` where unknown (the batch axis always is).
        labels: Dict from axis number (>= 0) to an int array of labels.
            An axis without labels never changes.
    """

    shape: tuple
    labels: dict

    def channels(self, axis=-1):
        """Labels of an axis, `None` if that axis never changes."""
        return self.labels.get(axis % len(self.shape))


@dataclasses.dataclass
class _Registered:
    """What rules said about one variable."""

    variable: object
    layer: str
    outer: object
    labels: dict
    summed: tuple
    role: str
    uses: list
    minimum: float = -np.inf
    momentum: float = 0.0
    table: bool = False


def _named(layer, args, kwargs):
    """Pairs of the names and values of the arguments of a call."""
    names = []
    if args and isinstance(layer, keras.layers.Layer):
        names = list(inspect.signature(layer.call).parameters)
    names += [""] * len(args)
    return [*zip(names, args), *sorted(kwargs.items())]


class LayerCall:
    """One call of one layer, as a rule sees it.

    Attributes:
        layer: The layer (or `keras.ops` operation).
        args, kwargs: The arguments of the call, with a `TracedTensor` in the
            place of each tensor.
        inputs: Flat list of the `TracedTensor`s among them, but for masks.
        masks: Those whose argument's name ends with "mask".
        output_shapes: Shapes of the outputs.
    """

    def __init__(
        self,
        tracer,
        layer,
        args,
        kwargs,
        output_shapes,
        outer=None,
        prefix="",
        repeats=1,
    ):
        self._tracer = tracer
        # The layer of the graph, where `layer` is wrapped by another.
        self._outer = layer if outer is None else outer
        self._prefix = prefix
        self._repeats = repeats
        self.layer = layer
        self.args = args
        self.kwargs = kwargs
        self.inputs, self.masks = [], []
        for name, value in _named(layer, args, kwargs):
            found = self.masks if name.endswith("mask") else self.inputs
            found += [
                x
                for x in keras.tree.flatten(value)
                if isinstance(x, TracedTensor)
            ]
        self.output_shapes = output_shapes

    def bind(self, *names):
        """The arguments of the call by name, `None` where not given."""
        given = dict(zip(names, self.args))
        given.update({n: x for n, x in self.kwargs.items() if n in names})
        return tuple(given.get(name) for name in names)

    def inner(self, layer, prefix, x, output_shape, repeats=1):
        """The call of a layer that this one wraps.

        Args:
            layer: The wrapped layer.
            prefix: Where its config lies in the config of this layer, as
                for `resize`, with a dot at the end.
            x: `TracedTensor` that it is called on.
            output_shape: Shape of its output.
            repeats: How often one example calls it.
        """
        return LayerCall(
            self._tracer,
            layer,
            (x,),
            {},
            [output_shape],
            outer=self._outer,
            prefix=self._prefix + prefix,
            repeats=self._repeats * repeats,
        )

    def new_channels(self, number):
        """Labels for `number` channels that this layer makes."""
        return self._tracer.new_labels(number, self._outer.name)

    def fixed_channels(self, number):
        """Labels for channels whose number never changes."""
        labels = self.new_channels(number)
        self.freeze(labels, "made of fixed channels")
        return labels

    def tie(self, first, second):
        """Says that two label arrays are the same channels, one by one.

        Either may be `None` (an axis that never changes), which freezes the
        other.
        """
        if first is None and second is None:
            return
        if first is None or second is None:
            labels = second if first is None else first
            self.freeze(
                labels,
                f"layer '{self.layer.name}' combines them with channels "
                "that never change",
            )
            return
        if len(first) != len(second):
            raise ValueError(
                f"Layer '{self.layer.name}' ties {len(first)} channels to "
                f"{len(second)}; a rule must tie arrays of equal length."
            )
        self._tracer.tie(first, second)

    def freeze(self, labels, reason):
        """Says that the number of these channels can never change."""
        if labels is not None:
            self._tracer.freeze(labels, reason)

    def freeze_inputs(self, reason):
        for x in self.inputs:
            for labels in x.labels.values():
                self.freeze(labels, reason)

    def freeze_masks(self):
        """A mask has a place for each entry of what it masks."""
        for mask in self.masks:
            for labels in mask.labels.values():
                self.freeze(labels, f"layer '{self.layer.name}' masks by them")

    def weight(
        self,
        variable,
        labels,
        summed=(),
        positions=0,
        along=(),
        table=False,
    ):
        """Says which channels the axes of a weight hold.

        Args:
            variable: A variable of the layer, or `None` (ignored).
            labels: Dict from axis number to labels, or `None` for an axis
                that never changes.
            summed: The axes that the layer sums over: input channels.
            positions: How often one example uses each weight; 0 where it
                is not multiplied (a bias).
            along: List of labels, channels that multiply `positions`.
            table: Whether its rows are looked up, so that neighbours need
                not be alike.
        """
        self._tracer.register(
            self._outer,
            variable,
            labels,
            summed,
            "weight",
            [(positions * self._repeats, along)] if positions else [],
            table=table,
        )

    def statistic(self, variable, labels, minimum=-np.inf, momentum=0.0):
        """Like `weight`, for moving statistics, which belong to a size.

        Args:
            variable, labels: As for `weight`.
            minimum: Lower bound of the values (0 for a variance).
            momentum: Share of them that stays in a training step.
        """
        self._tracer.register(
            self._outer,
            variable,
            labels,
            (),
            "statistic",
            [],
            minimum,
            momentum,
        )

    def resize(self, argument, labels):
        """Says that an argument of the layer's config counts channels.

        Args:
            argument: Name in `layer.get_config()`; dots lead into nested
                configs, as in `"layer.config.units"`.
            labels: The labels that it counts, or a list (of lists, of
                slices) of labels and integers where the argument is one.
        """
        self._tracer.resize(self._outer, self._prefix + argument, labels)

    def resize_argument(self, index, labels):
        """Like `resize`, for a positional argument of the call itself."""
        self._tracer.resize(self._outer, index, labels)

    def masked(self, labels, compute):
        """Says how the layer leaves out channels that are absent.

        For layers that mix channels other than by a sum with weights: where
        sizes vary from step to step, networks are computed at a larger size
        with weights that are zero outside, and such a layer would take the
        absent channels into account.

        Args:
            labels: List of label arrays, the channels that are mixed; no
                effect if it is empty.
            compute: Function that computes the layer; see
                `keras_neumeta.graph.masking`.
        """
        if self._outer is not self.layer or self.kwargs.keys() & {"inputs"}:
            for part in labels:
                self.freeze(
                    part,
                    f"layer '{self.layer.name}' mixes them inside another "
                    "layer",
                )
            return
        # Recorded without labels too: the layer may be shared.
        ranks = [len(x.shape) for x in self.inputs]
        self._tracer.mask(self.layer, labels, compute, ranks)

    def output(self, labels=None, index=0):
        """The `TracedTensor` of an output.

        Args:
            labels: Dict from axis number to labels (`None` allowed).
            index: Which of the outputs.
        """
        shape = self.output_shapes[index]
        labels = labels or {}
        cleaned = {}
        for axis, value in labels.items():
            if value is None:
                continue
            axis = axis % len(shape)
            if shape[axis] is not None and shape[axis] != len(value):
                raise ValueError(
                    f"The rule of layer '{self.layer.name}' labels axis "
                    f"{axis} of an output of shape {shape} with "
                    f"{len(value)} channels; expected {shape[axis]}."
                )
            cleaned[axis] = value
        return TracedTensor(shape, cleaned)


class Tracer:
    """Collects labels, ties and variables while rules run, then groups."""

    def __init__(self):
        self._num_labels = 0
        self._families = []  # (start, number, layer name)
        self._ties = []
        self._frozen = []  # (labels, reason)
        self._registered = {}  # id(variable) -> _Registered
        self._resizes = {}  # id(layer) -> {argument: entries}
        self._masks = {}  # id(layer) -> (labels, compute, ranks)

    def new_labels(self, number, name):
        start = self._num_labels
        self._num_labels += number
        self._families.append((start, number, name))
        return np.arange(start, start + number)

    def tie(self, first, second):
        self._ties.append((np.asarray(first), np.asarray(second)))

    def freeze(self, labels, reason, first=False):
        """Of several reasons the first one is shown."""
        entry = np.asarray(labels), reason
        self._frozen.insert(0 if first else len(self._frozen), entry)

    def register(
        self,
        layer,
        variable,
        labels,
        summed,
        role,
        uses,
        minimum=-np.inf,
        momentum=0.0,
        table=False,
    ):
        if variable is None:
            return
        shape = tuple(variable.shape)
        labels = {
            axis % len(shape): value
            for axis, value in labels.items()
            if value is not None
        }
        for axis, value in labels.items():
            if shape[axis] != len(value):
                raise ValueError(
                    f"The rule of layer '{layer.name}' labels axis {axis} of "
                    f"'{variable.path}', shape {shape}, with {len(value)} "
                    f"channels; expected {shape[axis]}."
                )
        known = self._registered.get(id(variable))
        if known is None:
            self._registered[id(variable)] = _Registered(
                variable,
                layer.name,
                layer,
                labels,
                tuple(summed),
                role,
                list(uses),
                minimum,
                momentum,
                table,
            )
            return
        if known.outer is not layer:
            raise ValueError(
                f"Variable '{variable.path}' is used by layer '{layer.name}' "
                f"and by layer '{known.layer}'. A layer that is called by "
                "itself and inside a wrapper cannot be copied: give the "
                "wrapper a layer of its own."
            )
        # A shared layer: every call must see the same channels.
        known.uses += uses
        for axis in set(labels) | set(known.labels):
            if axis in labels and axis in known.labels:
                self.tie(labels[axis], known.labels[axis])
            else:
                self.freeze(
                    labels.get(axis, known.labels.get(axis)),
                    f"layer '{layer.name}' is shared with channels that never "
                    "change",
                )
                known.labels.setdefault(axis, labels.get(axis))

    def resize(self, layer, argument, entries):
        arguments = self._resizes.setdefault(id(layer), {})
        if argument in arguments:
            self._tie_calls(layer, arguments[argument], entries)
        else:
            arguments[argument] = entries

    def nest(self, model, inputs, tensors):
        """Follows the inputs of a nested model, for its input shapes."""
        for index, (own, x) in enumerate(zip(inputs, tensors, strict=True)):
            entries = [
                x.labels.get(axis, size) for axis, size in enumerate(own.shape)
            ]
            self.resize(model, index, entries)

    def mask(self, layer, labels, compute, ranks):
        if id(layer) not in self._masks:
            self._masks[id(layer)] = labels, compute, ranks
            return
        # One presence and one computation must fit all calls.
        known, _, known_ranks = self._masks[id(layer)]
        if ranks == known_ranks and [*map(len, labels)] == [*map(len, known)]:
            for one, other in zip(known, labels):
                self.tie(one, other)
        else:
            for part in (*known, *labels):
                self._freeze_shared(layer, part)

    def _tie_calls(self, layer, first, second):
        """A shared layer: every call must see the same channels."""
        first, second = leaves_of(first), leaves_of(second)
        if len(first) != len(second):
            for labels in (*first, *second):
                self._freeze_shared(layer, labels)
            return
        for one, other in zip(first, second):
            both = isinstance(one, np.ndarray), isinstance(other, np.ndarray)
            if all(both) and len(one) == len(other):
                self.tie(one, other)
            elif any(both):
                self._freeze_shared(layer, one)
                self._freeze_shared(layer, other)

    def _freeze_shared(self, layer, labels):
        if isinstance(labels, np.ndarray):
            self.freeze(
                labels,
                f"layer '{layer.name}' is shared with channels that do not "
                "match",
            )

    def finish(self, model):
        """Groups the channels.

        Returns:
            `(groups, layouts, resizes, masks)`: list of `ChannelGroup`, list
            of `VariableLayout` in the order of `model.variables`, a dict from
            `id(layer)` to `{argument: entries}`, each entry an integer or an
            `Axis` to count, and a dict from `id(layer)` to `(list of Axis,
            compute)`.
        """
        channel_of = self._components()
        num_channels = channel_of.max(initial=-1) + 1
        frozen = np.full(num_channels, -1)
        reasons = []
        for labels, reason in self._frozen:
            if reason not in reasons:
                reasons.append(reason)
            here = channel_of[labels]
            here = here[frozen[here] < 0]
            frozen[here] = reasons.index(reason)

        # Channels that appear in the same way everywhere form a group.
        random = np.random.default_rng(0)
        signature = np.zeros(num_channels, "uint64")

        def mark(labels):
            token = random.integers(1, 2**63, dtype="uint64")
            counts = np.bincount(channel_of[labels], minlength=num_channels)
            with np.errstate(over="ignore"):
                signature[:] += token * counts.astype("uint64")

        for entry in self._registered.values():
            for labels in entry.labels.values():
                mark(labels)
        counted = leaves_of(list(self._resizes.values()))
        for labels, *_ in self._masks.values():
            counted += labels
        for part in counted:
            if isinstance(part, np.ndarray):
                mark(part)
        for index in range(len(reasons)):
            mark_token = random.integers(1, 2**63, dtype="uint64")
            with np.errstate(over="ignore"):
                signature[frozen == index] += mark_token
        _, first, group_of = np.unique(
            signature, return_index=True, return_inverse=True
        )
        # Groups and channels in the order of their first label.
        rank = np.empty(len(first), "int64")
        rank[np.argsort(first)] = np.arange(len(first))
        group_of = rank[group_of] if num_channels else group_of
        place = np.zeros(num_channels, "int64")
        members = [
            np.flatnonzero(group_of == index) for index in range(len(first))
        ]
        for channels in members:
            place[channels] = np.arange(len(channels))

        layers_of = [[] for _ in members]
        for entry in self._registered.values():
            for labels in entry.labels.values():
                for index in np.unique(group_of[channel_of[labels]]):
                    if entry.layer not in layers_of[index]:
                        layers_of[index].append(entry.layer)
        makers = [[] for _ in members]
        for start, number, name in self._families:
            labels = np.arange(start, start + number)
            for index in np.unique(group_of[channel_of[labels]]):
                if name not in makers[index]:
                    makers[index].append(name)
        names = _unique_names([made_by[0] for made_by in makers])
        groups = [
            ChannelGroup(
                index=index,
                name=names[index],
                num_channels=len(channels),
                makers=tuple(makers[index]),
                layers=tuple(layers_of[index]),
                frozen=_reason(reasons, frozen[channels[0]], len(channels)),
            )
            for index, channels in enumerate(members)
        ]

        def axis_of(labels):
            channels = channel_of[labels]
            return Axis(group_of[channels], place[channels])

        layouts = [
            self._layout(variable, axis_of) for variable in model.variables
        ]

        def count(part):
            if not isinstance(part, np.ndarray):
                return part
            return axis_of(part) if len(part) else 0

        resizes = {
            key: map_entries(count, entries)
            for key, entries in self._resizes.items()
        }
        masks = {
            key: ([axis_of(part) for part in labels], compute)
            for key, (labels, compute, _) in self._masks.items()
            # All channels of a frozen group are always present.
            if any((frozen[channel_of[part]] < 0).any() for part in labels)
        }
        return groups, layouts, resizes, masks

    def _components(self):
        if not self._num_labels:
            return np.zeros(0, "int64")
        if self._ties:
            rows = np.concatenate([first for first, _ in self._ties])
            columns = np.concatenate([second for _, second in self._ties])
        else:
            rows = columns = np.zeros(0, "int64")
        graph = coo_matrix(
            (np.ones(len(rows), "int8"), (rows, columns)),
            shape=(self._num_labels, self._num_labels),
        )
        _, component = connected_components(graph, directed=False)
        # Number the components by their first label, whatever SciPy does.
        _, first, inverse = np.unique(
            component, return_index=True, return_inverse=True
        )
        rank = np.empty(len(first), "int64")
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[inverse]

    def _layout(self, variable, axis_of):
        entry = self._registered.get(id(variable))
        if entry is None:
            role = "weight" if variable.trainable else "state"
            return VariableLayout(
                variable.path,
                tuple(variable.shape),
                {},
                role,
                variable.trainable,
            )
        axes = {
            axis: axis_of(labels)
            for axis, labels in sorted(entry.labels.items())
        }
        return VariableLayout(
            variable.path,
            tuple(variable.shape),
            axes,
            entry.role,
            variable.trainable,
            tuple(
                (positions, tuple(map(axis_of, along)))
                for positions, along in entry.uses
            ),
            entry.summed,
            entry.minimum,
            entry.momentum,
            entry.table,
        )


def map_entries(function, entries):
    """Applies a function to the leaves of lists, tuples, dicts and slices."""
    if isinstance(entries, dict):
        return {
            key: map_entries(function, part) for key, part in entries.items()
        }
    if isinstance(entries, list | tuple):
        return type(entries)(map_entries(function, part) for part in entries)
    if isinstance(entries, slice):
        return slice(
            map_entries(function, entries.start),
            map_entries(function, entries.stop),
            entries.step,
        )
    return function(entries)


def leaves_of(entries):
    """The leaves that `map_entries` visits."""
    leaves = []
    map_entries(leaves.append, entries)
    return leaves


def _reason(reasons, index, num_channels):
    """Why the number of channels of a group cannot change, or `None`."""
    if index >= 0:
        return reasons[index]
    return "a single channel" if num_channels == 1 else None


def _unique_names(names):
    """Numbers the names that appear more than once: `a`, `a#2`, ..."""
    used, result = {}, []
    for name in names:
        used[name] = used.get(name, 0) + 1
        result.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return result
