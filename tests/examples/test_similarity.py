"""The study of similarity, on a little of MNIST."""

import json

import numpy as np
import pytest


# One backend: the script is the same on all, and takes minutes on the others.
@pytest.mark.tensorflow
@pytest.mark.usefixtures("mnist")
def test_study_runs_end_to_end(example, tmp_path):
    study = example("similarity")
    cka, kl = study.main(["--quick", "--output", str(tmp_path)])
    labels = [f"{kind} {r}" for kind in study.KINDS for r in ("1", "0.25")]
    for result in (cka, kl):
        assert result.labels == labels
        assert np.isfinite(result.matrix).all()
    np.testing.assert_allclose(np.diagonal(cka.matrix), 1.0)
    np.testing.assert_array_equal(np.diagonal(kl.matrix), 0.0)
    for name in ("cka", "cka_all", "kl", "kl_all"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["dataset"] == "mnist" and result["layer"] == "conv3"
    assert result["cka"]["matrix"] == cka.matrix.tolist()
    assert result["kl"]["labels"] == labels and len(result["rows"]) == 6


def test_study_says_when_its_data_cannot_be_had(example, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(SystemExit, match="'mnist'.*no network.*TFDS_DATA_DIR"):
        example("common").load_arrays("mnist")
