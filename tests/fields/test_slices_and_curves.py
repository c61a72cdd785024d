"""Fields beside the default: leading slices, integrals, size curves."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm

from ..graph.equivalence import crop


@pytest.fixture(scope="module")
def graph():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
    x = layers.BatchNormalization(name="norm")(x)
    y = layers.Conv2D(4, 3, padding="same", name="branch")(x)
    x = layers.Concatenate()([x, y])
    x = layers.Flatten()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    random = np.random.default_rng(0)
    for variable in model.variables:
        value = random.normal(size=variable.shape)
        if "variance" in variable.path:
            value = np.abs(value)
        variable.assign(value)
    return nm.trace(model)


def copy(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return clone


def weights(graph):
    return [
        ops.convert_to_numpy(v)
        for v, layout in zip(graph.model.variables, graph.layouts, strict=True)
        if layout.role == "weight"
    ]


def attach(graph, field):
    field.attach(graph, weights(graph))
    return field


def arrays(tensors):
    return [ops.convert_to_numpy(x) for x in tensors]


def dynamic(sizes):
    return ops.convert_to_tensor(sizes, "int32")


FIELDS = [
    nm.SlimmableField,
    lambda: nm.SlimmableField(switches=(1.0, 0.5, 0.25)),
    nm.IntegralField,
    lambda: nm.IntegralField("linear"),
    lambda: nm.AnchoredField(size_knots=(0.25, 0.5)),
    lambda: nm.AnchoredField(levels=(0.25, 0.5)),
]


@pytest.mark.parametrize("make", FIELDS)
def test_full_size_is_the_target(graph, make):
    field = attach(graph, make())
    for sizes in (graph.full_sizes, dynamic(graph.full_sizes)):
        made = arrays(field.generate(sizes))
        for a, b in zip(made, weights(graph), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("make", FIELDS)
def test_full_size_stays_the_target_whatever_the_curves_are(graph, make):
    field = attach(graph, make())
    fill_curves(field)
    for a, b in zip(
        arrays(field.generate(graph.full_sizes)), weights(graph), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("make", FIELDS)
@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.75])
def test_masked_weights_are_the_small_ones(graph, make, ratio):
    field = attach(graph, make())
    fill_curves(field)
    sizes = graph.sizes(ratio)
    static = arrays(field.generate(sizes))
    masked = arrays(field.generate(dynamic(sizes)))
    for small, large, layout in zip(static, masked, field.layouts, strict=True):
        assert small.shape == layout.shape_at(sizes)
        np.testing.assert_allclose(crop(layout, large, sizes), small, atol=1e-5)
        assert np.count_nonzero(large) <= small.size


def test_slimmable_reads_the_leading_slice(graph):
    field = attach(graph, nm.SlimmableField())
    sizes = graph.sizes(0.5)
    for part, whole, layout in zip(
        arrays(field.generate(sizes)),
        weights(graph),
        field.layouts,
        strict=True,
    ):
        np.testing.assert_array_equal(part, crop(layout, whole, sizes))


def test_integral_scales_its_sums(graph):
    field = attach(graph, nm.IntegralField("linear"))
    # Control points that are all one: sums over inputs keep their size.
    for variable in field.control_points:
        variable.assign(np.ones(variable.shape))
    sizes = graph.sizes(0.5)
    for layout, value in zip(field.layouts, field.generate(sizes), strict=True):
        value = ops.convert_to_numpy(value)
        axes = tuple(layout.summed)
        if axes:
            full = np.prod([layout.shape[n] for n in axes])
            np.testing.assert_allclose(value.sum(axis=axes), full, rtol=1e-5)


def fill_curves(field):
    for level in getattr(field, "size_levels", ()):
        random = np.random.default_rng(2)
        for _, points in level.values():
            points.assign(random.normal(size=points.shape))
    if field.size_curves is not None:
        random = np.random.default_rng(1)
        for variable in field.size_curves.values:
            variable.assign(random.normal(size=variable.shape))


def test_curves_are_linear_between_their_knots(graph):
    field = attach(graph, nm.AnchoredField(size_knots=(0.25, 0.5), stretch=0.0))
    curves = field.size_curves
    fill_curves(field)
    at = {}
    for ratio in (0.25, 0.375, 0.5, 0.75, 1.0):
        added = curves.generate(dynamic(graph.sizes(ratio)))
        # Two channels are there at every ratio.
        at[ratio] = {n: ops.convert_to_numpy(v)[:2] for n, v in added.items()}
    paths = {field.layouts[index].path for index in at[0.25]}
    assert any("gamma" in path for path in paths)
    assert not any("kernel" in path for path in paths)
    for row, index in enumerate(curves.members):
        value = ops.convert_to_numpy(curves.values[row])[:, :2]
        if "norm" not in field.layouts[index].path:
            continue  # Eight channels have exactly these ratios.
        np.testing.assert_allclose(at[0.25][index], value[0], atol=1e-6)
        np.testing.assert_allclose(at[0.5][index], value[1], atol=1e-6)
        np.testing.assert_allclose(
            at[0.375][index], value.mean(axis=0), atol=1e-6
        )
        np.testing.assert_allclose(at[0.75][index], value[1] / 2, atol=1e-6)
        np.testing.assert_allclose(at[1.0][index], 0.0, atol=1e-6)


@pytest.mark.parametrize("knots", [(0.5, 0.25), (0.5, 1.0), (0.0,), (2.0,)])
def test_wrong_knots(knots):
    with pytest.raises(ValueError, match="ratio|size_knots"):
        nm.AnchoredField(size_knots=knots)


@pytest.mark.parametrize("make", FIELDS)
def test_configs_come_back(make):
    field = make()
    again = type(field).from_config(field.get_config())
    for name in ("stretch", "interpolation", "size_knots"):
        assert getattr(field, name) == getattr(again, name)


def test_switches_train_and_keep_their_vectors(graph):
    model = copy(graph.model)
    ratios = (1.0, 0.5, 0.25)
    hyper = nm.ManifoldHyperModel(
        model, nm.SlimmableField(switches=ratios), nm.Switches(ratios)
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    hyper.compile(keras.optimizers.SGD(0.01), loss)
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 6, 6, 2)).astype("float32")
    hyper.fit(x, random.integers(0, 3, 8), epochs=1, verbose=0)
    curves = hyper.field.size_curves
    for values in curves.values:
        change = ops.convert_to_numpy(values)
        assert (np.abs(change).max(axis=1) > 0).all()


def test_importance_order_of_slimmable_targets(graph):
    model = copy(graph.model)
    ordered = nm.sort_channels(model)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(model(x, training=False)),
        ops.convert_to_numpy(ordered(x, training=False)),
        rtol=1e-5,
    )
    for norms in nm.channel_importance(ordered).values():
        assert (np.diff(norms) <= 1e-6).all()
    hyper = nm.ManifoldHyperModel(model, nm.SlimmableField())
    np.testing.assert_allclose(
        ops.convert_to_numpy(hyper.morph(1.0).get_layer("conv").kernel),
        ops.convert_to_numpy(ordered.get_layer("conv").kernel),
    )


def test_untrained_levels_change_nothing(graph):
    plain = attach(graph, nm.AnchoredField())
    field = attach(graph, nm.AnchoredField(levels=(0.25, 0.5)))
    for ratio in (0.1, 0.25, 0.4, 0.6, 1.0):
        sizes = graph.sizes(ratio)
        for a, b in zip(plain.generate(sizes), field.generate(sizes)):
            np.testing.assert_allclose(*arrays([a, b]), atol=1e-6)


def test_a_level_adds_corrections_of_its_own(graph):
    """At its ratio they count in full, halfway to the full size not at all."""
    field = attach(graph, nm.AnchoredField(levels=(0.25, 0.5), scale=0.0))
    fill_curves(field)
    whole = weights(graph)
    own = [dict(level) for level in field.size_levels]
    halfway = 0.5**0.5
    # The kept width of the groups of this network is the ratio exactly.
    for ratio, shares in (
        (0.25, (1, 0)),
        (0.5, (0, 1)),
        (0.75, (0, 0)),
        (1.0, (0, 0)),
    ):
        assert ratio in (0.25, 0.5) or ratio > halfway
        sizes = graph.sizes(ratio)
        for index, value in enumerate(arrays(field.generate(sizes))):
            expected = crop(field.layouts[index], whole[index], sizes)
            for share, level in zip(shares, own, strict=True):
                if share and index in level:
                    added = ops.convert_to_numpy(level[index][1])
                    assert added.any()
                    expected = expected + added
            np.testing.assert_allclose(value, expected, atol=1e-5)
    with pytest.raises(ValueError, match="needs `stretch=0`"):
        nm.AnchoredField(levels=(0.5,), stretch=1.0)
    with pytest.raises(ValueError, match="`levels` must hold rising"):
        nm.AnchoredField(levels=(0.5, 0.25))
