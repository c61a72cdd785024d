"""The demo, on the digits that scikit-learn ships."""

import json

import keras
import pytest


# One backend: the script is the same on all, and takes minutes on the others.
@pytest.mark.tensorflow
def test_demo_runs_end_to_end(example, tmp_path):
    table = example("mnist_lenet").main(
        ["--quick", "--dataset", "digits", "--output", str(tmp_path)]
    )
    methods = {row["method"] for row in table.rows}
    assert methods == {"morph", "cut", "floor", "individual"}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["dataset"] == "digits" and len(result["rows"]) == 12
    assert (tmp_path / "sizes.png").exists()
    assert (tmp_path / "saved_model" / "saved_model.pb").exists()
    small = keras.saving.load_model(tmp_path / "quarter.keras")
    assert small.get_layer("conv3").filters == 32


def test_demo_says_when_mnist_cannot_be_had(
    example, tmp_path, monkeypatch, capsys
):
    pytest.importorskip("tensorflow_datasets")
    import tensorflow_datasets as tfds

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "load", fail)
    name, (x, y), _ = example("mnist_lenet").load_data("auto")
    assert name == "digits" and x.shape == (1437, 28, 28, 1)
    assert 0.0 <= x.min() and x.max() <= 1.0 and y.max() == 9
    assert "(ConnectionError: no network)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--dataset digits"):
        example("mnist_lenet").load_data("mnist")
