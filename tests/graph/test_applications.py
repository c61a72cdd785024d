"""The architectures of `keras.applications`, without pretrained weights."""

import keras
import numpy as np
import pytest
from keras import ops

import keras_neumeta as nm

SIDES = {"Inception": 75, "Xception": 71}
QUICK = ("MobileNetV3Small",)
NAMES = sorted(
    name
    for name in dir(keras.applications)
    if name[0].isupper() and callable(getattr(keras.applications, name))
)


def build(name):
    side = next((s for k, s in SIDES.items() if name.startswith(k)), 32)
    model = getattr(keras.applications, name)(
        weights=None, input_shape=(side, side, 3), classifier_activation=None
    )
    random = np.random.default_rng(0)
    for variable in model.variables:
        shape = tuple(variable.shape)
        if variable.path.endswith(("moving_mean", "beta", "bias")):
            variable.assign(random.normal(size=shape) * 0.1)
        elif variable.path.endswith("moving_variance"):
            variable.assign(random.uniform(0.8, 1.2, shape))
    return model, random.uniform(0, 255, (1, side, side, 3)).astype("float32")


def same(first, second):
    first, second = (ops.convert_to_numpy(x) for x in (first, second))
    assert np.isfinite(first).all()
    np.testing.assert_allclose(first, second, atol=1e-3 * np.abs(first).max())


@pytest.mark.tensorflow  # The others compile or run these for minutes.
@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)
        for name in NAMES
    ],
)
def test_trace_smooth_morph_save_and_cut(name, tmp_path):
    model, x = build(name)
    graph = nm.trace(model)
    assert graph.count_params() == model.count_params()
    assert graph.morphable_share > 0.95
    smoothed = nm.smooth(model, effort=0, verbose=False)
    same(model(x, training=False), smoothed(x, training=False))
    hyper = nm.ManifoldHyperModel(smoothed, sampler="uniform", smooth=False)
    for ratio in (0.5, 0.25):
        small = hyper.morph(ratio)
        assert small.count_params() == graph.count_params(graph.sizes(ratio))
        small.save(tmp_path / "small.keras")
        again = keras.saving.load_model(tmp_path / "small.keras")
        same(small(x, training=False), again(x, training=False))
    pruned = nm.cut(model, 0.5)
    assert pruned.count_params() == graph.count_params(graph.sizes(0.5))
    assert pruned(x, training=False).shape == (1, 1000)
