"""Reading an axis of `N` control points at the positions of `n` channels."""

import math

import keras
import numpy as np
from keras import ops


def is_static(sizes):
    """Whether sizes are known when a compiled function is traced."""
    return isinstance(sizes, tuple)


def interpolation_matrix(
    size, full, offsets=None, kernel="linear", stretch=1.0
):
    """Matrix that reads `full` control points at `size` positions.

    Channel `i` of `size` reads at position
    `(i + 0.5 + offset) * (full / size) ** stretch - 0.5`: `stretch=1` keeps
    relative positions, `stretch=0` reads the leading slice. Above the full
    size there is nothing but relative positions.

    Args:
        size: Number of channels: an integer, or a scalar int tensor.
        full: Number of control points, an integer.
        offsets: `None`, or a float tensor `(full,)` of coordinate noise.
        kernel: `"linear"` or `"cubic"` (Keys' cubic convolution, a=-0.5).
        stretch: Exponent of the positions.

    Returns:
        `None` for the identity, else float32 `(full, size)` for an integer
        size (a NumPy array where there is no noise), `(full, full)` with
        zero columns from `size` on for a tensor.
    """
    static = isinstance(size, int)
    if static and size == full and offsets is None:
        return None
    # What is known beforehand is computed once, not in every step.
    xp = np if static and offsets is None else ops
    columns = size if static else full
    index = xp.arange(columns, dtype="float32") + 0.5
    if offsets is not None:
        index = index + offsets[:columns]
    if static:
        step = float((full / size) ** (stretch if size <= full else 1.0))
    else:
        step = ops.power(full / ops.cast(size, "float32"), stretch)
    # The last position of a size is never beyond the last control point,
    # but those of channels that are masked away are.
    positions = xp.clip(index * step - 0.5, 0.0, full - 1.0)
    distance = xp.abs(
        xp.arange(-2, full + 2, dtype="float32")[:, None] - positions[None, :]
    )
    matrix = xp.where(distance < 2.0, KERNELS[kernel](xp, distance), 0.0)
    # Points beyond the ends repeat the end points.
    inner = matrix[2:-2]
    if kernel == "cubic":
        first = xp.sum(matrix[:2], axis=0, keepdims=True)
        last = xp.sum(matrix[-2:], axis=0, keepdims=True)
        rows = xp.arange(full, dtype="int32")[:, None]
        inner = inner + xp.where(rows == 0, first, 0.0)
        inner = inner + xp.where(rows == full - 1, last, 0.0)
    if static:
        return inner
    present = ops.arange(columns, dtype="int32") < size
    return inner * ops.cast(present, "float32")


def reading(size, full, offsets=None, kernel="linear", stretch=1.0):
    """How `size` channels read `full` control points, for `transform_axis`.

    Args:
        size, full, offsets, kernel, stretch: See `interpolation_matrix`.

    Returns:
        That matrix, or for a leading slice `size` itself if it is an integer,
        else a vector `(full,)` of ones with zeros from `size` on.
    """
    static = isinstance(size, int)
    if stretch or offsets is not None or (static and size >= full):
        return interpolation_matrix(size, full, offsets, kernel, stretch)
    if static:
        return size
    return ops.cast(ops.arange(full, dtype="int32") < size, "float32")


def _linear(xp, distance):
    return xp.maximum(1.0 - distance, 0.0)


def _cubic(xp, distance):
    near = (1.5 * distance - 2.5) * distance**2 + 1.0
    far = ((-0.5 * distance + 2.5) * distance - 4.0) * distance + 2.0
    return xp.where(distance < 1.0, near, far)


KERNELS = {"linear": _linear, "cubic": _cubic}


