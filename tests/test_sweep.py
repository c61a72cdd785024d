"""Sweeps over sizes, and channel cutting."""

import json
import pathlib

import keras
import numpy as np
import pytest
from keras import layers, ops

import keras_neumeta as nm
from keras_neumeta.provenance import provenance


def network():
    inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(8, 3, padding="same", name="stem")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="branch")(x)
    y = layers.BatchNormalization(name="norm")(y)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.Conv2D(6, 3, name="last", activation="relu")(x)
    x = layers.Flatten()(x)
    return keras.Model(inputs, layers.Dense(3, name="logits")(x))


def data():
    random = np.random.default_rng(0)
    x = random.normal(size=(24, 6, 6, 1)).astype("float32")
    return x, random.integers(0, 3, 24).astype("int32")


@pytest.fixture(scope="module")
def hyper():
    keras.utils.set_random_seed(0)
    hyper = nm.ManifoldHyperModel(network(), seed=0)
    hyper.compile(
        "sgd",
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return hyper


@pytest.fixture(scope="module")
def table(hyper):
    return nm.sweep(hyper, *data(), ratios=(1.0, 0.5), cut=True)


def test_rows_are_those_of_the_morphed_models(hyper, table):
    assert [(row["method"], row["ratio"]) for row in table.rows] == [
        ("morph", 1.0),
        ("morph", 0.5),
        ("cut", 1.0),
        ("cut", 0.5),
        ("floor", None),
    ]
    networks = nm.networks_of(hyper, (1.0, 0.5), cut=True)
    for row, (method, ratio, model) in zip(table.rows, networks, strict=True):
        assert (row["method"], row["ratio"]) == (method, ratio)
        model.compile(loss=hyper.loss, metrics=["accuracy"])
        result = model.evaluate(*data(), verbose=0, return_dict=True)
        assert row["accuracy"] == pytest.approx(result["accuracy"])
    small = hyper.morph(0.5)
    row = table.rows[1]
    assert row["parameters"] == small.count_params()
    assert row["macs"] == hyper.graph.count_macs(hyper.graph.sizes(0.5))
    assert row["bytes"] > 4 * small.count_params()
    small.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    expected = small.evaluate(*data(), verbose=0, return_dict=True)
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    assert row["accuracy"] == pytest.approx(expected["accuracy"])
    # The whole network, kept whole, is the same by morphing and cutting.
    assert table.rows[2]["loss"] == pytest.approx(table.rows[0]["loss"])


def test_floor_knows_nothing_of_its_input(hyper, table):
    bias = ops.convert_to_numpy(hyper.target.get_layer("logits").bias)
    logits = np.broadcast_to(bias, (24, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    expected = float(loss(data()[1], logits))
    assert table.rows[-1]["loss"] == pytest.approx(expected, rel=1e-5)


def test_prints_saves_and_plots(table, tmp_path):
    text = str(table)
    assert "parameters" in text and "floor" in text and "0.5" in text
    assert len(text.splitlines()) == 2 + len(table.rows)
    table.save(tmp_path / "table.json", seed=0)
    saved = json.loads((tmp_path / "table.json").read_text())
    assert saved["rows"] == table.rows and saved["seed"] == 0
    assert saved["backend"] == keras.backend.backend()
    table.plot(tmp_path / "table.png", metric="accuracy")
    table.plot(tmp_path / "loss.png", metric="loss")
    assert (tmp_path / "table.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="`metric` must be one of"):
        table.plot(metric="speed")


def test_a_result_says_where_it_comes_from(monkeypatch):
    here = pathlib.Path.cwd()
    words = [
        str(here / "examples" / "try.py"),
        "--base",
        "/far/away/base.keras",
    ]
    monkeypatch.setattr("sys.argv", [*words, "folder/x"])
    found = provenance("scipy", "no-such-package")
    command = "python examples/try.py --base base.keras folder/x"
    assert found["command"] == command
    assert found["versions"]["keras"] == keras.version()
    assert found["versions"]["no-such-package"] is None
    assert found["versions"]["scipy"]


def test_needs_a_compiled_hypermodel():
    hyper = nm.ManifoldHyperModel(network())
    with pytest.raises(ValueError, match="`hyper` must be compiled"):
        nm.sweep(hyper, *data())


def test_cut_keeps_the_largest_channels_everywhere():
    model = network()
    for layer, channel in (("stem", 5), ("branch", 5), ("last", 2)):
        kernel, bias = model.get_layer(layer).get_weights()
        kernel[..., channel] *= 100.0
        model.get_layer(layer).set_weights([kernel, bias])
    keep = nm.largest_channels(model, 0.25)
    assert 5 in keep["stem"] and 2 in keep["last"]
    smaller = nm.cut(model, 0.25)
    assert smaller.get_layer("branch").filters == 2
    old = model.get_layer("branch").get_weights()[0]
    new = smaller.get_layer("branch").get_weights()[0]
    chosen = keep["stem"]
    np.testing.assert_array_equal(new, old[:, :, chosen][..., chosen])


def test_cutting_dead_channels_changes_nothing():
    model = network()
    dead = [1, 4, 6]
    for name in ("stem", "branch"):
        kernel, bias = model.get_layer(name).get_weights()
        kernel[..., dead], bias[dead] = 0.0, 0.0
        model.get_layer(name).set_weights([kernel, bias])
    alive = [n for n in range(8) if n not in dead]
    smaller = nm.cut(model, {"stem": alive})
    assert smaller.count_params() < model.count_params()
    x = data()[0]
    np.testing.assert_allclose(
        ops.convert_to_numpy(smaller(x)),
        ops.convert_to_numpy(model(x)),
        atol=1e-5,
    )


def test_cut_says_what_is_wrong():
    model = network()
    with pytest.raises(ValueError, match="names group 'none'.*not exist"):
        nm.cut(model, {"none": [0]})
    with pytest.raises(ValueError, match="output of the model"):
        nm.cut(model, {"logits": [0]})
    with pytest.raises(ValueError, match="each in 0..7"):
        nm.cut(model, {"stem": [8]})


# Which layers may change


def test_layers_restrict_what_morphs():
    model = network()
    hyper = nm.ManifoldHyperModel(model, layers=["last"])
    assert [g.name for g in hyper.graph.morphable_groups] == ["last"]
    small = hyper.morph(0.5)
    assert small.get_layer("stem").filters == 8
    assert small.get_layer("last").filters == 3
    assert "not among `layers`" in str(hyper.graph)
    by_pattern = nm.trace(model, layers="bra*")
    # Tied by addition: the stem follows the branch.
    assert [g.name for g in by_pattern.morphable_groups] == ["stem"]
    by_layer = nm.trace(model, layers=[model.get_layer("last")])
    assert [g.name for g in by_layer.morphable_groups] == ["last"]
    again = nm.ManifoldHyperModel.from_config(hyper.get_config())
    assert again.graph.groups == hyper.graph.groups


def test_unknown_layers_are_named():
    with pytest.raises(ValueError, match="'conv9'.*Such layers: "):
        nm.ManifoldHyperModel(network(), layers=["conv9"])
    with pytest.raises(TypeError, match="`layers` must hold names"):
        nm.trace(network(), layers=[3])
