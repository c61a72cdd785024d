"""`ImplicitField`: the published implicit neural representation."""

import keras
import numpy as np
from keras import ops

from keras_neumeta.fields.interpolation import is_static
from keras_neumeta.fields.weight_field import WeightField
from keras_neumeta.serialization import register_serializable

# Rows of the batched matrix products that share one network.
ROWS = 256


@register_serializable
class ImplicitField(WeightField):
    """One network over coordinates per weight of the target.

    For the slice of a kernel between input channel `a` of `A` and output
    channel `b` of `B` in tensor `l`, the coordinates
    `(l / L, a / A, b / B, l / L, A / A_full, B / B_full)` and their sines and
    cosines enter a residual multilayer perceptron, whose outputs are the
    values of the slice (all kernel positions). Smaller kernels take the
    centre of the outputs. Outputs are multiplied by the standard deviation of
    the target's own weight and by `sqrt(A_full / A)`; vectors (biases, gamma)
    keep their mean.

    All networks and all coordinates are one batched computation: the rows are
    cut into blocks that share a network.

    Source: Neural Metamorphosis (Yang and Wang, ECCV 2024, arXiv 2410.11878),
    section 3. Unlike the published code, the layer index and the scale are
    not subject to the coordinate noise, and the scale is the tensor's own.

    Args:
        width: Units of the hidden layers.
        depth: Number of hidden layers.
        num_frequencies: Sines and cosines of `2**k * pi * x` for `k` below
            this number. 16 as published; fewer make the manifold smoother.
        residual_scale: Start value of the learned factor of each residual
            branch.
        seed: Seed of the initial values.

    Example:

    ```python
    field = keras_neumeta.ImplicitField(width=128)
    hyper = keras_neumeta.ManifoldHyperModel(model, field=field)
    ```
    """

    def __init__(
        self,
        width=256,
        depth=4,
        num_frequencies=16,
        residual_scale=0.1,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in [
            ("width", width),
            ("depth", depth),
            ("num_frequencies", num_frequencies),
        ]:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(
                    f"Argument `{name}` must be an integer. "
                    f"Received: {name}={value!r}"
                )
            if value < (0 if name == "num_frequencies" else 1):
                raise ValueError(
                    f"Argument `{name}` must be positive. "
                    f"Received: {name}={value}"
                )
        self.width = width
        self.depth = depth
        self.num_frequencies = num_frequencies
        self.residual_scale = residual_scale
        self.seed = seed

    def attach(self, graph, values):
        super().attach(graph, values)
        self._plans = {}
        full = self._plan(graph.full_sizes)
        number = full.num_networks
        self.num_outputs = full.num_outputs
        features = 6 * (1 + 2 * self.num_frequencies)
        seeds = keras.random.SeedGenerator(
            0 if self.seed is None else self.seed
        )

        def uniform(shape, fan_in, name):
            # PyTorch's default for linear layers, as published.
            limit = fan_in**-0.5
            return self.add_weight(
                shape=shape,
                initializer=keras.initializers.RandomUniform(
                    -limit, limit, seed=seeds
                ),
                name=name,
            )

        self.kernels, self.biases, self.branch_scales = [], [], []
        widths = [features] + [self.width] * self.depth + [self.num_outputs]
        for index, (fan_in, units) in enumerate(zip(widths, widths[1:])):
            self.kernels.append(
                uniform((number, fan_in, units), fan_in, f"kernel_{index}")
            )
            self.biases.append(
                uniform((number, units), fan_in, f"bias_{index}")
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
        self.scales = self.add_weight(
            shape=(number,), initializer="ones", trainable=False, name="scales"
        )
        self.shifts = self.add_weight(
            shape=(number,),
            initializer="zeros",
            trainable=False,
            name="shifts",
        )
        shifts, scales = full.network_statistics(self.layouts, values)
        self.shifts.assign(shifts)
        self.scales.assign(scales)

    def generate(self, sizes, offsets=None):
        static = is_static(sizes)
        plan = self._plan(sizes if static else self.graph.full_sizes)
        sizes = ops.cast(ops.convert_to_tensor(sizes), "float32")
        # Input axes of unknown groups (images) have constant sizes.
        sizes = ops.concatenate(
            [sizes, ops.convert_to_tensor(plan.constant_sizes)]
        )
        full = np.concatenate(
            [self.graph.full_sizes, plan.constant_sizes]
        ).astype("float32")
        size_in = ops.take(sizes, plan.group_in)
        size_out = ops.take(sizes, plan.group_out)
        first_in = index_in = ops.convert_to_tensor(plan.index_in)
        first_out = index_out = ops.convert_to_tensor(plan.index_out)
        if offsets is not None:
            noise = ops.concatenate(
                [*offsets, ops.zeros((plan.num_constants,), "float32")]
            )
            index_in = index_in + ops.take(noise, plan.noise_in)
            index_out = index_out + ops.take(noise, plan.noise_out)
        layer = ops.convert_to_tensor(
            plan.network / plan.num_networks, "float32"
        )
        full_in = ops.convert_to_tensor(full[plan.group_in])
        full_out = ops.convert_to_tensor(full[plan.group_out])
        coordinates = ops.stack(
            [
                layer,
                index_in / size_in,
                index_out / size_out,
                layer,
                size_in / full_in,
                size_out / full_out,
            ],
            axis=-1,
        )
        features = [coordinates]
        if self.num_frequencies:
            frequencies = np.pi * 2.0 ** np.arange(self.num_frequencies)
            frequencies = ops.convert_to_tensor(frequencies, "float32")
            angles = coordinates[:, :, None] * frequencies
            angles = ops.reshape(angles, (-1, 6 * self.num_frequencies))
            features += [ops.sin(angles), ops.cos(angles)]
        x = ops.concatenate(features, axis=-1)
        x = ops.reshape(x, (-1, ROWS, x.shape[-1]))

        def own(variable):
            return ops.take(variable, plan.network_of_block, axis=0)

        def linear(x, index):
            product = ops.matmul(x, own(self.kernels[index]))
            return product + own(self.biases[index])[:, None, :]

        x = ops.relu(linear(x, 0))
        for index, scale in enumerate(self.branch_scales, start=1):
            branch = ops.relu(linear(x, index))
            x = x + own(scale)[:, None, None] * branch
        x = linear(x, self.depth)
        x = ops.reshape(x, (-1, self.num_outputs))
        scale = ops.take(self.scales, plan.network) * ops.sqrt(
            full_in / size_in
        )
        x = x * scale[:, None] + ops.take(self.shifts, plan.network)[:, None]
        if not static:
            present = ops.logical_and(first_in < size_in, first_out < size_out)
            x = x * ops.cast(present, "float32")[:, None]
        x = ops.reshape(x, (-1,))
        x = ops.take(x, plan.element)
        parts = ops.split(x, plan.splits) if plan.splits else [x]
        return [
            ops.reshape(part, shape) for part, shape in zip(parts, plan.shapes)
        ]

    def _plan(self, sizes):
        if sizes not in self._plans:
            self._plans[sizes] = _Plan(self.graph, self.layouts, sizes)
        return self._plans[sizes]

    def get_config(self):
        return {
            **super().get_config(),
            "width": self.width,
            "depth": self.depth,
            "num_frequencies": self.num_frequencies,
            "residual_scale": self.residual_scale,
            "seed": self.seed,
        }


class _Plan:
    """Index arrays of all kernel slices of one size.

    A slice has one input channel and one output channel; the weight's other
    axes, and the blocks that a channel fills on an axis, are its values. Each
    pair of an input group and an output group of a weight has a network of
    its own. Rows are padded so that blocks of `ROWS` share a network.
    """

    def __init__(self, graph, layouts, sizes):
        num_groups = len(graph.groups)
        full = np.array(graph.full_sizes, "int64")
        starts = np.concatenate([[0], np.cumsum(full)])
        constants = [1]  # index num_groups: no such axis
        rows = {
            key: []
            for key in (
                "network",
                "group_in",
                "group_out",
                "index_in",
                "index_out",
                "noise_in",
                "noise_out",
            )
        }
        elements, self.shapes, self._members = [], [], []
        num_rows, self.num_networks, self.num_outputs = 0, 0, 1
        for layout in layouts:
            shape = layout.shape_at(sizes)
            self.shapes.append(shape)
            inputs = [n for n in layout.summed][:1]
            outputs = [n for n in layout.axes if n not in inputs][-1:]
            coordinates = np.indices(shape).reshape(len(shape), -1)

            def side(numbers):
                """Group, channel and block of each element of the weight."""
                if not numbers:
                    zeros = np.zeros(coordinates.shape[1], "int64")
                    return np.full_like(zeros, num_groups), zeros, zeros
                number = numbers[0]
                here = coordinates[number]
                axis = layout.axes.get(number)
                if axis is None:
                    constants.append(shape[number])
                    group = num_groups + len(constants) - 1
                    return np.full_like(here, group), here, here * 0
                axis = axis.at(sizes)
                return axis.groups[here], axis.channels[here], axis.blocks[here]

            group_in, channel_in, block_in = side(inputs)
            group_out, channel_out, block_out = side(outputs)
            element = np.empty(coordinates.shape[1], "int64")
            pairs = np.stack([group_in, group_out])
            for pair in np.unique(pairs, axis=1).T:
                member = np.flatnonzero((pairs == pair[:, None]).all(axis=0))
                a, b = channel_in[member], channel_out[member]
                slices, row = np.unique(
                    np.stack([a, b]), axis=1, return_inverse=True
                )
                # The place of an element within its slice: by order.
                order = np.argsort(row, kind="stable")
                counts = np.bincount(row)
                within = np.empty(len(row), "int64")
                begin = np.repeat(np.cumsum(counts) - counts, counts)
                within[order] = np.arange(len(row)) - begin
                self._members.append((len(self.shapes) - 1, member))
                padded = -(-slices.shape[1] // ROWS) * ROWS
                pad = (0, padded - slices.shape[1])
                element[member] = (num_rows + row) * 2**20 + within
                rows["network"].append(np.full(padded, self.num_networks))
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
                        if group < num_groups
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
        self.num_constants = 1
        # Axes without noise read the zero behind the groups' noise.
        for key in ("noise_in", "noise_out"):
            value = getattr(self, key)
            value[value < 0] = starts[-1]
        self.network_of_block = self.network[::ROWS]
        self._elements = elements
        self.splits = np.cumsum([len(x) for x in elements])[:-1].tolist()

    @property
    def element(self):
        """Place of each weight in the flat outputs, centred in its slice."""
        flat = np.concatenate(self._elements)
        row, within = flat // 2**20, flat % 2**20
        used = np.zeros(len(self.network), "int64")
        np.maximum.at(used, row, within + 1)
        start = (self.num_outputs - used[row]) // 2
        return (row * self.num_outputs + start + within).astype("int32")

    def network_statistics(self, layouts, values):
        """Mean (of vectors) and deviation of what each network makes."""
        shifts, scales = [], []
        for index, member in self._members:
            value = np.asarray(values[index], "float32").reshape(-1)[member]
            shifts.append(0.0 if layouts[index].summed else value.mean())
            # A constant (a bias at zero) still needs room to move.
            scales.append(max(float(np.std(value)), 0.02))
        return np.array(shifts, "float32"), np.array(scales, "float32")
