"""Interpolation matrices against loops over NumPy arrays."""

import numpy as np
import pytest
from keras import ops

from keras_neumeta.fields.interpolation import (
    interpolation_matrix,
    spreading_matrix,
    transform_axis,
)
from keras_neumeta.graph.layout import Axis

KERNELS = pytest.mark.parametrize("kernel", ["linear", "cubic"])
STRETCHES = pytest.mark.parametrize("stretch", [0.0, 0.5, 1.0])


def matrix(size, full, **arguments):
    return ops.convert_to_numpy(interpolation_matrix(size, full, **arguments))


@KERNELS
@STRETCHES
def test_full_size_is_the_identity(kernel, stretch):
    assert interpolation_matrix(7, 7, None, kernel, stretch) is None
    tensor = ops.convert_to_tensor(7, "int32")
    for size, offsets in [(tensor, None), (7, ops.zeros((7,)))]:
        value = matrix(size, 7, offsets=offsets, kernel=kernel, stretch=stretch)
        np.testing.assert_allclose(value, np.eye(7), atol=1e-6)


@KERNELS
@STRETCHES
@pytest.mark.parametrize("full", [1, 2, 3, 8])
def test_weights_of_each_channel_sum_to_one(kernel, stretch, full):
    offsets = ops.convert_to_tensor(
        np.random.default_rng(0).uniform(-0.5, 0.5, full), "float32"
    )
    for size in range(1, full + 1):
        for noise in (None, offsets):
            value = matrix(
                size, full, offsets=noise, kernel=kernel, stretch=stretch
            )
            if value.ndim:
                assert value.shape == (full, size)
                np.testing.assert_allclose(value.sum(0), 1, atol=1e-5)
            if kernel == "linear" and value.ndim:
                assert (value >= 0).all()


@KERNELS
@STRETCHES
def test_tensor_size_equals_static_size(kernel, stretch):
    offsets = ops.convert_to_tensor(
        np.random.default_rng(0).uniform(-0.5, 0.5, 9), "float32"
    )
    for size in range(1, 9):
        for noise in (None, offsets):
            arguments = {
                "offsets": noise,
                "kernel": kernel,
                "stretch": stretch,
            }
            static = matrix(size, 9, **arguments)
            tensor = ops.convert_to_tensor(size, "int32")
            dynamic = matrix(tensor, 9, **arguments)
            assert dynamic.shape == (9, 9)
            np.testing.assert_allclose(dynamic[:, :size], static, atol=1e-5)
            assert (dynamic[:, size:] == 0).all()


@KERNELS
def test_positions_on_a_ramp(kernel):
    # Away from the ends both kernels read a ramp at the position itself.
    ramp = np.arange(12.0)
    for size in (3, 4, 5, 6, 8, 9, 11):
        positions = (np.arange(size) + 0.5) * 12 / size - 0.5
        read = ramp @ matrix(size, 12, kernel=kernel)
        inside = (positions >= 1) & (positions <= 10)
        assert inside.any()
        np.testing.assert_allclose(read[inside], positions[inside], atol=1e-5)


def test_cubic_is_exact_on_parabolas():
    parabola = np.arange(12.0) ** 2
    for size in (4, 5, 6, 8):
        positions = (np.arange(size) + 0.5) * 12 / size - 0.5
        read = parabola @ matrix(size, 12, kernel="cubic")
        inside = (positions >= 1) & (positions <= 10)
        np.testing.assert_allclose(
            read[inside], positions[inside] ** 2, atol=1e-4
        )


@KERNELS
def test_half_size_by_hand(kernel):
    value = matrix(2, 4, kernel=kernel)
    if kernel == "linear":
        expected = [[0.5, 0], [0.5, 0], [0, 0.5], [0, 0.5]]
    else:  # -1/16, 9/16, 9/16, -1/16, the ends repeated
        a, b = -1 / 16, 9 / 16
        expected = [[a + b, 0], [b, a], [a, b], [0, a + b]]
    np.testing.assert_allclose(value, expected, atol=1e-6)


@KERNELS
def test_stretch_zero_is_the_leading_slice(kernel):
    for size in range(1, 8):
        np.testing.assert_allclose(
            matrix(size, 8, kernel=kernel, stretch=0.0),
            np.eye(8)[:, :size],
            atol=1e-6,
        )


def test_offsets_move_the_positions():
    offsets = ops.convert_to_tensor([0.25, -0.25, 0.0, 0.0], "float32")
    read = np.arange(4.0) @ matrix(2, 4, offsets=offsets)
    np.testing.assert_allclose(read, [0.5 + 0.5, 2.5 - 0.5], atol=1e-6)


