"""The examples of each task, end to end on little data."""

import hashlib
import json
import re
import shutil
import tarfile
import types

import keras
import numpy as np
import pytest

import keras_neumeta as nm

from ..data_sets import beside, prepared

# The scripts are the same on all backends, and slower on the others, where
# one of them runs too.
pytestmark = pytest.mark.tensorflow


def arguments(folder, *more):
    little = "--quick --limit 32 --batch-size 16 --base-epochs 1 --epochs 1"
    words = [*little.split(), "--ratios", "1", "0.5"]
    return [*words, "--output", str(folder), *map(str, more)]


def check_outputs(table, folder, *pictures):
    rows = json.loads((folder / "result.json").read_text())["rows"]
    assert len(rows) == len(table.rows)
    metrics = [row[name] for row in rows for name in table.metrics]
    assert np.isfinite(metrics).all()
    for name in ("sizes.png", *pictures):
        assert (folder / name).stat().st_size > 1000
    # A copy of the full size, cut at full size, is the same network.
    full = {row["method"]: row for row in rows if row["ratio"] == 1.0}
    for name in table.metrics:
        assert full["morph"][name] == pytest.approx(full["cut"][name], rel=1e-3)


def write_photos(folder, number=8, size=40):
    """Random images of two classes, for training and testing."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cats", "dogs"):
            (folder / part / name).mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 255, (size, size + index, 3))
                keras.utils.save_img(
                    folder / part / name / f"{index}.png", pixels
                )


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """Folder with tiny data sets and networks, right and wrong ones."""
    folder = tmp_path_factory.mktemp("toys")
    write_photos(folder / "photos", number=3, size=32)
    random = np.random.default_rng(0)
    x = random.integers(0, 255, (20, 32, 32, 3)).astype("uint8")
    y = random.integers(0, 4, (20, 32, 32)).astype("uint8")
    maps = {"x_train": x, "y_train": y, "x_test": x[:4], "y_test": y[:4]}
    for name, arrays in {
        "images": {"x": x},
        "floats": {"x": x / 255.0},
        "gray": {"x": x[..., 0]},
        "two_sizes": {"x_train": x, "x_test": x[:, :16]},
        "maps": maps,
        "float_maps": {**maps, "y_test": maps["y_test"] / 1.0},
        "small_maps": {**maps, "y_train": y[:, :16]},
        "more_classes": {**maps, "y_test": maps["y_test"] + np.uint8(2)},
        "negative": {**maps, "y_train": y.astype("int8") - np.int8(1)},
    }.items():
        np.savez(folder / f"{name}.npz", **arrays)
    shape = (32, 32, 3)
    lenet = nm.models.lenet((4, 4, 4), 2, shape)
    lenet.save(folder / "lenet.keras")
    nm.ManifoldHyperModel(lenet).save(folder / "hyper.keras")
    same = keras.Sequential([keras.Input(shape), keras.layers.ReLU()])
    same.save(folder / "same.keras")
    (folder / "broken.keras").write_text("no network")
    return folder


PHOTOS = ["--dataset", "photos", "--image-size", "32"]
RESNET = [*PHOTOS, "--model", "resnet8", "--base"]
MAPS = ["--dataset", "maps.npz"]
IMAGES = ["--dataset", "images.npz"]


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("classification", ["--limit", "0"], "limit: must be a whole number"),
        ("depth", ["--limit", "-5"], "least 1. Received: -5"),
        ("generation", ["--batch-size", "-1"], "batch-size: must be a whole"),
        ("segmentation", ["--image-size", "0"], "image-size: must be a whole"),
        ("depth", ["--widths", "8", "0", "8"], "widths: must be a whole"),
        ("generation", ["--latent", "x"], "latent: .* Received: x"),
        ("depth", ["--epochs", "-1"], "epochs: .* at least 0. Received: -1"),
        ("depth", ["--learning-rate", "nan"], "must be a positive number"),
        ("similarity", ["--epochs", "0"], "epochs: must be a whole number"),
        ("generation", ["--seed", "-1"], "seed: must be a whole number"),
        ("depth", ["--output", "maps.npz"], "output must be a folder"),
        ("several_devices", ["--devices", "0"], "devices: must be a whole"),
        ("classification", [*RESNET, "nope.npz"], "'nope.npz' does not exist"),
        ("classification", [*RESNET, "images.npz"], "does not fit 'resnet8'"),
        ("classification", [*RESNET, "broken.keras"], "cannot be loaded"),
        ("classification", [*RESNET, "hyper.keras"], "not a ManifoldHyperMod"),
        ("classification", [*RESNET, "same.keras"], r"needs \(2,\)"),
        ("segmentation", [*MAPS, "--base", "lenet.keras"], r"32, 32, 3\). Gi"),
        ("generation", [*IMAGES, "--base", "same.keras"], "must be a variati"),
        (
            "classification",
            [*PHOTOS, "--image-size", "16", "--base", "lenet.keras"],
            r"takes images of shape \(32, 32, 3\)",
        ),
        (
            "classification",
            [*PHOTOS, "--model", "lenet", "--widths", "4", "4"],
            "three convolutions",
        ),
        ("depth", [*PHOTOS, "--layers", "9"], "`depth` must be 6 n"),
        ("depth", [*PHOTOS, "--min-depth", "5"], r"`min_depth` .* \[0, 4\]"),
        ("depth", [*PHOTOS, "--base", "lenet.keras"], "no block of 'lenet'"),
        (
            "generation",
            [*IMAGES, "--model", "conv", "--image-size", "30"],
            "multiples of 8",
        ),
        ("generation", ["--dataset", "floats.npz"], "as uint8.*float64"),
        ("generation", ["--dataset", "gray.npz"], r"shape \(20, 32, 32\)"),
        ("generation", ["--dataset", "two_sizes.npz"], "images of one shape"),
        ("segmentation", ["--dataset", "float_maps.npz"], "'y_test' .* float"),
        ("segmentation", ["--dataset", "small_maps.npz"], "'y_train' .* 16"),
        ("segmentation", ["--dataset", "more_classes.npz"], "0 to 2 .*5"),
        ("segmentation", ["--dataset", "negative.npz"], "Received: -1 to"),
    ],
    ids=str,
)
def test_wrong_options_end_in_a_line(
    example, toys, tmp_path, monkeypatch, capsys, script, words, message
):
    monkeypatch.chdir(toys)
    monkeypatch.setattr(
        keras.Model, "fit", lambda *_, **__: pytest.fail("trained")
    )
    with pytest.raises(SystemExit) as caught:
        example(script).main(
            ["--quick", "--output", str(tmp_path / "out"), *words]
        )
    if caught.value.code == 2:
        text = capsys.readouterr().err.strip().splitlines()[-1]
    else:
        text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text


@pytest.mark.usefixtures("mnist")
def test_wrong_layer_ends_in_a_line(example, tmp_path, monkeypatch):
    monkeypatch.setattr(
        keras.Model, "fit", lambda *_, **__: pytest.fail("trained")
    )
    words = ["--quick", "--layer", "nope", "--output", str(tmp_path)]
    with pytest.raises(SystemExit, match="--layer: .*'nope'.* 'conv3'"):
        example("similarity").main(words)


@pytest.mark.jax
@pytest.mark.torch
def test_classification_of_cifar(example, tmp_path):
    prepared("cifar10")
    table = example("classification").main(
        arguments(tmp_path, "--widths", 4, 4, 8)
    )
    check_outputs(table, tmp_path)


def test_classification_of_folders_as_imagenet(example, tmp_path):
    write_photos(tmp_path / "photos")
    table = example("classification").main(
        arguments(
            tmp_path / "out",
            *["--dataset", tmp_path / "photos", "--model", "resnet18"],
            *["--image-size", 32, "--widths", 4, 6, 8, 8],
            *["--base-epochs", 0],
        )
    )
    check_outputs(table, tmp_path / "out")
    base = keras.saving.load_model(tmp_path / "out" / "base.keras")
    assert base.output_shape == (None, 2)


def test_segmentation_of_camvid(example, tmp_path):
    path = beside("camvid_120x160.npz")
    table = example("segmentation").main(
        arguments(
            tmp_path,
            *["--dataset", path, "--limit", 4, "--batch-size", 2],
            *["--base-epochs", 0],
        )
    )
    assert {"miou", "f1"} <= set(table.metrics)
    check_outputs(table, tmp_path, "predictions.png")


def test_generation_of_faces(example, tmp_path):
    table = example("generation").main(
        arguments(tmp_path, "--dataset", beside("faces_64x64.npz"))
    )
    assert {"mse", "negative_elbo"} <= set(table.metrics)
    check_outputs(table, tmp_path, "images.png")


def test_generation_beside_its_rivals(example, tmp_path, monkeypatch):
    prepared("mnist")
    words = arguments(
        tmp_path,
        *["--dataset", "mnist", "--base-epochs", 0, "--widths", 32, 16],
        *["--compare", "individual", "slimmable", "l1"],
    )
    table = example("generation").main(words)
    check_outputs(table, tmp_path, "images.png")
    rows = {(row["method"], row["ratio"]): row for row in table.rows}
    methods = ("morph", "cut", "individual", "l1", "slimmable")
    assert set(rows) == {
        ("floor", None),
        *((m, r) for m in methods for r in (1.0, 0.5)),
    }
    assert all(row["negative_elbo"] > 0 for row in rows.values())
    for ratio in (1.0, 0.5):
        sizes = {rows[method, ratio]["parameters"] for method in methods}
        assert len(sizes) == 1
    # What is pruned is the network that was trained by itself.
    whole, pruned = rows["individual", 1.0], rows["l1", 1.0]
    assert whole["mse"] == pytest.approx(pruned["mse"], rel=1e-6)
    assert rows["individual", 0.5]["mse"] != rows["l1", 0.5]["mse"]

    # All that is done already is not done again.
    monkeypatch.setattr(
        keras.callbacks.CallbackList,
        "on_epoch_begin",
        lambda *_: pytest.fail("trained again"),
    )
    again = example("generation").main([*words, "--resume"])
    for row, other in zip(table.rows, again.rows, strict=True):
        assert row["mse"] == pytest.approx(other["mse"], rel=1e-6)

    # Another run is not gone on with.
    words += ["--learning-rate", "0.5", "--limit", "64", "--resume"]
    with pytest.raises(
        SystemExit,
        match=r"other options: learning-rate was 0.001, is 0.5; limit was 32, "
        r"is 64\. Give the same",
    ):
        example("generation").main(words)


def test_depth(example, tmp_path):
    prepared("mnist")
    table = example("depth").main(arguments(tmp_path, "--layers", 8))
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert len(rows) == len(table.rows)
    number = {(row["method"], row["ratio"]): row["parameters"] for row in rows}
    # The block of the first stage can be left out, the others always stay.
    for depth in range(2):
        assert number[f"{depth} blocks", 0.5] < number[f"{depth} blocks", 1.0]
        if depth:
            fewer = number[f"{depth - 1} blocks", 1.0]
            assert fewer < number[f"{depth} blocks", 1.0]
    assert (tmp_path / "sizes.png").stat().st_size > 1000
    # The smallest in depth and width.
    small = keras.saving.load_model(tmp_path / "smallest.keras")
    assert small.count_params() == number["0 blocks", 0.5]


def test_void_is_the_largest_label_another_or_none(example, toys, capsys):
    segmentation = example("datasets").segmentation
    labels = np.load(toys / "maps.npz")["y_train"]
    for given, void, num_classes in (
        ("default", 3, 3),
        (0, 0, 4),
        (None, None, 4),
    ):
        data = segmentation(str(toys / "maps.npz"), void=given)
        assert (data.num_classes, data.void) == (num_classes, void)
        share = np.mean(labels == (-1 if void is None else void))
        assert f"maps: {share:.1%} of" in capsys.readouterr().out
    parse = example("segmentation").label
    assert (parse("none"), parse("11"), parse("-1")) == (None, 11, -1)


def test_every_class_of_voc_has_its_color(example, tmp_path, monkeypatch):
    segmentation = example("segmentation")
    truth = np.arange(22).reshape(1, 2, 11) % 22
    pictures = {}
    monkeypatch.setattr(
        segmentation.common,
        "picture",
        lambda _, rows, __: pictures.update(rows),
    )
    data = types.SimpleNamespace(
        examples=lambda number: (np.zeros((1, 2, 11, 3)), truth), void=21
    )
    options = types.SimpleNamespace(ratios=[])
    segmentation.draw(tmp_path, None, data, options)
    assert len(np.unique(pictures["truth"].reshape(-1, 3), axis=0)) == 22


def test_depths_are_told_apart_in_the_plot(example, tmp_path):
    depth = example("depth")
    table = nm.Sweep(["accuracy"])
    for blocks in range(13):
        for title, ratios in (
            ("blocks", (1.0, 0.5)),
            (f"blocks, {depth.UNTRAINED}", (1.0,)),
        ):
            for ratio in ratios:
                row = {"method": f"{blocks} {title}", "ratio": ratio}
                size = (blocks + 1) * ratio * 1000
                table.rows.append({**row, "parameters": size, "accuracy": 0.5})
    lines = depth.draw(tmp_path / "sizes.png", "accuracy", table).axes[0].lines
    assert len({line.get_color() for line in lines}) == len(lines) == 14
    (untrained,) = [x for x in lines if x.get_label() == depth.UNTRAINED]
    assert len(untrained.get_xdata()) == 13
    assert (tmp_path / "sizes.png").stat().st_size > 1000


def test_the_smallest_ratio_is_trained(example):
    common = example("common")
    for ratios, smallest in (((1.0, 0.5), 0.25), ((0.5, 0.125), 0.125)):
        options = types.SimpleNamespace(ratios=ratios, seed=1)
        sampler = common.sampler_of(options)
        expected = nm.Sandwich(smallest, seed=1).get_config()
        assert sampler.get_config() == {**expected, "name": sampler.name}


def test_f1_and_iou_without_void(example):
    segmentation = example("segmentation")
    truth = np.array([[0, 0, 1, 1, 9, 9]])
    logits = np.eye(3, dtype="float32")[[[0, 1, 1, 1, 2, 0]]]
    settings = {"num_classes": 3, "ignore_class": 9, "sparse_y_pred": False}
    metric = segmentation.MeanF1(**settings)
    metric.update_state(truth, logits)
    from sklearn.metrics import f1_score

    expected = f1_score([0, 0, 1, 1], [0, 1, 1, 1], average="macro")
    np.testing.assert_allclose(metric.result(), expected, rtol=1e-6)


def write_voc(folder):
    """An image for training and one for testing, as in VOC 2012."""
    root = folder / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "SegmentationObject"):
        (root / name).mkdir(parents=True)
    (root / "Annotations").mkdir()
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    mask = np.zeros((30, 50, 3), "uint8")
    mask[:15] = [128, 0, 0]  # an aeroplane, class 1
    mask[15:17] = [224, 224, 192]  # its border
    for part, name in (("train", "one"), ("val", "two")):
        (root / "ImageSets" / "Segmentation" / f"{part}.txt").write_text(name)
        image = root / "JPEGImages" / f"{name}.jpg"
        keras.utils.save_img(image, mask, scale=False)
        for kind in ("Class", "Object"):
            path = root / f"Segmentation{kind}" / f"{name}.png"
            keras.utils.save_img(path, mask, scale=False)
        (root / "Annotations" / f"{name}.xml").write_text(
            "<annotation><size><width>50</width><height>30</height></size>"
            "</annotation>"
        )


def test_voc_is_read_with_its_void(example, tmp_path):
    pytest.importorskip("keras_cv")
    write_voc(tmp_path)
    data = example("datasets").segmentation(
        "voc2012", image_size=32, folder=str(tmp_path), batch_size=1
    )
    x, y = next(iter(data.test))
    assert x.shape == (1, 32, 32, 3) and float(np.max(x)) <= 1.0
    assert set(np.unique(y)) == {0, 1, 255}
    assert data.num_classes == 21 and data.void == 255


def test_segmentation_of_voc(example, tmp_path):
    pytest.importorskip("keras_cv")
    write_voc(tmp_path / "voc")
    table = example("segmentation").main(
        arguments(
            tmp_path / "out",
            *["--dataset", "voc2012", "--folder", tmp_path / "voc"],
            *["--image-size", 32, "--base-epochs", 0],
        )
    )
    check_outputs(table, tmp_path / "out", "predictions.png")
    base = keras.saving.load_model(tmp_path / "out" / "base.keras")
    assert base.output_shape == (None, 32, 32, 21)


def test_voc_is_downloaded_once(example, tmp_path, monkeypatch, capsys):
    pytest.importorskip("keras_cv")
    datasets = example("datasets")
    write_voc(tmp_path / "published")
    archive = tmp_path / "voc.tar"
    with tarfile.open(archive, "w") as file:
        file.add(tmp_path / "published" / "VOCdevkit", "VOCdevkit")
    monkeypatch.setattr(datasets, "VOC_URL", archive.as_uri())
    checksum = hashlib.md5(archive.read_bytes()).hexdigest()
    monkeypatch.setattr(datasets, "VOC_MD5", checksum)
    folder = tmp_path / "new" / "voc"
    for _ in range(2):
        data = datasets.segmentation("voc2012", 1, 32, folder=str(folder))
        assert data.steps == 1
        assert int(next(iter(data.test))[1].numpy().max()) == 255
        # What is extracted is enough.
        for path in (archive, folder / "voc2012_archive"):
            path.unlink(missing_ok=True)
    assert capsys.readouterr().out.count("Downloading") == 1
    with pytest.raises(SystemExit, match="extract it in .*/other' .--folder"):
        datasets.segmentation("voc2012", folder=str(tmp_path / "other"))


def test_pipelines_shuffle_and_augment(example, tmp_path):
    datasets = example("datasets")
    # Each image says its number, on the left half only.
    images = np.zeros((40, 8, 8, 3), "uint8")
    images[:, :, :4] = np.arange(1, 41)[:, None, None, None]
    labels = images[..., 0]
    np.savez(
        tmp_path / "toy.npz",
        **{"x_train": images, "y_train": labels},
        **{"x_test": images[:4], "y_test": labels[:4]},
    )
    data = datasets.segmentation(str(tmp_path / "toy.npz"), 8)
    assert data.steps == 5 and data.input_shape == (8, 8, 3)
    epochs = [list(data.train.as_numpy_iterator()) for _ in range(2)]
    orders = [
        np.concatenate([y.max(axis=(1, 2)) for _, y in epoch])
        for epoch in epochs
    ]
    assert sorted(orders[0]) == list(range(1, 41))
    assert list(orders[0]) != list(orders[1])
    mirrored = []
    for x, y in epochs[0]:
        # Image and labels are mirrored together.
        np.testing.assert_allclose(x[..., 0] * 255, y, atol=1e-3)
        mirrored += list(y[:, 0, 0] == 0)
    assert 0 < sum(mirrored) < 40
    first, _ = data.examples(4)
    np.testing.assert_allclose(first, images[:4] / 255.0, rtol=1e-6)


def test_test_images_are_cropped_at_the_scale_of_training(example, tmp_path):
    # White but for a black frame, which the crops leave out or nearly so.
    image = np.full((72, 72, 3), 255)
    image[:4] = image[-4:] = image[:, :4] = image[:, -4:] = 0
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for index in range(5):
            path = tmp_path / name / f"{index}.png"
            keras.utils.save_img(path, image, scale=False)
    # Without train/, a fifth becomes the test set.
    data = example("datasets").classification(str(tmp_path), 4, 64)
    assert data.steps == 2 and data.input_shape == (64, 64, 3)
    x, y = data.examples(2)
    assert len(y) == 2 and x.min() == 1.0
    (x, _) = next(data.train.as_numpy_iterator())
    assert (x.reshape(4, -1).max(axis=1) == 1.0).all() and x.min() == 0.0


def test_a_limit_takes_the_same_images_at_each_pass(example, tmp_path):
    for index in range(40):
        path = tmp_path / ("odd" if index % 2 else "even") / f"{index}.png"
        path.parent.mkdir(exist_ok=True)
        image = np.full((20, 20, 3), 6 * index)
        keras.utils.save_img(path, image, scale=False)
    datasets = example("datasets")
    for data in (
        datasets.classification(str(tmp_path), 2, 16, limit=8),
        datasets.images(str(tmp_path), 2, 16, limit=8),
    ):
        for part, number in ((data.train, 8), (data.test, 4)):
            passes = []
            for _ in range(3):
                batches = list(part.as_numpy_iterator())
                values = np.concatenate([x for x, _ in batches])[:, 0, 0, 0]
                values = np.round(values * 255 / 6).astype(int)
                if data.num_classes:  # even, odd
                    labels = np.concatenate([y for _, y in batches])
                    np.testing.assert_array_equal(values % 2, labels)
                passes.append(set(values))
            assert len(passes[0]) == number
            assert passes[0] == passes[1] == passes[2]


def test_files_beside_the_data_sets_are_found(example, toys, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(toys / "tensorflow_datasets"))
    assert example("datasets").images("images.npz").steps == 1


def test_images_of_mnist_are_resized(example):
    prepared("mnist")
    data = example("datasets").images("mnist", image_size=16, limit=4)
    assert data.input_shape == (16, 16, 1)


def test_unlabelled_folder_of_images(example, tmp_path):
    for index in range(20):
        path = tmp_path / f"{index}.png"
        image = np.full((20, 24 + index, 3), 10 * index)
        keras.utils.save_img(path, image, scale=False)
    data = example("datasets").images(str(tmp_path), 6, 16)
    assert data.steps == 3 and data.input_shape == (16, 16, 3)
    x, same = data.examples(2)
    assert len(x) == 2
    np.testing.assert_array_equal(x, same)
    seen = [x, *(x for x, _ in data.train.as_numpy_iterator())]
    values = np.concatenate(seen)[:, 0, 0, 0] * 255
    assert set(np.round(values)) == set(range(0, 200, 10))


@pytest.mark.parametrize("name", ["imagenet2012", "celeb_a"])
def test_data_sets_that_ask_for_much_room(example, name, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    datasets = example("datasets")
    features = {"image": tfds.features.Image(shape=(None, None, 3))}
    if name == "imagenet2012":
        features["label"] = tfds.features.ClassLabel(num_classes=1000)
    colors = {"train": 200, "validation": 100, "test": 0}

    class Photos(tfds.testing.DummyDataset, skip_registration=True):
        """Of the features and splits of the real one, a color per split."""

        def _info(self):
            features_ = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=features_)

        def _split_generators(self, _):
            return {part: self._examples(part) for part in colors}

        def _examples(self, part):
            for index in range(8):
                image = np.full((20, 20 + index, 3), colors[part], "uint8")
                example = {"image": image, "label": 999}
                yield index, {key: example[key] for key in features}

    monkeypatch.setattr(tfds, "builder", lambda _: Photos(data_dir=tmp_path))
    read = datasets.images if name == "celeb_a" else datasets.classification
    data = read(name, 3, 16, limit=6)
    assert data.steps == 2 and data.input_shape == (16, 16, 3)
    (x, y) = next(data.train.as_numpy_iterator())
    np.testing.assert_allclose(x, 200 / 255, rtol=1e-6)
    tested = np.concatenate([x for x, _ in data.test.as_numpy_iterator()])
    # From validation: ImageNet's own test set has no labels.
    np.testing.assert_allclose(tested, 100 / 255, rtol=1e-6)
    assert len(tested) == 3
    if name == "imagenet2012":
        assert data.num_classes == 1000 and list(y) == [999] * 3
    else:
        np.testing.assert_array_equal(x, y)


def test_data_that_cannot_be_had(example, tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    datasets = example("datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(tfds, "builder", fail)
    with pytest.raises(SystemExit, match="'cifar100' .* Set TFDS_DATA_DIR"):
        datasets.classification("cifar100")
    with pytest.raises(SystemExit, match="'celeb_a' .* Set TFDS_DATA_DIR"):
        datasets.images("celeb_a")
    # No program can download this one.
    with pytest.raises(SystemExit, match="Put ILSVRC2012_img_train.tar and"):
        datasets.classification("imagenet2012")
    with pytest.raises(SystemExit, match="one of mnist, .* no folder 'nope'"):
        datasets.classification("nope")
    with pytest.raises(SystemExit, match="no file 'nope.npz'"):
        datasets.segmentation("nope.npz")
    with pytest.raises(SystemExit, match="one of mnist, .* no file 'nope.npz'"):
        datasets.images("nope.npz")
    np.savez(tmp_path / "other.npz", z=np.zeros(3))
    with pytest.raises(SystemExit, match="lacks .*'x_train'.* holds .'z'"):
        datasets.segmentation(str(tmp_path / "other.npz"))
    with pytest.raises(SystemExit, match="holds .'z'.: give a file"):
        datasets.images(str(tmp_path / "other.npz"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit, match="cannot be read as images"):
        datasets.classification(str(tmp_path / "empty"))
    shutil.rmtree(tmp_path / "empty")


def test_data_sets_are_prepared_with_the_pinned_packages(tmp_path):
    testing = pytest.importorskip("tensorflow_datasets").testing
    builder = testing.DummyDataset(data_dir=tmp_path)
    builder.download_and_prepare()
    assert len(list(builder.as_dataset(split="train"))) == 3


def test_packages_that_are_missing_are_named(example, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")

    def fail(*args, **kwargs):
        raise ModuleNotFoundError("No module named 'one.two'", name="one.two")

    monkeypatch.setattr(tfds, "load", fail)
    with pytest.raises(
        SystemExit, match="'mnist'.*Install it: pip install one$"
    ):
        example("common").load_arrays("mnist")


def test_only_a_training_deletes_the_progress_of_another(example, tmp_path):
    beside_it = tmp_path / "progress" / "notes.txt"
    progress = tmp_path / ".training_progress" / "network" / "done"
    for path in (beside_it, progress):
        path.parent.mkdir(parents=True)
        path.touch()
    classification = example("classification")
    with pytest.raises(SystemExit, match="no folder 'cifra10'"):
        classification.main(arguments(tmp_path, "--dataset", "cifra10"))
    assert progress.exists()
    write_photos(tmp_path / "photos", number=2)
    words = ["--dataset", tmp_path / "photos", "--image-size", 24]
    classification.main(
        arguments(
            *[tmp_path, *words, "--base-epochs", 0],
            *["--model", "lenet", "--widths", 2, 2, 2],
        )
    )
    assert not progress.exists() and beside_it.exists()
