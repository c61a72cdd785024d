"""Sizes per group, within a budget, above the full size."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import (
    AnchoredField,
    ImplicitField,
    ManifoldHyperModel,
    trace,
)


def network():
    """Two stages, the second with a residual, and a frozen group."""
    inputs = keras.Input((6, 6, 2), name="image")
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    x = layers.ReLU(name="relu")(x)
    x = layers.Conv2D(12, 3, padding="same", name="stage1_a")(x)
    y = layers.Conv2D(6, 1, name="stage1_b")(x)
    y = layers.Conv2D(12, 1, name="stage1_c")(y)
    x = layers.Add(name="sum")([x, y])
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    x = layers.Dense(10, name="fixed")(x)
    x = layers.Dense(10, activation="softmax", name="gate")(x)
    x = layers.Dense(16, activation="relu", name="wide")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(x), name="net")


def randomize(model, seed=0):
    random = np.random.default_rng(seed)
    for variable in model.variables:
        value = random.normal(size=variable.shape) * 0.5
        variable.assign(value.astype("float32"))
    return model


def by_name(graph, sizes):
    return dict(zip([g.name for g in graph.groups], sizes, strict=True))


@pytest.fixture(scope="module")
def graph():
    return trace(network())


@pytest.fixture(scope="module")
def hyper():
    keras.utils.set_random_seed(0)
    return ManifoldHyperModel(randomize(network()), seed=0)


FULL = {
    "stem": 8,
    "stage1_a": 12,
    "stage1_b": 6,
    "fixed": 10,
    "gate": 10,
    "wide": 16,
    "head": 3,
}


def test_groups(graph):
    assert by_name(graph, graph.full_sizes) == FULL
    frozen = [g.name for g in graph.groups if not g.morphable]
    assert frozen == ["gate", "head"]


# Ratios per group


@pytest.mark.parametrize(
    ("ratio", "changes"),
    [
        ({}, {}),
        ({"stem": 0.5}, {"stem": 4}),
        ({"stage1*": 0.5}, {"stage1_a": 6, "stage1_b": 3}),
        # By any of the layers that make the channels.
        ({"stage1_c": 0.5}, {"stage1_a": 6}),
        ({"stage1_a": 0.5, "stage1_c": 0.5}, {"stage1_a": 6}),
        # Later patterns override.
        (
            {"*": 0.5, "stem": 1.0},
            {
                k: v // 2
                for k, v in FULL.items()
                if k not in ("stem", "gate", "head")
            },
        ),
        ({"stage1*": 0.5, "stage1_b": 1.0}, {"stage1_a": 6}),
        (
            {"stage1_[ab]": 0.25, "wid?": 0.75},
            {"stage1_a": 3, "stage1_b": 2, "wide": 12},
        ),
    ],
)
def test_ratios_by_name(graph, ratio, changes):
    assert by_name(graph, graph.sizes(ratio)) == {**FULL, **changes}


def test_ratios_by_name_are_rounded_to_the_divisor(graph):
    sizes = by_name(graph, graph.sizes({"wide": 0.3, "stem": 0.6}, divisor=4))
    assert sizes == {**FULL, "wide": 4, "stem": 4}


@pytest.mark.parametrize(
    ("ratio", "error", "message"),
    [
        ({"stem": 0.0}, ValueError, "must be in \\(0, 1\\]"),
        ({"stem": 1.5}, ValueError, "must be in \\(0, 1\\]"),
        ({"stem": "half"}, TypeError, "must be a number"),
        ({0: 0.5}, TypeError, "must be a dict from names or patterns"),
        (
            {"steam": 0.5},
            ValueError,
            "no layer of 'net' .* called 'steam'.*'stem'",
        ),
        ({"stage9*": 0.5}, ValueError, "called 'stage9\\*'"),
        (
            {"stage1_a": 0.5, "stage1_c": 0.25},
            ValueError,
            "gives 'stage1_a' 0.5 and 'stage1_c' 0.25, but their channels "
            "are tied",
        ),
        ({"head": 0.5}, ValueError, "'head', which cannot change: output of"),
        ({"gate": 0.5}, ValueError, "cannot change: activation 'softmax'"),
    ],
)
def test_errors_of_ratios_by_name(graph, ratio, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        graph.sizes(ratio)


def test_tied_channels_are_seen_in_the_summary(graph):
    group = graph.groups[1]
    assert group.makers == ("stage1_a", "stage1_c")
    lines = []
    graph.summary(print_fn=lines.append)
    row = next(x for x in lines[0].splitlines() if x.startswith("stage1_a"))
    assert row.split()[:3] == ["stage1_a", "12", "yes"]
    assert {"stage1_a,", "stage1_b,", "stage1_c,"} <= set(row.split())


def test_morph_by_name(hyper):
    small = hyper.morph({"stem": 0.25, "stage1*": 0.5})
    assert small.get_layer("stem").filters == 2
    assert small.get_layer("stage1_c").filters == 6
    assert small.get_layer("stage1_b").filters == 3
    assert small.get_layer("wide").units == 16
    assert small.count_params() == hyper.graph.count_params(
        hyper.graph.sizes({"stem": 0.25, "stage1*": 0.5})
    )


# Channels per group


def test_morph_to_sizes(hyper):
    small = hyper.morph(sizes={"stem": 3, "stage1_c": 5, "wid*": 7})
    found = [small.get_layer(n).filters for n in ("stem", "stage1_a")]
    assert found == [3, 5]
    assert small.get_layer("wide").units == 7
    again = hyper.morph(sizes=(3, 5, 6, 10, 10, 7, 3))
    for one, other in zip(small.variables, again.variables, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(one), ops.convert_to_numpy(other)
        )


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        ({"stem": 9}, ValueError, "'stem' 9 channels; it must have 1 to 8"),
        ({"stem": 0}, ValueError, "must have 1 to 8"),
        ({"stem": 0.5}, TypeError, "must hold integers"),
        ({"stem": True}, TypeError, "must hold integers"),
        ({"none": 2}, ValueError, "called 'none'"),
        ({"head": 2}, ValueError, "'head', which cannot change"),
        ({"stage1_a": 4, "stage1_c": 5}, ValueError, "tied|'stage1_a'"),
        ((1, 2), ValueError, "one number for each of the 7 groups.* 2 num"),
    ],
)
def test_errors_of_sizes(hyper, sizes, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        hyper.morph(sizes=sizes)


# Budgets


def next_larger(graph, sizes, divisor=1):
    """The sizes of the next larger uniform ratio."""
    ratios = np.linspace(0.001, 1.0, 20_000)
    for ratio in ratios:
        larger = graph.sizes(float(ratio), divisor)
        if larger != sizes and all(map(int.__ge__, larger, sizes)):
            return larger
    raise AssertionError("there is no larger size")


@pytest.mark.parametrize("divisor", [1, 2])
@pytest.mark.parametrize(
    "budget",
    [
        {"params": 500},
        {"params": 0.5},
        {"macs": 20_000},
        {"macs": 0.3},
        {"params": 0.6, "macs": 0.3},
        {"params": 0.2, "macs": 0.9},
    ],
)
def test_budget_is_used_as_far_as_possible(hyper, budget, divisor):
    graph = hyper.graph
    counts = {"params": graph.count_params, "macs": graph.count_macs}
    limits = {
        name: value if isinstance(value, int) else value * counts[name]()
        for name, value in budget.items()
    }
    sizes = graph.sizes_within(**budget, divisor=divisor)
    assert all(counts[n](sizes) <= limit for n, limit in limits.items())
    larger = next_larger(graph, sizes, divisor)
    assert any(counts[n](larger) > limit for n, limit in limits.items())
    morphed = hyper.morph(**budget, divisor=divisor)
    assert morphed.count_params() == graph.count_params(sizes)
    assert trace(morphed).count_macs() == graph.count_macs(sizes)


def test_whole_budget_is_the_full_size(graph):
    assert graph.sizes_within(params=1.0) == graph.full_sizes
    assert graph.sizes_within(macs=10**9) == graph.full_sizes


@pytest.mark.parametrize(
    ("budget", "error", "message"),
    [
        ({"params": 10}, ValueError, "smallest size of 'net' has .* above 10"),
        ({"macs": 1e-6}, ValueError, "`macs`: the smallest size"),
        ({"macs": 1.5}, ValueError, "float in \\(0, 1\\]"),
        ({"params": 0}, ValueError, "at least 1"),
        ({"params": "few"}, TypeError, "must be an integer, or a float"),
        ({"macs": True}, TypeError, "must be an integer, or a float"),
    ],
)
def test_errors_of_budgets(graph, budget, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        graph.sizes_within(**budget)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ratio": 0.5, "params": 100},
        {"ratio": 0.5, "sizes": {"stem": 2}},
        {"sizes": {"stem": 2}, "macs": 0.5},
    ],
)
def test_morph_takes_one_way(hyper, arguments):
    with pytest.raises(ValueError, match="needs one of `ratio`"):
        hyper.morph(**arguments)


# Several at a time


def test_morph_of_a_list(hyper):
    ratios = [0.25, {"stem": 0.5}, 1.0]
    several = hyper.morph(ratios)
    assert isinstance(several, list)
    for ratio, model in zip(ratios, several, strict=True):
        alone = hyper.morph(ratio)
        for one, other in zip(model.variables, alone.variables, strict=True):
            np.testing.assert_array_equal(
                ops.convert_to_numpy(one), ops.convert_to_numpy(other)
            )
    with pytest.raises(ValueError, match="list of ratios cannot be combined"):
        hyper.morph([0.5], params=100)


# Above the full size


@pytest.fixture(scope="module")
def stretched():
    return ManifoldHyperModel(
        randomize(network()), AnchoredField(stretch=1.0), seed=0
    )


def test_larger_than_full(stretched):
    large = stretched.morph(1.5, extrapolate=True)
    names = [layer.name for layer in large.layers]
    assert names == [layer.name for layer in stretched.graph.model.layers]
    assert large.get_layer("stem").filters == 12
    assert large.get_layer("stage1_c").filters == 18
    assert large.get_layer("wide").units == 24
    assert large.get_layer("gate").units == 10
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("float32")
    y = ops.convert_to_numpy(large(x))
    assert y.shape == (3, 3) and np.isfinite(y).all()
    mixed = stretched.morph({"stem": 1.5, "wide": 0.5}, extrapolate=True)
    assert mixed.get_layer("stem").filters == 12
    assert mixed.get_layer("wide").units == 8
    assert mixed.get_layer("stage1_a").filters == 12


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_larger_network_of_equal_channels_is_the_same_function(factor):
    """Sums keep their size: where all channels are alike, nothing changes."""
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Conv2D(6, 3, activation="tanh", name="other"),
            layers.Flatten(name="flat"),
            layers.Dense(3, name="head"),
        ]
    )
    graph = trace(model)
    random = np.random.default_rng(0)
    for layout, variable in zip(graph.layouts, model.variables, strict=True):
        value = random.uniform(0.1, 0.5, variable.shape)
        for number, axis in layout.axes.items():
            for group in layout.groups:
                if graph.groups[group].morphable:
                    here = np.flatnonzero(axis.groups == group)
                    if not len(here):
                        continue
                    moved = np.moveaxis(value, number, 0)
                    for block in np.unique(axis.blocks[here]):
                        same = here[axis.blocks[here] == block]
                        moved[same] = moved[same].mean(0, keepdims=True)
        variable.assign(value.astype("float32"))
    hyper = ManifoldHyperModel(model, AnchoredField(stretch=1.0), smooth=False)
    large = hyper.morph(float(factor), extrapolate=True)
    assert large.get_layer("other").filters == 6 * factor
    x = random.normal(size=(3, 6, 6, 2)).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(large(x)),
        ops.convert_to_numpy(model(x)),
        rtol=1e-4,
        atol=1e-4,
    )


def test_larger_than_full_has_to_be_asked_for(stretched):
    with pytest.raises(ValueError, match="ratio"):
        stretched.morph(1.5)
    with pytest.raises(ValueError, match="1 to 8"):
        stretched.morph(sizes={"stem": 12})
    assert (
        stretched.morph(sizes={"stem": 12}, extrapolate=True)
        .get_layer("stem")
        .filters
        == 12
    )


def test_larger_than_full_of_some_layers():
    """The larger network, where all layers change, has more of the sums."""
    inputs = keras.Input((6, 6, 2))
    x = layers.Conv2D(8, 3, padding="same", name="first")(inputs)
    a = layers.Conv2D(12, 3, padding="same", name="a")(x)
    a = layers.ReLU()(layers.BatchNormalization()(a))
    b = layers.Conv2D(4, 3, padding="same", name="b")(x)
    x = layers.Flatten()(layers.Concatenate()([a, b]))
    x = layers.BatchNormalization()(layers.Dense(10, name="inner")(x))
    model = keras.Model(inputs, layers.Dense(2)(x))
    graph = trace(model, ["a", "b", "inner"])
    (only,) = graph.normalized_sums
    assert only.layer == "inner"
    sizes = graph.sizes(1.5, limit=np.inf)
    axis = graph.axes_at(only.layout, sizes)[0]
    assert (len(axis),) == only.layout.shape_at(sizes) == (36 * (18 + 6),)


@pytest.mark.parametrize(
    "field", [ImplicitField(imitation_steps=0), AnchoredField()]
)
def test_fields_without_weights_above_the_full_size(field):
    hyper = ManifoldHyperModel(randomize(network()), field, seed=0)
    with pytest.raises(ValueError, match="no weights above the full size"):
        hyper.morph(1.5, extrapolate=True)


# Chosen layers


@pytest.mark.parametrize(
    ("choice", "free"),
    [
        ("stem", {"stem"}),
        (["stage1*"], {"stage1_a", "stage1_b"}),
        # Tied channels change if one of their makers is chosen.
        (["stage1_c"], {"stage1_a"}),
        (["stem", "wid?"], {"stem", "wide"}),
        ("*", {"stem", "stage1_a", "stage1_b", "fixed", "wide"}),
    ],
)
def test_chosen_layers(choice, free):
    model = network()
    graph = trace(model, layers=choice)
    assert {g.name for g in graph.morphable_groups} == free
    names = [choice] if isinstance(choice, str) else choice
    if not any(sign in name for name in names for sign in "*?"):
        objects = [model.get_layer(name) for name in names]
        assert trace(model, layers=objects).sizes(0.5) == graph.sizes(0.5)
    hyper = ManifoldHyperModel(randomize(model), layers=choice, seed=0)
    small = by_name(hyper.graph, hyper.graph.sizes(0.5))
    assert {name for name, n in small.items() if n != FULL[name]} == free
    with pytest.raises(ValueError, match="cannot change"):
        hyper.morph({"head": 0.5})


def test_chosen_layer_objects():
    model = network()
    for choice in (model.get_layer("stem"), [model.get_layer("stem")]):
        hyper = ManifoldHyperModel(model, layers=choice)
        assert [g.name for g in hyper.graph.morphable_groups] == ["stem"]
        assert hyper.morph(0.5).get_layer("stage1_a").filters == 12
    with pytest.raises(ValueError, match="called 'none'"):
        trace(model, layers=["none"])
