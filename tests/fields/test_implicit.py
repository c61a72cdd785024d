"""`ImplicitField` against its formula, written as loops."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import ImplicitField, ManifoldHyperModel, trace
from keras_neumeta.fields import implicit
from keras_neumeta.fields.interpolation import interpolate_weights

from ..graph.equivalence import crop


def weights_of(graph):
    return [
        ops.convert_to_numpy(v)
        for v, layout in zip(graph.model.variables, graph.layouts, strict=True)
        if layout.role == "weight"
    ]


def attached(model, **arguments):
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    field = ImplicitField(
        **{"width": 8, "depth": 3, "num_frequencies": 2, "seed": 0} | arguments
    )
    field.attach(trace(model), weights_of(trace(model)))
    return field


def mlp():
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(6, name="first"),
            layers.Dense(4, name="second"),
            layers.Dense(2, name="head"),
        ]
    )


def convnet():
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(6, 3)(inputs)
    x = layers.BatchNormalization()(x)
    y = layers.Conv2D(4, 1)(x)
    x = layers.Concatenate()([x, y])
    return keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))


def arrays(tensors):
    return [ops.convert_to_numpy(x) for x in tensors]


def naive(field, network, row, size_in, size_out, full_in, full_out):
    """The raw value between channels `row = (a, b)`, by the formula."""
    positions = [(row[0] + 0.5) / size_in, (row[1] + 0.5) / size_out]
    angles = np.array(
        [
            x * np.pi * 2**k
            for x in positions
            for k in range(field.num_frequencies)
        ]
    )
    widths = [size_in / full_in, size_out / full_out]
    x = np.concatenate([positions, widths, np.sin(angles), np.cos(angles)])

    def linear(x, index):
        kernel = ops.convert_to_numpy(field.kernels[index])[network]
        return x @ kernel + ops.convert_to_numpy(field.biases[index])[network]

    def normal(x):
        return (x - x.mean()) / np.sqrt(x.var() + 1e-5)

    x = np.maximum(linear(x, 0), 0)
    for index, scale in enumerate(field.branch_scales, start=1):
        scale = ops.convert_to_numpy(scale)[network]
        x = x + scale * np.maximum(linear(normal(x), index), 0)
    (value,) = linear(normal(x), field.depth)
    return value


def naive_kernel(field, size_in, size_out, offset_in, offset_out):
    """The second kernel of `mlp`, 6 x 4 at full size; network 2."""
    raw = np.array(
        [
            [
                naive(
                    field,
                    2,
                    (a + offset_in[a], b + offset_out[b]),
                    size_in,
                    size_out,
                    6,
                    4,
                )
                for b in range(size_out)
            ]
            for a in range(size_in)
        ]
    )
    # Each output channel gets the deviation of the target's own weight.
    raw -= raw.mean(axis=0) * (1 - 1 / size_in)
    raw *= np.sqrt(6 / (raw**2).sum(axis=0))
    return raw * weights_of(field.graph)[2].std()


@pytest.mark.parametrize("noisy", [False, True])
def test_dense_kernel_by_the_formula(noisy):
    model = mlp()
    field = attached(model)
    sizes = (4, 3, 2)
    offsets = [np.zeros(n, "float32") for n in (6, 4, 2)]
    if noisy:
        # Far enough to reach another tensor, were the index not exact.
        offsets[0] += np.linspace(-3, 3, 6).astype("float32")
        offsets[1] += 2.0
    tensors = [ops.convert_to_tensor(x) for x in offsets]
    generated = arrays(field.generate(sizes, tensors if noisy else None))
    expected = naive_kernel(field, 4, 3, *offsets[:2])
    np.testing.assert_allclose(generated[2], expected, rtol=1e-3, atol=1e-3)


def test_deviation_is_that_of_the_target():
    field = attached(mlp())
    targets = weights_of(field.graph)
    for sizes in ((6, 4, 2), (3, 2, 2)):
        weights = arrays(field.generate(sizes))
        for index in (0, 2, 4):
            squares = (weights[index] ** 2).sum(axis=0)
            expected = targets[index].std() ** 2 * targets[index].shape[0]
            np.testing.assert_allclose(squares, expected, rtol=1e-3)


@pytest.mark.parametrize("make", [mlp, convnet])
@pytest.mark.parametrize("noisy", [False, True])
def test_tensor_sizes_equal_static_sizes(make, noisy):
    field = attached(make())
    graph = field.graph
    random = np.random.default_rng(0)
    offsets = None
    if noisy:
        offsets = [
            ops.convert_to_tensor(random.uniform(-0.5, 0.5, n), "float32")
            for n in graph.full_sizes
        ]
    for ratio in (0.3, 0.5, 0.8, 1.0):
        sizes = graph.sizes(ratio)
        static = arrays(field.generate(sizes, offsets))
        tensor = ops.convert_to_tensor(sizes, "int32")
        dynamic = arrays(field.generate(tensor, offsets))
        for a, b, layout in zip(static, dynamic, field.layouts, strict=True):
            assert a.shape == layout.shape_at(sizes)
            assert b.shape == layout.shape
            assert np.isfinite(b).all()
            np.testing.assert_allclose(a, crop(layout, b, sizes), atol=1e-4)
            kept = np.prod(layout.shape_at(sizes))
            assert np.count_nonzero(b) <= kept


def test_kernels_of_all_sizes_are_centred():
    # Slices of 3 x 3, of 1 x 1 and of one value read one output vector.
    field = attached(convnet())
    assert field.num_outputs == 9
    for value, layout in zip(
        field.generate(field.graph.full_sizes), field.layouts, strict=True
    ):
        assert tuple(value.shape) == layout.shape
    # The centre is output 4 of 9: moving its bias moves a 1 x 1 kernel.
    pointwise = next(
        n
        for n, layout in enumerate(field.layouts)
        if layout.shape[:2] == (1, 1)
    )
    before = arrays(field.generate(field.graph.full_sizes))[pointwise]
    bias = ops.convert_to_numpy(field.biases[-1]).copy()
    bias[:, 4] += 1.0
    field.biases[-1].assign(bias)
    after = arrays(field.generate(field.graph.full_sizes))[pointwise]
    assert np.abs(after - before).max() > 0.01
    bias[:, [0, 1, 2, 3, 5, 6, 7, 8]] += 1.0
    field.biases[-1].assign(bias)
    still = arrays(field.generate(field.graph.full_sizes))[pointwise]
    np.testing.assert_allclose(after, still, atol=1e-6)


def test_no_frequencies():
    field = attached(mlp(), num_frequencies=0, depth=1)
    expected = naive_kernel(field, 4, 3, np.zeros(4), np.zeros(3))
    generated = arrays(field.generate((4, 3, 2)))[2]
    np.testing.assert_allclose(generated, expected, rtol=1e-3, atol=1e-3)


def test_seed_decides_the_start():
    first, again, other = (
        attached(mlp(), seed=seed).get_weights() for seed in (1, 1, 2)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"width": 0}, ValueError, "`width` must be at least 1"),
        ({"width": 1.5}, TypeError, "`width` must be an integer"),
        ({"depth": 0}, ValueError, "`depth` must be at least 1"),
        ({"depth": True}, TypeError, "`depth` must be an integer"),
        ({"num_frequencies": -1}, ValueError, "`num_frequencies` must be"),
        ({"imitation_steps": -1}, ValueError, "`imitation_steps` must be"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        ImplicitField(**arguments)


def test_second_attach_raises():
    field = attached(mlp())
    with pytest.raises(ValueError, match="already attached to model"):
        field.attach(field.graph, weights_of(field.graph))


def test_weights_of_fixed_channels_are_the_targets_own():
    graph = trace(mlp(), layers=["first"])
    field = ImplicitField(width=8, depth=1, seed=0)
    field.attach(graph, weights_of(graph))
    full = arrays(field.generate(graph.full_sizes))
    half = arrays(field.generate(graph.sizes(0.5)))
    # The first kernel and its bias, and the kernel that reads it, change.
    assert [w.shape for w in half[:3]] == [(3, 3), (3,), (3, 4)]
    assert not np.allclose(full[2], weights_of(graph)[2])
    for index in (3, 4, 5):
        np.testing.assert_array_equal(full[index], weights_of(graph)[index])
        np.testing.assert_array_equal(half[index], weights_of(graph)[index])


# Imitation


def smooth_mlp(scale=1.0):
    """Whose neighbouring channels are alike."""
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(16, name="first"),
            layers.Dense(12, name="second"),
            layers.Dense(2, name="head"),
        ]
    )
    for number, variable in enumerate(model.variables):
        places = np.indices(variable.shape)
        waves = [np.cos(0.3 * (n + 1) * p) for n, p in enumerate(places)]
        variable.assign(scale * (sum(waves) + 0.1 * number))
    return model


def distances(hyper, ratio):
    """Of each weight from the target's own, interpolated; in deviations."""
    graph = hyper.graph
    sizes = graph.sizes(ratio)
    wanted = interpolate_weights(
        graph, hyper.field.layouts, weights_of(graph), sizes
    )
    return [
        np.sqrt(np.mean((made - value) ** 2)) / value.std()
        for made, value in zip(
            arrays(hyper.field.generate(sizes)), arrays(wanted), strict=True
        )
        if value.size > 2
    ]