def spreading_matrix(size, full, offsets=None, stretch=1.0):
    """Matrix that spreads values of `size` channels over `full` points.

    The counterpart of `interpolation_matrix`, linear: without noise every
    point between the channels gets a value, with noise those that are read.

    Returns:
        `None` for the identity, else a float32 tensor `(size, full)` for an
        integer size, `(full, full)` with zero rows from `size` on for a
        tensor; and a float32 tensor `(full,)`, 1 where a point is reached.
    """
    static = isinstance(size, int)
    if offsets is not None:
        matrix = interpolation_matrix(size, full, offsets, stretch=stretch)
        read = ops.sum(matrix, axis=1)
        matrix = ops.transpose(matrix) / ops.maximum(read, 1.0)
        return matrix, ops.cast(read > 0.0, "float32")
    if static and size == full:
        return None, None
    xp = np if static else ops
    rows = size if static else full
    number = float(size) if static else ops.cast(size, "float32")
    step = xp.power(number / full, stretch)
    positions = (xp.arange(full, dtype="float32") + 0.5) * step - 0.5
    reached = positions < number - 0.25
    positions = xp.clip(positions, 0.0, number - 1.0)
    points = xp.arange(rows, dtype="float32")
    matrix = _linear(xp, xp.abs(points[:, None] - positions[None, :]))
    return ops.cast(matrix, "float32"), ops.cast(reached, "float32")


def transform_axis(value, number, axis, matrices, result_axis):
    """Multiplies the channels of each group along one axis by a matrix.

    Args:
        value: Tensor.
        number: The number of the axis.
        axis: Its `Axis`.
        matrices: Dict from group to matrix `(channels, new channels)`, a
            vector `(new channels,)` of factors of the leading channels, the
            number of leading channels to keep, or `None` for the identity.
        result_axis: The `Axis` that the result has.

    Returns:
        Tensor with `len(result_axis)` positions along that axis.
    """
    if all(matrices[piece.group] is None for piece in axis.pieces):
        return value
    if axis.order is not None:
        value = ops.take(value, axis.order, axis=number)
    before, after = value.shape[:number], value.shape[number + 1 :]
    parts, start = [], 0
    runs = _runs(axis.pieces, matrices)
    for matrix, channels, length in runs:
        stop = start + length
        part = value
        if len(runs) > 1:
            part = value[(*[slice(None)] * number, slice(start, stop))]
        if matrix is not None and _leads(matrix) and channels == length:
            part = _lead(part, number, matrix)
        elif matrix is not None:
            part = _multiply(part, channels, math.prod(after), matrix)
            part = ops.reshape(part, (*before, -1, *after))
        parts.append(part)
        start = stop
    value = ops.concatenate(parts, axis=number) if len(parts) > 1 else parts[0]
    if result_axis.inverse is not None:
        value = ops.take(value, result_axis.inverse, axis=number)
    return value


def _leads(matrix):
    """Whether it stands for the leading channels."""
    return isinstance(matrix, int) or len(matrix.shape) == 1


def _lead(value, number, matrix):
    """The leading channels along an axis, times their factors."""
    kept = matrix if isinstance(matrix, int) else matrix.shape[0]
    value = value[(*[slice(None)] * number, slice(kept))]
    if isinstance(matrix, int):
        return value
    after = len(value.shape) - number - 1
    return value * ops.reshape(matrix, (-1, *[1] * after))


def _multiply(value, channels, width, matrix):
    """Multiplies blocks of `channels` rows of that width, from the left."""
    if _leads(matrix):
        return _lead(ops.reshape(value, (-1, channels, width)), 1, matrix)
    if width == 1:
        return ops.matmul(ops.reshape(value, (-1, channels)), matrix)
    blocks = math.prod(value.shape) // (channels * width)
    shape = (channels, width) if blocks == 1 else (-1, channels, width)
    return ops.matmul(ops.transpose(matrix), ops.reshape(value, shape))


def _runs(pieces, matrices):
    """Neighbouring pieces that share a matrix, taken together.

    Returns:
        List of `(matrix, channels, positions)`.
    """
    runs: list = []
    for piece in pieces:
        matrix = matrices[piece.group]
        length = piece.blocks * piece.num_channels
        if (
            runs
            and runs[-1][0] is matrix
            and (matrix is None or runs[-1][1] == piece.num_channels)
        ):
            length += runs.pop()[2]
        runs.append((matrix, piece.num_channels, length))
    return runs


def group_matrices(graph, sizes, make, offsets=None):
    """A matrix per group, one and the same for groups of equal sizes.

    Args:
        graph: `ChannelGraph`.
        sizes, offsets: As for `WeightField.generate`.
        make: Function `(number, group) -> matrix`, with the group's noise as
            a third argument where there is noise.

    Returns:
        Dict from group index to what was made, arrays as tensors.
    """
    made: dict = {}
    result = {}
    for group, number in zip(graph.groups, group_sizes(graph, sizes)):
        key, noise = group.index, ()
        if offsets is not None and group.morphable:
            noise = (offsets[group.index],)
        elif isinstance(number, int):
            key = number, group.num_channels
        if key not in made:
            made[key] = keras.tree.map_structure(
                _to_tensor, make(number, group, *noise)
            )
        result[group.index] = made[key]
    return result


