"""The models that come with the library."""

import keras
import numpy as np
import pytest

import keras_neumeta as nm

from .data_sets import beside, prepared
from .graph.equivalence import (
    assert_same,
    check_counts,
    check_masked_equals_small,
)
from .graph.equivalence import outputs as run
from .graph.strategies import randomize


@pytest.mark.parametrize("shortcut", ["conv", "pad"])
def test_every_width_of_a_resnet_morphs(shortcut):
    model = nm.models.cifar_resnet(8, shortcut=shortcut)
    graph = nm.trace(model)
    assert [g.name for g in graph.groups if not g.morphable] == ["head_dense"]
    half = nm.cut(model, 0.5)
    assert half.get_layer("stage3_block0_conv2").filters == 32
    assert half.get_layer("stage2_block0_conv1").filters == 16
    assert half(np.zeros((1, 32, 32, 3))).shape == (1, 10)


def test_shortcuts_are_strided_convolutions_but_not_to_onednn():
    """Few channels and a stride are too much for its gradient of the kernel."""
    model = nm.models.cifar_resnet(8, input_shape=(9, 8, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.kernel_size != (1, 1) or layer.strides == (1, 1)
    shortcut = model.get_layer("stage2_block0_shortcut")
    strided = keras.layers.Conv2D(32, 1, 2, padding="same", use_bias=False)
    given = model.get_layer("stage1_block0_relu2").output
    branches = keras.Model(given, [shortcut.output, strided(given)])
    strided.set_weights(shortcut.get_weights())
    x = np.random.default_rng(0).normal(size=(2, 9, 8, 16))
    ours, theirs = branches.predict(x, verbose=0)
    assert ours.shape == (2, 5, 4, 32)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_resnet_depths():
    for depth in (8, 20):
        convolutions = [
            layer
            for layer in nm.models.cifar_resnet(depth, shortcut="pad").layers
            if isinstance(layer, keras.layers.Conv2D)
        ]
        assert len(convolutions) == depth - 1
    with pytest.raises(ValueError, match="6 n"):
        nm.models.cifar_resnet(21)
    with pytest.raises(ValueError, match="'conv' or 'pad'"):
        nm.models.cifar_resnet(20, shortcut="none")


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **{"stem.conv.kernel": np.zeros((3, 3, 3, 16))})
    with pytest.raises(ValueError, match="does not fit"):
        nm.models.cifar_resnet(8, weights=path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="does not fit.* unknown: .'x'."):
        nm.models.cifar_resnet(8, weights=path)


def pretrained(depth):
    """A pretrained ResNet, and what measures the accuracy of such."""
    path = beside(f"resnet{depth}_cifar10.npz")
    folder = prepared("cifar10")
    import tensorflow_datasets as tfds

    x, y = tfds.as_numpy(
        tfds.load(
            "cifar10",
            split="test[:1000]",
            data_dir=folder,
            download=False,
            batch_size=-1,
            as_supervised=True,
        )
    )

    def accuracy(model):
        logits = model.predict(x / np.float32(255), verbose=0)
        return np.mean(logits.argmax(-1) == y)

    model = nm.models.cifar_resnet(depth, shortcut="pad", weights=path)
    return model, accuracy


@pytest.mark.tensorflow  # Reads its data there, and is the same elsewhere.
def test_pretrained_resnet20_reaches_its_accuracy_smoothed_too():
    model, accuracy = pretrained(20)
    assert accuracy(model) > 0.9
    assert accuracy(nm.smooth(model, effort=0)) > 0.9


@pytest.mark.tensorflow  # As above.
def test_pretrained_resnet56_reaches_its_accuracy():
    model, accuracy = pretrained(56)
    assert accuracy(model) > 0.93


def test_lenet_has_the_published_shape():
    model = nm.models.lenet()
    assert model.count_params() == 104_202
    assert len(nm.trace(model).morphable_groups) == 3


# Networks as small as they can be, with resolutions that are not even.
SMALL = {
    "resnet18": lambda: nm.models.resnet18(5, (4, 6, 8, 10), (33, 40, 3)),
    "unet": lambda: nm.models.unet(
        4, (33, 40, 3), (4, 6, 8, 10), (8, 8, 6, 4, 4)
    ),
    "dense_vae": lambda: nm.models.dense_vae((12, 8), 3, (6, 6, 1), seed=0),
    "conv_vae": lambda: nm.models.conv_vae((4, 6, 8), 3, (16, 16, 3), seed=0),
}
# What never changes: outputs, and the latent code.
FIXED = {
    "resnet18": ["head_dense"],
    "unet": ["classes"],
    "dense_vae": ["latent_mean", "latent_log_variance", "decoder_pixels"],
    "conv_vae": ["latent_mean", "latent_log_variance", "decoder_image"],
}


@pytest.mark.parametrize("name", SMALL)
def test_every_width_but_the_output_morphs(name):
    graph = nm.trace(SMALL[name]())
    fixed = [g.name for g in graph.groups if not g.morphable]
    assert fixed == FIXED[name]


@pytest.mark.parametrize("name", SMALL)
def test_masked_equals_small(name):
    model = SMALL[name]()
    randomize(model, 0)
    graph = nm.trace(model)
    sizes = graph.sizes(0.5)
    check_masked_equals_small(model, graph, sizes)
    check_counts(graph, sizes)


def compiled_hyper(model):
    """A hypermodel with the loss that suits the model, and a batch."""
    random = np.random.default_rng(0)
    x = random.random((6, *model.input_shape[1:])).astype("float32")
    if model.name == "dense_vae":
        y, loss = x, keras.losses.BinaryCrossentropy()
    elif model.name == "conv_vae":
        y, loss = x, keras.losses.MeanSquaredError()
    else:
        y = random.integers(0, 4, (6, *model.output_shape[1:-1]))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # One network, and no compilation where that is slow: ready sooner.
    sampler = nm.Uniform(seed=0)
    hyper = nm.ManifoldHyperModel(model, sampler=sampler, smooth=False, seed=0)
    eagerly = keras.backend.backend() == "tensorflow"
    hyper.compile("adam", loss, run_eagerly=eagerly)
    return hyper, x, y


# JAX takes minutes to compile networks of so many layers.
DEEP = [pytest.mark.slow] if keras.backend.backend() == "jax" else []


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=DEEP if name in ("resnet18", "unet") else [])
        for name in SMALL
    ],
)
def test_models_train_and_morph_and_reload(name, tmp_path):
    model = SMALL[name]()
    hyper, x, y = compiled_hyper(model)
    assert_same(run(model, x), run(hyper.morph(1.0), x))
    logs = hyper.train_on_batch(x, y, return_dict=True)
    assert np.isfinite(list(logs.values())).all()
    hyper.save(tmp_path / "hyper.keras")
    reloaded = keras.saving.load_model(tmp_path / "hyper.keras")
    for ratio in (0.5, 0.25):
        small = hyper.morph(ratio)
        assert small.count_params() < ratio * model.count_params() * 1.5
        assert_same(run(small, x), run(reloaded.morph(ratio), x))
    assert run(small, x).shape == (6, *model.output_shape[1:])
    small.save(tmp_path / "small.keras")
    small_reloaded = keras.saving.load_model(tmp_path / "small.keras")
    assert_same(run(small, x), run(small_reloaded, x))


