"""Follows channels through a functional graph and ties those that belong
together.

Every channel axis of every tensor in the graph carries *labels*, one integer
per position. Layers that make channels make fresh labels; layers that add,
multiply or share channels tie labels. Connected components of the ties are
the channels; channels that appear in the same way everywhere form a group.
"""

import dataclasses

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
    labels: dict
    summed: tuple
    role: str
    positions: int
    minimum: float = -np.inf


class LayerCall:
    """One call of one layer, as a rule sees it.

    Attributes:
        layer: The layer (or `keras.ops` operation).
        args, kwargs: The arguments of the call, with a `TracedTensor` in the
            place of each tensor.
        inputs: Flat list of the `TracedTensor`s among them.
        output_shapes: Shapes of the outputs.
    """

    def __init__(self, tracer, layer, args, kwargs, output_shapes):
        self._tracer = tracer
        self.layer = layer
        self.args = args
        self.kwargs = kwargs
        self.inputs = [
            x
            for x in keras.tree.flatten((args, kwargs))
            if isinstance(x, TracedTensor)
        ]
        self.output_shapes = output_shapes

    def new_channels(self, number):
        """Labels for `number` channels that this layer makes."""
        return self._tracer.new_labels(number, self.layer.name)

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

    def weight(self, variable, labels, summed=(), positions=0):
        """Says which channels the axes of a weight hold.

        Args:
            variable: A variable of the layer, or `None` (ignored).
            labels: Dict from axis number to labels, or `None` for an axis
                that never changes.
            summed: The axes that the layer sums over: input channels.
            positions: How often one example uses each weight; 0 where it
                is not multiplied (a bias).
        """
        self._tracer.register(
            self.layer.name, variable, labels, summed, "weight", positions
        )

    def statistic(self, variable, labels, minimum=-np.inf):
        """Like `weight`, for moving statistics, which belong to a size.

        Args:
            variable, labels: As for `weight`.
            minimum: Lower bound of the values (0 for a variance).
        """
        self._tracer.register(
            self.layer.name, variable, labels, (), "statistic", 0, minimum
        )

    def resize(self, argument, labels):
        """Says that an argument of the layer's config counts channels.

        Args:
            argument: Name in `layer.get_config()`.
            labels: The labels that it counts, or a list of labels and
                integers where the argument is a tuple.
        """
        self._tracer.resize(self.layer, argument, labels)

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
        self._resizes = {}  # layer name -> {argument: labels or list}

    def new_labels(self, number, name):
        start = self._num_labels
        self._num_labels += number
        self._families.append((start, number, name))
        return np.arange(start, start + number)

    def tie(self, first, second):
        self._ties.append((np.asarray(first), np.asarray(second)))

    def freeze(self, labels, reason):
        self._frozen.append((np.asarray(labels), reason))

    def register(
        self,
        layer,
        variable,
        labels,
        summed,
        role,
        positions,
        minimum=-np.inf,
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
                    f"The rule of layer '{layer}' labels axis {axis} of "
                    f"'{variable.path}', shape {shape}, with {len(value)} "
                    f"channels; expected {shape[axis]}."
                )
        known = self._registered.get(id(variable))
        if known is None:
            self._registered[id(variable)] = _Registered(
                variable,
                layer,
                labels,
                tuple(summed),
                role,
                positions,
                minimum,
            )
            return
        # A shared layer: every call must see the same channels.
        known.positions += positions
        for axis in set(labels) | set(known.labels):
            if axis in labels and axis in known.labels:
                self.tie(labels[axis], known.labels[axis])
            else:
                self.freeze(
                    labels.get(axis, known.labels.get(axis)),
                    f"layer '{layer}' is shared with channels that never "
                    "change",
                )
                known.labels.setdefault(axis, labels.get(axis))

    def resize(self, layer, argument, labels):
        # A shared layer registers once: its calls are tied by its weights.
        self._resizes.setdefault(id(layer), {}).setdefault(argument, labels)

    def nest(self, model, inputs, tensors):
        """Follows the inputs of a nested model, for its input shapes."""
        if id(model) not in self._resizes:
            self._resizes[id(model)] = {
                index: [
                    x.labels.get(axis, size)
                    for axis, size in enumerate(own.shape)
                ]
                for index, (own, x) in enumerate(
                    zip(inputs, tensors, strict=True)
                )
            }
            return
        # A shared model: every call must see the same channels.
        for index, x in enumerate(tensors):
            for axis, first in enumerate(self._resizes[id(model)][index]):
                second = x.labels.get(axis)
                labels = [
                    part
                    for part in (first, second)
                    if isinstance(part, np.ndarray)
                ]
                if len(labels) == 2:
                    self.tie(first, second)
                elif labels:
                    self.freeze(
                        labels[0],
                        f"model '{model.name}' is shared with channels that "
                        "never change",
                    )

    def finish(self, model):
        """Groups the channels.

        Returns:
            `(groups, layouts, resizes)`: list of `ChannelGroup`, list of
            `VariableLayout` in the order of `model.variables`, and a dict
            from `id(layer)` to `{argument: entries}`, each entry an integer
            or an `Axis` to count.
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
        for arguments in self._resizes.values():
            for labels in arguments.values():
                for part in labels if isinstance(labels, list) else [labels]:
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
                frozen=reasons[frozen[channels[0]]]
                if frozen[channels[0]] >= 0
                else None,
            )
            for index, channels in enumerate(members)
        ]

        def axis_of(labels):
            channels = channel_of[labels]
            return Axis(group_of[channels], place[channels])

        layouts = [
            self._layout(variable, axis_of) for variable in model.variables
        ]
        resizes = {}
        for layer_id, arguments in self._resizes.items():
            resizes[layer_id] = {}
            for argument, labels in arguments.items():
                if isinstance(labels, list):
                    entries = [
                        axis_of(part) if isinstance(part, np.ndarray) else part
                        for part in labels
                    ]
                else:
                    entries = None if labels is None else axis_of(labels)
                if entries is not None:
                    resizes[layer_id][argument] = entries
        return groups, layouts, resizes

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
            entry.positions,
            entry.summed,
            entry.minimum,
        )


def _unique_names(names):
    """Numbers the names that appear more than once: `a`, `a#2`, ..."""
    used, result = {}, []
    for name in names:
        used[name] = used.get(name, 0) + 1
        result.append(name if used[name] == 1 else f"{name}#{used[name]}")
    return result