def imitating(imitate=True, scale=1.0):
    field = ImplicitField(width=32, depth=2, seed=0, imitation_steps=400)
    return ManifoldHyperModel(
        smooth_mlp(scale),
        field,
        layers=["second"],
        smooth=False,
        imitate=imitate,
    )


@pytest.fixture(scope="module")
def near_and_far():
    return imitating(), imitating(imitate=False)


@pytest.mark.parametrize("ratio", [1.0, 0.75, 0.5])
def test_imitation_begins_near_the_targets_weights(near_and_far, ratio):
    near, far = (distances(hyper, ratio) for hyper in near_and_far)
    assert near[:2] == far[:2] == [0.0, 0.0]  # held
    # Not the head's: no channel of a kernel has a mean.
    assert max(near[2:4]) < 0.4
    assert min(far[2:4]) > 0.6


def test_imitation_of_a_kernel_of_small_deviation():
    _, _, kernel, *_ = distances(imitating(scale=0.005), 1.0)
    assert kernel < 0.4


def test_imitation_of_fewer_blocks():
    inputs = keras.Input((6,))
    x = layers.Dense(16)(inputs)
    for _ in range(3):
        x = x + layers.Dense(16)(layers.Dense(16, activation="relu")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    for variable in model.variables:
        places = np.indices(variable.shape)
        variable.assign(
            sum(np.cos(0.3 * (n + 1) * p) for n, p in enumerate(places))
        )
    field = ImplicitField(width=16, depth=2, seed=0, imitation_steps=250)
    hyper = ManifoldHyperModel(model, field, min_depth=0, smooth=False)
    sizes = hyper.graph.full_sizes
    deep, flat = (
        arrays(field.generate((*sizes[:-1], depth))) for depth in (3, 0)
    )
    # Of what both have: the first and the last layer.
    for index in (0, -2):
        wanted = weights_of(hyper.graph)[index]
        far, near = (np.std(made[index] - wanted) for made in (flat, deep))
        assert far < 2.0 * near


def test_imitation_leaves_random_numbers_alone():
    states = []
    model = smooth_mlp()
    for steps in (0, 2):
        keras.utils.set_random_seed(1)
        field = ImplicitField(width=8, depth=1, imitation_steps=steps)
        hyper = ManifoldHyperModel(model, field)
        states.append(ops.convert_to_numpy(hyper.seed_generator.state))
    np.testing.assert_array_equal(*states)


def test_imitation_is_the_same_for_the_same_seed(near_and_far):
    first, again = near_and_far[0].field, imitating().field
    for a, b in zip(
        arrays(first.variables), arrays(again.variables), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_loaded_hypermodel_does_not_imitate(
    near_and_far, tmp_path, monkeypatch
):
    hyper = near_and_far[0]
    hyper.save(tmp_path / "hyper.keras")
    monkeypatch.setattr(implicit, "imitate", None)  # a call would fail
    reloaded = keras.saving.load_model(tmp_path / "hyper.keras")
    assert reloaded.field.imitation_steps == 400
    for a, b in zip(
        arrays(hyper.field.variables),
        arrays(reloaded.field.variables),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
