"""`ImplicitField`: the published implicit neural representation."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.imitation import imitate
from keras_neumeta.fields.interpolation import interpolate_weights, is_static
from keras_neumeta.fields.weight_field import WeightField
from keras_neumeta.serialization import register_serializable

# Rows of the batched matrix products that share one network.
ROWS = 256


@register_serializable
class ImplicitField(WeightField):
    """One network over coordinates per weight of the target.

    For the slice of a kernel between input channel `a` of `A` and output
    channel `b` of `B`, the relative positions `(a + 0.5) / A` and
    `(b + 0.5) / B`, their sines and cosines, and the kept widths
    `A / A_full` and `B / B_full` (and the share of kept blocks, where blocks
    can be left out) enter a residual multilayer perceptron,
    whose outputs are the values of the slice (all kernel positions). Smaller
    kernels take the centre of the outputs.

    Each output channel of a kernel is then brought to the standard deviation
    of the target's own weight, times a learned gain and
    `sqrt(fan_in_full / fan_in)`: whatever the networks learn, no size can go
    silent or explode. Vectors (biases, gamma) start around their mean.

    All networks and all coordinates are one batched computation: the rows are
    cut into blocks that share a network.

    A hypermodel first fits the networks to the weights of the target
    (`imitation_steps`).

    Weights that do not train, none of whose channels can change, or that are
    looked up (an embedding) stay plain weights, started at the target's values.

    Source: Neural Metamorphosis (Yang and Wang, ECCV 2024, arXiv 2410.11878),
    section 3. Unlike there, kernels are standardized, the inputs of the
    hidden layers are normalized, and the widths have no sines and cosines,
    with which every size would be a code of its own. The layer index is left
    out, which is constant within a network.

    Args:
        width: Units of the hidden layers.
        depth: Number of hidden layers.
        num_frequencies: Sines and cosines of `2**k * pi * x` for `k` below
            this number. 16 as published; fewer make the manifold smoother and
            far easier to learn.
        residual_scale: Start value of the learned factor of each residual
            branch.
        imitation_steps: Steps of Adam that fit what the networks make to the
            target's own weights, interpolated at every width, when a
            hypermodel is made with the field; see
            `ManifoldHyperModel(imitate=)`. Each takes as long as the field
            takes for one size of a training step. At 0 training begins at
            random kernels, which is enough for a target that is untrained.
        seed: Seed of the initial values.

    Example:

    ```python
    field = keras_neumeta.ImplicitField(width=128, depth=3)
    hyper = keras_neumeta.ManifoldHyperModel(model, field=field)
    ```
    """

    def __init__(
        self,
        width=64,
        depth=4,
        num_frequencies=4,
        residual_scale=1.0,
        imitation_steps=300,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in [
            ("width", width),
            ("depth", depth),
            ("num_frequencies", num_frequencies),
            ("imitation_steps", imitation_steps),
        ]:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"Argument `{name}` must be an integer. "
                    f"Received: {name}={value!r}"
                )
            least = 1 if name in ("width", "depth") else 0
            if value < least:
                raise ValueError(
                    f"Argument `{name}` must be at least {least}. "
                    f"Received: {name}={value}"
                )
        self.width = width
        self.depth = depth
        self.num_frequencies = num_frequencies
        self.residual_scale = residual_scale
        self.imitation_steps = imitation_steps
        self.seed = seed

    def attach(self, graph, values):
        super().attach(graph, values)
        # What keeps its size, or does not train, is held as it is.
        self.held = [
            index
            for index, layout in enumerate(self.layouts)
            if not any(graph.groups[g].morphable for g in layout.groups)
            or not layout.trainable
            or layout.table
        ]
        self.held_points = []
        for index in self.held:
            layout = self.layouts[index]
            variable = self.add_weight(
                shape=layout.shape,
                initializer="zeros",
                trainable=layout.trainable,
                name=layout.path.replace("/", "_"),
            )
            variable.assign(np.asarray(values[index], "float32"))
            self.held_points.append(variable)
        self.made = [n for n in range(len(values)) if n not in self.held]
        values = [values[index] for index in self.made]
        self._made_layouts = [self.layouts[index] for index in self.made]
        self._plans = {}
        full = self._plan(graph.full_sizes)
        number = full.num_networks
        self.num_outputs = full.num_outputs
        features = 4 + 4 * self.num_frequencies + bool(graph.blocks)
        seeds = keras.random.SeedGenerator(
            0 if self.seed is None else self.seed
        )
        self.kernels, self.biases, self.branch_scales = [], [], []
        widths = [features] + [self.width] * self.depth + [self.num_outputs]
        for index, (fan_in, units) in enumerate(zip(widths, widths[1:])):
            limit = fan_in**-0.5
            for variables, shape, bound in (
                # He's deviation.
                (self.kernels, (number, fan_in, units), 6**0.5 * limit),
                (self.biases, (number, units), limit),
            ):
                kind = "kernel" if variables is self.kernels else "bias"
                variables.append(
                    self.add_weight(
                        shape=shape,
                        initializer=keras.initializers.RandomUniform(
                            -bound, bound, seed=seeds
                        ),
                        name=f"{kind}_{index}",
                    )
                )
            if 0 < index < self.depth:
                self.branch_scales.append(
                    self.add_weight(
                        shape=(number,),
                        initializer=keras.initializers.Constant(
                            self.residual_scale
                        ),
                        name=f"branch_scale_{index}",
                    )
                )
        self.gains = self.add_weight(
            shape=(len(self.made),), initializer="ones", name="gains"
        )
        # Where the target's weights lie; not trained.
        self.scales, self.shifts = (
            self.add_weight(
                shape=(len(self.made),),
                initializer="zeros",
                trainable=False,
                name=name,
            )
            for name in ("scales", "shifts")
        )
        # A constant (a bias at zero) still needs room to move.
        self.scales.assign(
            [
                float(np.std(value)) or 0.02
                if layout.summed
                else max(float(np.std(value)), 0.02)
                for layout, value in zip(
                    self._made_layouts, values, strict=True
                )
            ]
        )
        self.shifts.assign(
            [
                0.0 if layout.summed else float(np.mean(value))
                for layout, value in zip(
                    self._made_layouts, values, strict=True
                )
            ]
        )

    def imitate(self, values):
        imitate(self, values, self.imitation_steps, self.seed or 0)

    def generate(self, sizes, offsets=None):
        held = interpolate_weights(
            self.graph,
            [self.layouts[index] for index in self.held],
            self.held_points,
            sizes,
            offsets,
        )
        made = self._generate(sizes, offsets)
        weights = dict(zip([*self.held, *self.made], [*held, *made]))
        return [weights[index] for index in range(len(self.layouts))]

    def _generate(self, sizes, offsets):
        """The weights that the networks make."""
        static = is_static(sizes)
        plan = self._plan(sizes if static else self.graph.full_sizes)
        sizes = ops.cast(ops.convert_to_tensor(sizes), "float32")
        features, present = self._features(plan, sizes, offsets)
        x = self._values(plan, features)
        shifts = self.shifts / self.scales
        x = x + ops.take(shifts, plan.layout)[:, None]
        weights = plan.weights(x)
        if not static:
            present = ops.broadcast_to(present[:, None], ops.shape(x))
            masks = plan.weights(present)
            weights = [w * mask for w, mask in zip(weights, masks)]
        scales = self.scales * self.gains
        for index, layout in enumerate(self._made_layouts):
            if layout.summed:
                mask = None if static else masks[index]
                weights[index] = _standardize(weights[index], mask, layout)
            weights[index] = weights[index] * scales[index]
        return weights

    def _features(self, plan, sizes, offsets):
        """Inputs of the networks, a row per slice, and 1 where it exists."""
        # Input axes of unknown groups (images) have constant sizes.
        full = np.concatenate(
            [self.graph.full_sizes, plan.constant_sizes]
        ).astype("float32")
        sizes = ops.concatenate(
            [sizes, ops.convert_to_tensor(plan.constant_sizes)]
        )
        if offsets is not None:
            offsets = ops.concatenate([*offsets, ops.zeros((1,), "float32")])
        positions, widths, present = [], [], 1.0
        for group, index, noise in (
            (plan.group_in, plan.index_in, plan.noise_in),
            (plan.group_out, plan.index_out, plan.noise_out),
        ):
            size = ops.take(sizes, group)
            index = ops.convert_to_tensor(index)
            present = present * ops.cast(index < size, "float32")
            if offsets is not None:
                index = index + ops.take(offsets, noise)
            positions.append((index + 0.5) / size)
            widths.append(size / ops.convert_to_tensor(full[group]))
        positions = ops.stack(positions, axis=-1)
        features = [positions, ops.stack(widths, axis=-1)]
        if self.graph.blocks:
            deep = sizes[self.graph.depth_place] / len(self.graph.blocks)
            features.append(ops.ones_like(positions[:, :1]) * deep)
        if self.num_frequencies:
            frequencies = np.pi * 2.0 ** np.arange(self.num_frequencies)
            frequencies = ops.convert_to_tensor(frequencies, "float32")
            angles = positions[:, :, None] * frequencies
            angles = ops.reshape(angles, (-1, 2 * self.num_frequencies))
            features += [ops.sin(angles), ops.cos(angles)]
        return ops.concatenate(features, axis=-1), present

    def _values(self, plan, x):
        """Runs the network of each row."""

        def own(variable):
            return ops.take(variable, plan.network_of_block, axis=0)

        def linear(x, index):
            product = ops.matmul(x, own(self.kernels[index]))
            return product + own(self.biases[index])[:, None, :]

        x = ops.reshape(x, (-1, ROWS, x.shape[-1]))
        x = ops.relu(linear(x, 0))
        for index, scale in enumerate(self.branch_scales, start=1):
            branch = ops.relu(linear(_normalize(x), index))
            x = x + own(scale)[:, None, None] * branch
        x = linear(_normalize(x), self.depth)
        return ops.reshape(x, (-1, self.num_outputs))

    def _plan(self, sizes):
        if sizes not in self._plans:
            self._plans[sizes] = _Plan(self.graph, self._made_layouts, sizes)
        return self._plans[sizes]

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "depth": self.depth,
            "num_frequencies": self.num_frequencies,
            "residual_scale": self.residual_scale,
            "imitation_steps": self.imitation_steps,
            "seed": self.seed,
        }


def _normalize(x):
    """Mean 0 and variance 1 over the units."""
    x = x - ops.mean(x, axis=-1, keepdims=True)
    square = ops.mean(ops.square(x), axis=-1, keepdims=True)
    return x * ops.rsqrt(square + 1e-5)


def _standardize(weight, present, layout):
    """Mean 0 and mean square `fan_in_full / fan_in` of each output channel.

    Whatever the size, the squares sum to `fan_in_full` then. Without the mean
    all units of a layer can be driven below zero, for good.

    Args:
        weight: Kernel.
        present: `None`, or 1 where the weight exists at this size, else 0.
        layout: Its `VariableLayout`.
    """
    axes = [
        n
        for n in range(len(layout.shape))
        if n in layout.summed or n not in layout.axes
    ]
    fan_in = float(np.prod([weight.shape[n] for n in axes]))
    if present is not None:
        fan_in = ops.sum(present, axis=axes, keepdims=True)
        fan_in = ops.maximum(fan_in, 1.0)
    # The factor: nothing would be left of a single input.
    mean = ops.sum(weight, axis=axes, keepdims=True) / fan_in
    weight = weight - mean * (1.0 - 1.0 / fan_in)
    if present is not None:
        weight = weight * present
    squares = ops.sum(ops.square(weight), axis=axes, keepdims=True)
    fan_in_full = float(np.prod([layout.shape[n] for n in axes]))
    return weight * ops.sqrt(fan_in_full / (squares + 1e-6))


class _Plan:
    """Index arrays of all kernel slices of one size.

    A slice has one input channel and one output channel; the weight's other
    axes, and the blocks that a channel fills on an axis, are its values. Each
    pair of an input group and an output group of a weight has a network of
    its own. Rows are padded so that blocks of `ROWS` share a network.
    """

    def __init__(self, graph, layouts, sizes):
        num_sizes = len(graph.full_sizes)
        full = np.array([g.num_channels for g in graph.groups], "int64")
        starts = np.concatenate([[0], np.cumsum(full)])
        constants = [1]  # index num_sizes: no such axis
        rows = {
            key: []
            for key in (
                "network",
                "layout",
                "group_in",
                "group_out",
                "index_in",
                "index_out",
                "noise_in",
                "noise_out",
            )
        }
        elements, self.shapes = [], []
        num_rows, self.num_networks, self.num_outputs = 0, 0, 1
        for layout in layouts:
            shape = layout.shape_at(sizes)
            self.shapes.append(shape)
            inputs = [n for n in layout.summed][:1]
            outputs = [n for n in layout.axes if n not in inputs][-1:]
            coordinates = np.indices(shape).reshape(len(shape), -1)

            sides = []
            for numbers in (inputs, outputs):
                here = np.zeros(int(np.prod(shape)), "int64")
                group, channel = here + num_sizes, here
                if numbers:
                    here = channel = coordinates[numbers[0]]
                    axis = layout.axes.get(numbers[0])
                    if axis is None:
                        constants.append(shape[numbers[0]])
                        group = here * 0 + num_sizes + len(constants) - 1
                    else:
                        axis = axis.at(sizes)
                        group, channel = axis.groups[here], axis.channels[here]
                sides.append((group, channel))
            pairs, channels = np.moveaxis(np.array(sides), 1, 0)
            element = np.empty(len(here), "int64")
            for pair in np.unique(pairs, axis=1).T:
                member = np.flatnonzero((pairs == pair[:, None]).all(axis=0))
                slices, row = np.unique(
                    channels[:, member], axis=1, return_inverse=True
                )
                # The place of an element within its slice: by order.
                order = np.argsort(row, kind="stable")
                counts = np.bincount(row)
                within = np.empty(len(row), "int64")
                begin = np.repeat(np.cumsum(counts) - counts, counts)
                within[order] = np.arange(len(row)) - begin
                padded = -(-slices.shape[1] // ROWS) * ROWS
                pad = (0, padded - slices.shape[1])
                element[member] = (num_rows + row) * 2**20 + within
                rows["network"].append(np.full(padded, self.num_networks))
                rows["layout"].append(np.full(padded, len(elements)))
                rows["group_in"].append(np.full(padded, pair[0]))
                rows["group_out"].append(np.full(padded, pair[1]))
                rows["index_in"].append(np.pad(slices[0], pad))
                rows["index_out"].append(np.pad(slices[1], pad))
                for key, group, index in (
                    ("noise_in", pair[0], slices[0]),
                    ("noise_out", pair[1], slices[1]),
                ):
                    rows[key].append(
                        np.pad(starts[group] + index, pad)
                        if group < num_sizes
                        else np.full(padded, -1)
                    )
                num_rows += padded
                self.num_networks += 1
                self.num_outputs = max(self.num_outputs, int(counts.max()))
            elements.append(element)
        for key, parts in rows.items():
            value = np.concatenate(parts)
            kind = "float32" if key.startswith("index") else "int32"
            setattr(self, key, value.astype(kind))
        self.constant_sizes = np.array(constants, "float32")
        # Axes without noise read the zero behind the groups' noise.
        for key in ("noise_in", "noise_out"):
            value = getattr(self, key)
            value[value < 0] = starts[-1]
        self.network_of_block = self.network[::ROWS]
        self.element = self._places(np.concatenate(elements))
        self.splits = np.cumsum([len(x) for x in elements])[:-1].tolist()

    def weights(self, outputs):
        """Cuts the networks' outputs `(rows, num_outputs)` into weights."""
        flat = ops.take(ops.reshape(outputs, (-1,)), self.element)
        parts = ops.split(flat, self.splits) if self.splits else [flat]
        return [
            ops.reshape(part, shape) for part, shape in zip(parts, self.shapes)
        ]

    def _places(self, flat):
        """Place of each weight in the flat outputs, centred in its slice."""
        row, within = flat // 2**20, flat % 2**20
        used = np.zeros(len(self.network), "int64")
        np.maximum.at(used, row, within + 1)
        start = (self.num_outputs - used[row]) // 2
        return (row * self.num_outputs + start + within).astype("int32")