def test_a_vae_learns_its_evidence_lower_bound():
    model = SMALL["dense_vae"]()
    randomize(model, 0)
    encoder, decoder = nm.models.split_vae(model)
    x = np.random.default_rng(0).random((5, 6, 6, 1)).astype("float32")
    mean, log_variance = encoder.predict_on_batch(x)
    np.testing.assert_allclose(
        decoder.predict_on_batch(mean), model.predict_on_batch(x), rtol=1e-5
    )
    # Only what draws the code is of this library.
    assert "keras_neumeta" in model.to_json()
    assert "keras_neumeta" not in encoder.to_json() + decoder.to_json()
    divergence = 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance)
    model.compile(loss=keras.losses.MeanSquaredError())
    error = np.mean((model.predict_on_batch(x) - x) ** 2)
    # One pixel's share of the bound, as the other term is a mean over pixels.
    expected = error + divergence.sum(axis=1).mean() / 36
    loss = model.evaluate(x, x, verbose=0)
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    # Draws differ, and have the mean and variance that the encoder says.
    sampling = model.get_layer("latent")
    mean, log_variance = np.full((2, 4000, 1), [[[0.5]], [[-1.0]]], "float32")
    draws = keras.ops.convert_to_numpy(
        sampling([mean, log_variance], training=True)
    )
    assert abs(draws.mean() - 0.5) < 0.05
    assert abs(draws.std() - np.exp(-0.5)) < 0.05


def test_arguments_of_the_models():
    with pytest.raises(ValueError, match="`widths` must hold .* four stages"):
        nm.models.resnet18(widths=(8, 8))
    with pytest.raises(ValueError, match="`decoder_widths` must hold"):
        nm.models.unet(2, (32, 32, 3), decoder_widths=(8,))
    with pytest.raises(ValueError, match="multiples of 16"):
        nm.models.conv_vae(input_shape=(28, 28, 1))
    with pytest.raises(ValueError, match="three convolutions.*widths=.8, 8.$"):
        nm.models.lenet((8, 8))
    with pytest.raises(ValueError, match="`widths` must hold .* three stages"):
        nm.models.cifar_resnet(8, widths=(8,) * 4)
    with pytest.raises(ValueError, match="must not fall .*use 'conv'"):
        nm.models.cifar_resnet(8, widths=(16, 8, 8), shortcut="pad")
    with pytest.raises(ValueError, match="`model` must be a variational"):
        nm.models.split_vae(nm.models.lenet())


@pytest.mark.torch  # Sizes are the same elsewhere, and slower to build.
def test_models_have_the_published_sizes():
    # torchvision's ResNet18 has as many, trainable.
    model = nm.models.resnet18()
    trainable = sum(np.prod(v.shape) for v in model.trainable_variables)
    assert trainable == 11_689_512
    assert nm.models.unet(21, (100, 60, 3)).output_shape == (None, 100, 60, 21)
    anything = nm.models.unet(2, (None, None, 1), (4, 4, 4, 4), (4,) * 5)
    assert anything(np.zeros((1, 64, 32, 1))).shape == (1, 64, 32, 2)