def naive_spreading(size, full, stretch):
    result = np.zeros((size, full))
    for point in range(full):
        position = (point + 0.5) * (size / full) ** stretch - 0.5
        position = min(max(position, 0.0), size - 1.0)
        low = int(np.floor(position))
        result[low, point] += 1 - (position - low)
        if low + 1 < size:
            result[low + 1, point] += position - low
    return result


@STRETCHES
def test_spreading(stretch):
    assert spreading_matrix(6, 6, stretch=stretch) == (None, None)
    for size in range(1, 6):
        static, reached = spreading_matrix(size, 6, stretch=stretch)
        expected = naive_spreading(size, 6, stretch)
        static = ops.convert_to_numpy(static)
        np.testing.assert_allclose(static, expected, atol=1e-5)
        tensor = ops.convert_to_tensor(size, "int32")
        dynamic, dynamic_reached = spreading_matrix(tensor, 6, stretch=stretch)
        dynamic = ops.convert_to_numpy(dynamic)
        np.testing.assert_allclose(dynamic[:size], expected, atol=1e-5)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(reached),
            ops.convert_to_numpy(dynamic_reached),
        )
        # A point is reached if this size reads it, or nearly.
        number_reached = int(ops.convert_to_numpy(reached).sum())
        assert number_reached == {0.0: size, 1.0: 6}.get(
            stretch, number_reached
        )


@pytest.mark.parametrize("size", [3, 6])
def test_spreading_with_noise_finds_what_was_read(size):
    """Many sizes' changes, read at random positions, bring a curve home."""
    random = np.random.default_rng(0)
    truth, found = random.normal(size=6), np.zeros(6)
    for _ in range(300):
        noise = ops.convert_to_tensor(random.uniform(-1, 1, 6).astype("f4"))
        read = ops.convert_to_numpy(interpolation_matrix(size, 6, noise))
        spread, reached = spreading_matrix(size, 6, noise)
        np.testing.assert_array_equal(
            ops.convert_to_numpy(reached), read.sum(axis=1) > 0
        )
        spread = ops.convert_to_numpy(spread)
        found += (truth - found) @ read @ spread
    np.testing.assert_allclose(found, truth, atol=1e-2)


def naive_transform(value, axis, matrices, result_axis):
    """Along the last axis, position by position."""
    result = np.zeros((*value.shape[:-1], len(result_axis)))
    for new in range(len(result_axis)):
        for old in range(len(axis)):
            if (
                axis.groups[old] != result_axis.groups[new]
                or axis.blocks[old] != result_axis.blocks[new]
            ):
                continue
            weights = matrices[int(axis.groups[old])]
            a, b = axis.channels[old], result_axis.channels[new]
            weight = float(a == b) if weights is None else weights[a, b]
            result[..., new] += value[..., old] * weight
    return result


AXES = {
    "plain": Axis([0] * 4, range(4)),
    "flattened": Axis([0] * 12, [0, 1, 2, 3] * 3),
    "blocked": Axis([0] * 8, [0, 0, 1, 1, 2, 2, 3, 3]),
    "channels first": Axis([0] * 8, np.repeat(range(4), 2)),
    "two groups": Axis([0, 0, 0, 0, 1, 1, 1], [0, 1, 2, 3, 0, 1, 2]),
    "around": Axis(
        [1, 1, 1, 0, 0, 0, 0, 1, 1, 1], [0, 1, 2, *range(4), 0, 1, 2]
    ),
    # What lies first at full size is not what lies first at half of it.
    "interleaved": Axis([0, 1, 0, 0, 0, 1, 1], [2, 0, 0, 1, 3, 1, 2]),
    "repeated": Axis([0, 0, 0, 0, 1, 1, 1] * 2, [0, 1, 2, 3, 0, 1, 2] * 2),
}


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("name", AXES)
def test_transform_axis(name, number):
    axis = AXES[name]
    random = np.random.default_rng(0)
    shape = [2, 3, 2]
    shape[number] = len(axis)
    value = random.normal(size=shape).astype("float32")
    matrices = {0: matrix(2, 4), 1: matrix(2, 3)}
    result_axis = axis.at((2, 2))
    for used in (matrices, {0: matrices[0], 1: None}):
        result_axis = axis.at((2, 3 if used[1] is None else 2))
        result = transform_axis(
            ops.convert_to_tensor(value), number, axis, used, result_axis
        )
        expected = naive_transform(
            np.moveaxis(value, number, -1), axis, used, result_axis
        )
        np.testing.assert_allclose(
            np.moveaxis(ops.convert_to_numpy(result), number, -1),
            expected,
            atol=1e-5,
        )


def test_transform_axis_leaves_the_identity_alone():
    value = ops.ones((3, 4))
    axis = AXES["plain"]
    assert transform_axis(value, 1, axis, {0: None}, axis) is value