def _to_tensor(value):
    return ops.convert_to_tensor(value) if hasattr(value, "ndim") else value


def result_axes(graph, layout, sizes):
    """The axes of the generated weight: of that size for static sizes.

    What is in order stays in order at every size: such axes do as they are,
    for `transform_axis`.
    """
    if not is_static(sizes) or all(
        axis.order is None for axis in layout.axes.values()
    ):
        return layout.axes
    return graph.axes_at(layout, sizes)


def group_sizes(graph, sizes):
    """One size per group: integers for static sizes, else scalar tensors.

    Frozen groups always have an integer.
    """
    return [
        int(sizes[group.index])
        if is_static(sizes)
        else (sizes[group.index] if group.morphable else group.num_channels)
        for group in graph.groups
    ]


def interpolate_weights(
    graph,
    layouts,
    points,
    sizes,
    offsets=None,
    kernel="linear",
    stretch=1.0,
    scale=1.0,
):
    """Reads the weights of a size from control points.

    Axes of input channels, which a layer sums over, are multiplied by
    `(full / size) ** scale`: 1 keeps the size of the sums.

    Args:
        graph: `ChannelGraph` of the target.
        layouts: `VariableLayout`s of the weights.
        points: Their control points, tensors or variables of full shape.
        sizes, offsets: As for `WeightField.generate`.
        kernel, stretch: As for `interpolation_matrix`.
        scale: Exponent of the factor of sums.

    Returns:
        List of tensors, as from `WeightField.generate`.
    """

    def read(number, group, noise=None):
        return reading(number, group.num_channels, noise, kernel, stretch)

    def factor(number, group):
        full = group.num_channels
        if isinstance(number, int):
            return float((full / number) ** (scale if number <= full else 1.0))
        return ops.power(full / ops.cast(number, "float32"), scale)

    matrices = group_matrices(graph, sizes, read, offsets)
    factors = group_matrices(graph, sizes, factor)
    products: dict = {}
    scaled = {}
    for group in graph.groups:
        matrix = matrices[group.index]
        key = id(matrix), group.num_channels
        if key not in products:
            products[key] = _scale(matrix, factors[group.index])
        scaled[group.index] = products[key]
    weights = [None] * len(layouts)
    for bundle in bundles(layouts):
        layout = layouts[bundle[0]]
        # Vectors are many and small, kernels few and large.
        together = len(layout.shape) == 1 and len(bundle) > 1
        parts = [bundle] if together else [[index] for index in bundle]
        results = result_axes(graph, layout, sizes)
        for part in parts:
            value = ops.convert_to_tensor(points[part[0]])
            if together:
                # `stack` would not take the variables of TensorFlow.
                values = [ops.expand_dims(points[i], 0) for i in part]
                value = ops.concatenate(values, axis=0)
            # Factors come last, when there is less to multiply.
            for number in sorted(layout.axes, key=layout.summed.__contains__):
                value = transform_axis(
                    value,
                    number + together,
                    layout.axes[number],
                    scaled if number in layout.summed else matrices,
                    results[number],
                )
            values = ops.unstack(value, len(part)) if together else [value]
            for index, value in zip(part, values):
                weights[index] = value
    return weights


def _scale(matrix, factor):
    """What `reading` returned, times a factor."""
    if matrix is None or (isinstance(factor, float) and factor == 1.0):
        return matrix
    if isinstance(matrix, int):
        return ops.full((matrix,), factor, dtype="float32")
    return matrix * factor


def bundles(layouts):
    """Layouts of the same shape and axes: lists of their indices."""
    members: dict = {}
    for index, layout in enumerate(layouts):
        axes = (
            (
                number,
                axis.pieces,
                None if axis.order is None else axis.order.tobytes(),
            )
            for number, axis in layout.axes.items()
        )
        key = (layout.shape, tuple(layout.summed), *axes)
        members.setdefault(key, []).append(index)
    return list(members.values())
