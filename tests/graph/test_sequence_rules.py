"""Embeddings, recurrent layers, attention, wrappers."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from keras_neumeta import trace
from keras_neumeta.graph import resize

from .equivalence import (
    OUTPUT,
    check_fields,
    check_gradients,
    check_half,
    check_smooth,
    groups,
    sequential,
)

LENGTH, WORDS = 5, 7
CONFIG = {"interpolation": "linear", "stretch": 1.0}


def model_of(function, mask=False):
    """A function of embedded words, then a dense layer."""
    inputs = keras.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(WORDS, 4, mask_zero=mask, name="words")(inputs)
    x = layers.Dense(2, name="head")(function(x))
    return keras.Model(inputs, layers.Flatten()(x + 0.0))


def check(model, expected):
    """Free groups are as expected and every size agrees."""
    result = groups(model)
    assert {n: k for n, (k, reason) in result.items() if not reason} == expected
    graph, small = check_half(model)
    check_gradients(model, graph, graph.sizes(0.5))
    check_fields(model, graph, graph.sizes(0.5), CONFIG)
    check_smooth(model)
    return graph, small


def test_embedding():
    graph, small = check(model_of(lambda x: x), {"words": 4})
    assert small.get_layer("words").output_dim == 2
    assert graph.layouts[0].shape_at((2, 2)) == (WORDS, 2)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(
    ("make", "gates"),
    [
        (layers.SimpleRNN, 1),
        (layers.GRU, 3),
        (lambda *a, **k: layers.GRU(*a, reset_after=False, **k), 3),
        (layers.LSTM, 4),
    ],
)
def test_recurrent(make, gates, mask):
    layer = make(6, return_sequences=True, name="rnn")
    graph, small = check(model_of(layer, mask), {"words": 4, "rnn": 6})
    # Each gate keeps the same units.
    kernel = next(x for x in graph.layouts if x.path.endswith("/kernel"))
    kept = kernel.axes[1].keep((4, 2, 2)).tolist()
    assert kept == [6 * gate + n for gate in range(gates) for n in (0, 1)]
    assert small.get_layer("rnn").units == 3
    assert layer.cell.kernel.shape == (4, 6 * gates)


def test_recurrent_layer_of_cells():
    cells = [layers.GRUCell(4), layers.LSTMCell(6)]
    layer = layers.RNN(cells, return_sequences=True, name="rnn")
    graph, small = check(model_of(layer), {"words": 4, "rnn": 4, "rnn#2": 6})
    assert [cell.units for cell in small.get_layer("rnn").cell.cells] == [2, 3]
    layer = layers.RNN(layers.SimpleRNNCell(4), name="rnn")
    check(model_of(layer), {"words": 4, "rnn": 4})


def test_states_tie_encoder_and_decoder():
    def translate(x):
        y, *states = layers.LSTM(
            4, return_state=True, return_sequences=True, name="encoder"
        )(x)
        decoder = layers.LSTM(4, return_sequences=True, name="decoder")
        return decoder(y, initial_state=states)

    for mask in (False, True):
        graph, _ = check(model_of(translate, mask), {"words": 4, "encoder": 4})
        assert graph.groups[1].makers == ("encoder", "decoder")


def test_unknown_cell_and_activation_freeze():
    class Cell(layers.GRUCell):
        def call(self, *args, **kwargs):
            return super().call(*args, **kwargs)

    model = model_of(layers.RNN(Cell(4), name="rnn"))
    assert "cell without a rule" in groups(model)["words"][1]
    layer = layers.GRU(4, activation="softmax", name="rnn")
    result = groups(model_of(layer))
    assert "'softmax' of layer 'rnn'" in result["rnn"][1]
    assert result["words"] == (4, None)


@pytest.mark.parametrize("mode", ["concat", "sum", "mul", "ave", None])
def test_bidirectional(mode):
    """Both directions keep equally many units, as Keras takes them to."""

    def both(x):
        layer = layers.GRU(6, return_sequences=True, name="rnn")
        x = layers.Bidirectional(layer, merge_mode=mode, name="both")(x)
        return layers.Concatenate()(x) if mode is None else x

    graph, small = check(model_of(both), {"words": 4, "both": 6})
    layer = small.get_layer("both")
    assert layer.forward_layer.units == layer.backward_layer.units == 3
    assert layer.forward_layer.cell.kernel.shape == (2, 9)


@pytest.mark.parametrize("output_shape", [None, 6])
@pytest.mark.parametrize(
    "value_dim",
    [
        2,
        # On JAX, Keras' attention wants values as wide as keys.
        pytest.param(3, marks=(pytest.mark.tensorflow, pytest.mark.torch)),
    ],
)
def test_multi_head_attention(output_shape, value_dim):
    def attend(x):
        y = layers.Dense(6, name="context")(x)
        return layers.MultiHeadAttention(
            4, 2, value_dim, output_shape=output_shape, name="heads"
        )(x, y)

    expected = {"words": 4, "context": 6, "heads": 4}
    if output_shape:
        expected["heads#2"] = 6
    else:
        # As wide as the query: one layer makes what the other embeds.
        expected["heads#2"] = 4
    graph, small = check(model_of(attend), expected)
    assert small.get_layer("heads").num_heads == 2
    kernel = next(x for x in graph.layouts if "query/kernel" in x.path)
    assert list(kernel.axes) == [0, 1]


def test_multi_head_attention_with_a_residual():
    def attend(x):
        y = layers.MultiHeadAttention(2, 3, name="heads")(
            x, x, use_causal_mask=True
        )
        return layers.Add()([x, y])

    for mask in (False, True):
        graph, _ = check(model_of(attend, mask), {"words": 4, "heads": 2})
        assert graph.groups[0].makers == ("words", "heads")


@pytest.mark.parametrize(
    "layer",
    [
        lambda x, m: layers.MultiHeadAttention(2, 3, name="last")(
            x, x, attention_mask=layers.Reshape((1, LENGTH))(m)
        ),
        lambda x, m: layers.LSTM(3, name="last")(x, None, m),
        lambda x, m: layers.Bidirectional(layers.GRU(3), name="last")(
            x, mask=m
        ),
        lambda x, m: layers.GlobalAveragePooling1D(name="last")(x, mask=m),
        lambda x, m: layers.BatchNormalization(name="last")(x, mask=m),
        lambda x, m: layers.TimeDistributed(layers.Dense(3), name="last")(
            x, mask=m
        ),
        lambda x, m: layers.Attention(name="last")([x, x], mask=[m, m]),
    ],
    ids="heads lstm both pooling norm each attention".split(),
)
def test_a_mask_keeps_its_places(layer):
    """Whatever made it; the channels of what it masks may change."""

    def masked(x):
        made = layers.Dense(LENGTH, name="mask")(layers.Flatten()(x))
        return layer(x, ops.greater(made, 0.0))

    model = model_of(masked)
    result = groups(model)
    assert result["mask"] == (LENGTH, "layer 'last' masks by them")
    assert not result["words"][1]
    graph = trace(model)
    small = resize(graph, graph.sizes(0.5))
    assert small(np.ones((2, LENGTH), "int32")).shape[0] == 2


def test_grouped_query_attention_shares_keys():
    layer = layers.GroupQueryAttention(2, 4, 2, name="heads")
    graph, small = check(
        model_of(lambda x: layer(x, x)), {"words": 4, "heads": 2}
    )
    small = small.get_layer("heads")
    assert (small.num_query_heads, small.num_key_value_heads) == (2, 1)


def test_grouped_queries_are_as_wide_as_the_values():
    inputs = keras.Input((5, 3)), keras.Input((4, 3))
    query, value = (
        layers.Dense(6, name=name)(x)
        for name, x in zip(("query", "value"), inputs)
    )
    x = layers.GroupQueryAttention(3, 4, 2, name="heads")(query, value)
    graph = trace(keras.Model(inputs, layers.Dense(2)(x)))
    assert graph.groups[0].makers == ("query", "value")


@pytest.mark.parametrize(
    "layer",
    [
        layers.Attention(),
        layers.Attention(use_scale=True),
        layers.Attention(score_mode="concat"),
        layers.AdditiveAttention(),
        layers.AdditiveAttention(use_scale=False),
    ],
)
def test_attention(layer):
    def attend(x):
        query = layers.Dense(4, name="query")(x)
        key = layers.Dense(4, name="key")(x)
        value = layers.Dense(6, name="value")(x)
        return layer([query, value, key])

    graph, _ = check(model_of(attend), {"words": 4, "query": 4, "value": 6})
    assert graph.groups[1].makers == ("query", "key")


def test_additive_attention_over_its_own_values_freezes():
    def attend(x):
        layer = layers.AdditiveAttention(use_scale=False, name="attend")
        return layer([x, layers.Dense(4, name="value")(x)])

    model = model_of(attend)
    assert "'attend' adds them up" in groups(model)["words"][1]
    check_half(model)


def test_einsum_dense_with_heads():
    def project(x):
        x = layers.EinsumDense(
            "abc,cde->abde", (None, 2, 4), bias_axes="de", name="in"
        )(x)
        return layers.EinsumDense(
            "abde,def->abf", (None, 6), bias_axes="f", name="out"
        )(x)

    graph, small = check(
        model_of(project), {"words": 4, "in": 2, "in#2": 4, "out": 6}
    )
    assert small.get_layer("in").kernel.shape == (2, 1, 2)


def test_einsum_dense_with_elided_axes():
    layer = layers.EinsumDense(
        "...c,cd->...d", 6, activation="tanh", name="dense"
    )
    check(model_of(layer), {"words": 4, "dense": 6})


@pytest.mark.parametrize("kind", ["dense", "einsum"])
def test_macs_of_a_layer_over_positions_follow_the_channels(kind):
    """As in an MLP-Mixer: each channel is one more use of the kernel."""

    def mix(x):
        if kind == "einsum":
            return layers.EinsumDense("abc,bd->adc", (3, 4), name="mix")(x)
        x = layers.Dense(3, name="mix")(layers.Permute((2, 1))(x))
        return layers.Permute((2, 1))(x)

    model = model_of(mix)
    graph, _ = check_half(model)
    assert graph.full_sizes == (4, 3, 2)
    head = 3 * 2
    assert graph.count_macs() == 4 * (LENGTH * 3) + head * 4
    assert graph.count_macs((2, 3, 2)) == 2 * (LENGTH * 3) + head * 2


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (lambda: layers.Dense(6, activation="relu"), {"words": 4, "time": 6}),
        (lambda: layers.BatchNormalization(), {"words": 4}),
    ],
)
def test_time_distributed(layer, expected):
    layer = layers.TimeDistributed(layer(), name="time")
    graph, small = check(model_of(layer), expected)
    # Once per step.
    if "time" in expected:
        assert graph.count_macs() == LENGTH * (4 * 6 + 6 * 2)


def test_time_distributed_around_what_it_cannot_follow_freezes():
    layer = layers.TimeDistributed(layers.LayerNormalization())
    model = model_of(layer)
    assert "inside another layer" in groups(model)["words"][1]
    check_half(model)


def test_repeated_vector_into_a_recurrent_layer():
    model = sequential(
        (3,),
        layers.Dense(4, name="dense"),
        layers.RepeatVector(3),
        layers.LSTM(6, name="lstm"),
        layers.Dense(2, name="head"),
    )
    assert groups(model) == {
        "dense": (4, None),
        "lstm": (6, None),
        "head": (2, OUTPUT),
    }
    check_half(model)


def test_inner_layers_of_a_resized_wrapper_are_built_anew():
    """Their config carries the input shape that they were built with."""
    layer = layers.Bidirectional(layers.LSTM(4), name="both")
    model = model_of(layer)
    small = resize(trace(model), (2, 4, 2))
    assert small.get_layer("both").forward_layer.cell.kernel.shape == (2, 16)
    x = np.zeros((1, LENGTH), "int32")
    assert np.isfinite(ops.convert_to_numpy(small(x))).all()
