"""Networks of fewer residual blocks."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm
from keras_neumeta.graph import resize
from keras_neumeta.network import Network

from .graph.equivalence import (
    assert_same,
    by_role,
    check_counts,
    check_fields,
    check_gradients,
    check_masked_equals_small,
    gradients,
    laid_out,
    outputs,
    run,
)
from .graph.strategies import batch, randomize


def chain(blocks=3, width=4, operators=False):
    """Residual blocks of one width, between a stem and a head."""
    inputs = keras.Input((5, 5, 2))
    x = layers.Conv2D(width, 3, padding="same", name="stem")(inputs)
    for number in range(blocks):
        y = layers.BatchNormalization(momentum=0.9, name=f"bn{number}")(x)
        y = layers.ReLU()(y)
        y = layers.Conv2D(width + 1, 3, padding="same", name=f"in{number}")(y)
        y = layers.BatchNormalization(momentum=0.9, name=f"inner_bn{number}")(y)
        y = layers.Conv2D(width, 3, padding="same", name=f"out{number}")(y)
        x = y + x if operators else layers.Add(name=f"add{number}")([x, y])
    x = layers.BatchNormalization(momentum=0.9, name="last_bn")(x)
    x = layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, layers.Dense(3, name="head")(x))
    randomize(model, 0)
    return model


def graph_of(model):
    return nm.trace(model, blocks=True)


def names(model):
    return [block.layers for block in graph_of(model).blocks]


@pytest.mark.parametrize("operators", [False, True])
def test_blocks_and_their_layers(operators):
    found = names(chain(operators=operators))
    assert len(found) == 3
    for number, layers_ in enumerate(found):
        own = [name for name in layers_ if not name.startswith("re_lu")]
        parts = ("bn", "in", "inner_bn", "out")
        assert own == [f"{part}{number}" for part in parts]


def test_stages_take_turns():
    graph = graph_of(nm.models.cifar_resnet(20, input_shape=(8, 8, 3)))
    assert [block.name for block in graph.blocks] == [
        "stage1_block0_add",
        "stage2_block1_add",
        "stage3_block1_add",
        "stage1_block1_add",
        "stage2_block2_add",
        "stage3_block2_add",
        "stage1_block2_add",
    ]
    assert "7 blocks can be left out" in str(graph)
    # Not unless asked for.
    assert nm.trace(graph.model).blocks == ()
    assert nm.trace(graph.model).full_sizes == graph.full_sizes[:-1]


def dense(x, name):
    return layers.Dense(4, name=name)(x)


def projected(x):
    return layers.Add()([dense(x, "shortcut"), dense(x, "branch")])


def looked_at(x):
    """What the branch computes is used outside too."""
    y = dense(x, "branch")
    return layers.Concatenate()([layers.Add()([x, y]), y])


def shared(x):
    layer = layers.Dense(4, name="branch")
    return layer(layers.Add()([x, layer(x)]))


def three(x):
    return layers.Add()([x, dense(x, "one"), dense(x, "two")])


def broadcast(x):
    """The shortcut has another shape than the sum."""
    y = layers.Dense(1, name="branch")(x)
    return layers.Add()([y, x])


def twice(x):
    """No layers in between."""
    return layers.Add()([x, x])


class Halved(layers.Add):
    """No plain sum."""

    def call(self, inputs):
        return 0.5 * super().call(inputs)


def halved(x):
    return Halved()([x, dense(x, "branch")])


def nested(x):
    """The layer of the branch stays, in a nested model."""
    layer = layers.Dense(4, name="branch")
    inner = keras.Input((4,))
    model = keras.Model(inner, layer(inner))
    return model(layers.Add()([x, layer(x)]))


def unmasked(x):
    """Only without the block would what follows see a mask."""
    x = layers.Masking()(layers.Reshape((1, 4))(x))
    y = ops.tanh(layers.Dense(4, name="branch")(x))
    return layers.Flatten()(x + y)


@pytest.mark.parametrize(
    "build",
    [
        *(projected, looked_at, shared, three, broadcast, twice),
        *(halved, nested, unmasked),
    ],
)
def test_what_is_no_block(build):
    inputs = keras.Input((3,))
    x = dense(inputs, "stem")
    model = keras.Model(inputs, layers.Dense(2)(build(x)))
    assert names(model) == []
    with pytest.raises(ValueError, match="`min_depth`: no block of"):
        nm.ManifoldHyperModel(model, min_depth=0)


def test_blocks_within_blocks_go_with_them():
    inputs = keras.Input((4,))
    y = dense(inputs, "before")
    y = layers.Add(name="inner")([y, dense(y, "inside")])
    y = dense(y, "after")
    model = keras.Model(inputs, layers.Add(name="outer")([inputs, y]))
    assert names(model) == [("before", "inside", "inner", "after")]


def test_a_network_of_fewer_blocks_is_the_one_without_them():
    model = chain()
    graph = graph_of(model)
    x = batch(model)
    for depth in range(4):
        sizes = graph.at_depth(graph.full_sizes, depth)
        small = resize(graph, sizes)
        for variable, index in zip(
            small.variables, graph.places(small), strict=True
        ):
            variable.assign(model.variables[index].value)
        # By hand: what a block adds is nothing.
        silent = chain()
        for variable, value in zip(silent.variables, model.variables):
            variable.assign(value.value)
        for number in range(depth, 3):
            for variable in silent.get_layer(f"out{number}").variables:
                variable.assign(np.zeros(variable.shape))
        assert_same(outputs(silent, x), outputs(small, x))
        check_counts(graph, sizes)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_masked_equals_small(depth):
    model = chain()
    graph = graph_of(model)
    sizes = graph.at_depth(graph.sizes(0.5), depth)
    check_masked_equals_small(model, graph, sizes)
    check_masked_equals_small(model, graph, sizes, graph.sizes(0.75))
    check_gradients(model, graph, sizes)
    check_fields(model, graph, sizes, {"size_knots": (0.5,)})


def test_absent_blocks_keep_their_statistics():
    model = chain()
    graph = graph_of(model)
    sizes = graph.at_depth(graph.full_sizes, 1)
    masked = nm.ManifoldHyperModel(model, min_depth=0).networks.at(None)
    outside, _ = laid_out(model, graph, sizes)
    _, new, *_ = masked(
        outside["weight"],
        outside["statistic"],
        outside["state"],
        ops.convert_to_tensor(batch(model)),
        True,
        ops.convert_to_tensor(sizes, "int32"),
    )
    layouts = [x for x in graph.layouts if x.role == "statistic"]
    for layout, before, after in zip(layouts, outside["statistic"], new):
        same = np.array_equal(before, ops.convert_to_numpy(after))
        assert same == (layout.block is not None and layout.block >= 1)


def test_absent_blocks_cause_no_loss_and_no_infinite_gradient():
    inputs = keras.Input((4,))
    x = layers.Dense(4, name="stem")(inputs)
    y = layers.Dense(4, kernel_regularizer="l2", name="branch")(x)
    y = layers.Lambda(lambda y: ops.exp(100.0 * ops.square(y)))(y)
    x = layers.Add()([x, y])
    model = keras.Model(inputs, layers.Dense(2, name="head")(x))
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    graph = graph_of(model)
    sizes = graph.at_depth(graph.full_sizes, 0)
    masked = nm.ManifoldHyperModel(
        model, min_depth=0, smooth=False
    ).networks.at(None)
    values = by_role(model, graph)
    tensor = ops.convert_to_tensor(sizes, "int32")
    data = ops.ones((3, 4))

    def loss(weights):
        outputs_, _, _, losses = masked(weights, [], [], data, True, tensor)
        return ops.mean(outputs_) + sum(losses)

    weights = [ops.convert_to_tensor(v) for v in values["weight"]]
    # (1 + 4) of the stem, the head adds them up and 1.
    np.testing.assert_allclose(
        ops.convert_to_numpy(loss(weights)), 21.0, rtol=1e-6
    )
    for gradient in gradients(loss, weights):
        assert np.isfinite(ops.convert_to_numpy(gradient)).all()


def towers():
    """Two branches of residual blocks, and an output on the way."""
    inputs = keras.Input((4,))
    ends = []
    for tower, length in (("a", 1), ("b", 2)):
        x = layers.Dense(3, name=f"{tower}_stem")(inputs)
        for n in range(length):
            y = layers.Dense(5, activation="tanh", name=f"{tower}_in{n}")(x)
            y = layers.Dense(3, name=f"{tower}_out{n}")(y)
            x = layers.Add(name=f"{tower}_add{n}")([x, y])
        ends.append(layers.Dense(3, name=f"{tower}_end")(x))
    head = layers.Dense(2, name="head")(layers.Concatenate()(ends))
    return keras.Model(inputs, [head, layers.Dense(2, name="early")(ends[0])])


def encoder(blocks=2):
    """Attention that is told which keys there are, by layers of its own."""
    inputs = keras.Input((5, 4), name="x")
    keys = keras.Input((5,), name="keys")
    x = layers.Dense(4, name="stem")(inputs)
    bias = layers.Dense(5, activation="sigmoid", name="bias")(keys)
    mask = layers.Reshape((1, 5))(bias) > 0.4
    for n in range(blocks):
        attend = layers.MultiHeadAttention(2, 2, name=f"attend{n}")
        x = layers.Add(name=f"add{n}")([x, attend(x, x, attention_mask=mask)])
    x = layers.GlobalAveragePooling1D()(x)
    return keras.Model([inputs, keys], layers.Dense(2, name="head")(x))


def side_blocks():
    """What a block takes in has a block itself, of use to two of them."""
    inputs = keras.Input((3,))
    side = layers.Dense(4, name="side")(inputs)
    y = layers.Dense(4, name="side_branch")(side)
    side = layers.Add(name="side_add")([side, y])
    x = layers.Dense(4, name="stem")(inputs)
    for n in range(2):
        y = layers.Dense(4, name=f"branch{n}")(x)
        x = layers.Add(name=f"add{n}")([x, layers.Multiply()([y, side])])
    return keras.Model(inputs, layers.Dense(2, name="head")(x))


def block_output():
    """The outputs are additions, by a layer and by an operation."""
    inputs = keras.Input((4,))
    x = layers.Dense(4, dtype="mixed_float16", name="stem")(inputs)
    first = layers.Add(name="first", dtype="float32")(
        [x, layers.Dense(4, dtype="float32", name="one")(x)]
    )
    second = first + layers.Dense(4, name="two")(first)
    return keras.Model(inputs, [first, second])


def halves_of_every_depth(model):
    """Half as wide networks of each depth, equal to the masked one."""
    randomize(model, 0)
    hyper = nm.ManifoldHyperModel(
        model, nm.AnchoredField(scale=0.0), "uniform", min_depth=0, smooth=False
    )
    graph, x = hyper.graph, batch(model)
    masked = hyper.networks.at(None)
    found = []
    for depth in range(len(graph.blocks) + 1):
        sizes = graph.at_depth(graph.sizes(0.5), depth)
        check_counts(graph, sizes)
        outside, _ = laid_out(model, graph, sizes)
        expected, _ = run(
            masked,
            (outside["weight"], outside["statistic"]),
            outside["state"],
            keras.tree.map_structure(ops.convert_to_tensor, x),
            False,
            ops.convert_to_tensor(sizes, "int32"),
        )
        found.append(hyper.morph(0.5, depth=depth))
        assert_same(outputs(found[-1], x), expected)
    return found


def test_parallel_branches_in_any_order():
    """Keras orders layers by their distance from the outputs."""
    assert names(towers())[-1] == ("a_in0", "a_out0")
    stems = [
        [x.name for x in model.layers if x.name.endswith("stem")]
        for model in halves_of_every_depth(towers())
    ]
    assert stems[0] == ["a_stem", "b_stem"]
    assert stems[-1] == ["b_stem", "a_stem"]


def test_blocks_with_an_input_from_elsewhere(tmp_path):
    assert names(encoder()) == [("attend0",), ("attend1",)]
    none, one, both = halves_of_every_depth(encoder())
    # What only absent blocks take in goes with them.
    assert {x.name for x in none.layers if x.variables} == {"stem", "head"}
    assert one.get_layer("bias").variables
    none.save(tmp_path / "none.keras")
    x = batch(none)
    again = keras.saving.load_model(tmp_path / "none.keras")
    assert_same(outputs(none, x), outputs(again, x))


def test_blocks_in_what_blocks_take_in():
    graph = graph_of(side_blocks())
    least = {x.path.split("/")[0]: x.block for x in graph.layouts}
    assert least == {
        **{"stem": None, "head": None, "side": 1, "side_branch": 1},
        **{"branch0": 1, "branch1": 2},
    }
    halves_of_every_depth(side_blocks())


def test_outputs_keep_name_and_type():
    for model in halves_of_every_depth(block_output()):
        assert model.output_names == ["first", "add"]
        assert [x.dtype for x in model.outputs] == ["float32", "float32"]


def test_absent_blocks_count_for_no_weight_norm():
    hyper = nm.ManifoldHyperModel(
        side_blocks(), sampler="uniform", min_depth=0, smooth=False
    )
    graph = hyper.graph
    sizes = graph.at_depth(graph.sizes(0.5), 1)
    norms = [
        ops.convert_to_numpy(hyper._norm(hyper.field.generate(at), at))
        for at in (sizes, ops.convert_to_tensor(sizes, "int32"))
    ]
    small = hyper.morph(0.5, depth=1)
    expected = sum(
        np.linalg.norm(ops.convert_to_numpy(v))
        for v in small.trainable_variables
    )
    np.testing.assert_allclose(norms, expected, rtol=1e-4)


def test_sweep_compares_networks_of_one_depth():
    hyper = nm.ManifoldHyperModel(
        side_blocks(), sampler="uniform", min_depth=0, smooth=False
    )
    hyper.compile(loss="mse")
    x = batch(hyper.target)
    table = nm.sweep(hyper, x, np.ones((len(x), 2)), [1.0], cut=True, depth=2)
    morphed, whole, floor = table.rows
    number = hyper.morph(1.0, depth=2).count_params()
    assert [row["parameters"] for row in table.rows] == [number] * 3
    assert whole["loss"] == pytest.approx(morphed["loss"], rel=1e-5)
    bias = ops.convert_to_numpy(hyper.target.get_layer("head").bias)
    expected = np.mean((bias - 1.0) ** 2)
    assert floor["loss"] == pytest.approx(expected, rel=1e-5)


def trained(model, **options):
    options = {"min_depth": 0, "seed": 0, "smooth": False, **options}
    # Few networks: to compile them takes long on JAX.
    sampler = nm.Uniform(seed=0)
    hyper = nm.ManifoldHyperModel(model, sampler=sampler, **options)
    hyper.compile(
        keras.optimizers.SGD(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        run_eagerly=keras.backend.backend() == "tensorflow",
    )
    x = batch(model)
    y = np.arange(len(x)) % 3
    hyper.train_on_batch(x, y)
    return hyper, x, y


@pytest.mark.parametrize(
    "field", ["anchored", nm.ImplicitField(imitation_steps=2, seed=0)]
)
def test_train_morph_and_reload(field, tmp_path):
    model = chain(blocks=2)
    hyper, x, y = trained(model, field=field)
    if field == "anchored":
        fresh = nm.ManifoldHyperModel(model, min_depth=0, smooth=False)
        assert_same(outputs(model, x), outputs(fresh.morph(1.0), x))
    hyper.save(tmp_path / "hyper.keras")
    reloaded = keras.saving.load_model(tmp_path / "hyper.keras")
    assert reloaded.min_depth == 0
    for depth in (0, 1, None):
        small = hyper.morph(0.5, depth=depth)
        kept = 2 if depth is None else depth
        assert sum(x.name.startswith("out") for x in small.layers) == kept
        sizes = hyper.graph.at_depth(hyper.graph.sizes(0.5), kept)
        assert small.count_params() == hyper.graph.count_params(sizes)
        assert_same(
            outputs(small, x), outputs(reloaded.morph(0.5, depth=depth), x)
        )
        small.save(tmp_path / "small.keras")
        again = keras.saving.load_model(tmp_path / "small.keras")
        assert_same(outputs(small, x), outputs(again, x))
    # Training goes on with the same sizes.
    for each in (hyper, reloaded):
        each.train_on_batch(x, y)
    assert_same(outputs(hyper.morph(0.5), x), outputs(reloaded.morph(0.5), x))


def test_budgets_and_growth_go_with_a_depth():
    hyper = nm.ManifoldHyperModel(
        chain(), nm.AnchoredField(stretch=1.0), min_depth=0, smooth=False
    )
    graph = hyper.graph
    one = graph.count_params(graph.at_depth(graph.full_sizes, 1))
    # What all blocks at full width would be far above.
    whole = hyper.morph(params=one, depth=1)
    assert whole.count_params() == one
    assert hyper.morph(params=one - 1, depth=1).count_params() < one
    larger = hyper.morph(1.5, depth=1, extrapolate=True)
    assert larger.get_layer("stem").filters == 6
    assert np.isfinite(ops.convert_to_numpy(larger(batch(hyper.target)))).all()
    # Sizes are taken back as they come.
    sizes = graph.at_depth(graph.sizes(0.5), 2)
    small = hyper.morph(sizes=sizes)
    assert small.count_params() == graph.count_params(sizes)


def test_steps_draw_every_number_of_blocks():
    sampler = nm.Sandwich(num_fixed=2, num_random=1, bands=1, seed=0)
    hyper = nm.ManifoldHyperModel(
        chain(), sampler=sampler, min_depth=1, smooth=False, seed=0
    )
    drawn = []
    for _ in range(40):
        (_, full, _), *others = hyper.draw_sizes()
        assert [ratio for ratio, *_ in others][::2] == [1.0, 0.25]
        assert full == hyper.graph.full_sizes
        drawn += [ops.convert_to_numpy(sizes)[-1] for _, sizes, _ in others]
    assert set(drawn) == {1, 2, 3}


def test_weights_and_statistics_follow_the_depth():
    """What a step at one depth changes is not what others read."""
    hyper = nm.ManifoldHyperModel(chain(), min_depth=0, smooth=False)
    curves = hyper.field.size_curves
    assert all(values.shape[0] == 3 for values in curves.values)
    for values in curves.values:
        values.assign(
            np.arange(3.0).reshape(-1, *[1] * (len(values.shape) - 1))
            * np.ones(values.shape)
        )
    graph = hyper.graph
    points = by_role(hyper.morph(1.0), graph)["weight"]
    for depth in range(4):
        sizes = graph.at_depth(graph.full_sizes, depth)
        weights = hyper.field.generate(sizes)
        index = curves.members[0]
        change = ops.convert_to_numpy(weights[index]) - points[index]
        np.testing.assert_allclose(change, [0, 1, 2, 0][depth], atol=1e-5)
    # Statistics: one knot per number of blocks, for each ratio.
    assert hyper.statistics.knots[0].shape[0] == 14 * 4


def test_statistics_of_a_depth_are_those_of_its_network():
    """Behind the blocks, moving statistics differ by the depth."""
    keras.utils.set_random_seed(0)
    model = chain(blocks=2)
    hyper = nm.ManifoldHyperModel(model, min_depth=0, smooth=False)
    x = batch(model)
    graph = hyper.graph
    for depth in (0, 1):
        sizes = graph.at_depth(graph.full_sizes, depth)
        network = Network(resize(graph, sizes), graph, sizes)
        for _ in range(80):
            weights = hyper.field.generate(sizes)
            before = hyper.statistics.generate(sizes, weights)
            _, after, *_ = network(weights, before, [], x, True)
            hyper.statistics.update(sizes, weights, before, after)
    for depth in (0, 1):
        own = hyper.morph(1.0, depth=depth)
        anew = hyper.morph(1.0, depth=depth, calibration_data=x)
        for mine, exact in zip(own.variables, anew.variables, strict=True):
            np.testing.assert_allclose(
                ops.convert_to_numpy(mine),
                ops.convert_to_numpy(exact),
                rtol=2e-2,
                atol=2e-2,
            )


def test_errors():
    model = chain()
    for depth in (4, -1):
        with pytest.raises(ValueError, match=r"`min_depth` must be in \[0, 3"):
            nm.ManifoldHyperModel(model, min_depth=depth)
    with pytest.raises(TypeError, match="`min_depth` must be an integer"):
        nm.ManifoldHyperModel(model, min_depth=1.5)
    hyper = nm.ManifoldHyperModel(model, min_depth=1, smooth=False)
    with pytest.raises(ValueError, match=r"`depth` .* must be in \[0, 3\]"):
        hyper.morph(0.5, depth=4)
    with pytest.raises(TypeError, match="`depth` .* must be an integer"):
        hyper.morph(0.5, depth=0.5)
    plain = nm.ManifoldHyperModel(model, smooth=False)
    with pytest.raises(ValueError, match="blocks of .* all stay"):
        plain.morph(0.5, depth=1)


def test_a_block_stays_if_an_output_is_inside():
    x = keras.Input((4,))
    inner = keras.layers.Dense(4, activation="relu", name="inner")(x)
    added = keras.layers.Add(name="added")([x, inner])
    results = {"added": added, "inner": inner}
    assert nm.trace(keras.Model(x, added), blocks=True).blocks
    assert not nm.trace(keras.Model(x, results), blocks=True).blocks
