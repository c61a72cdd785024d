"""Image data sets as `tf.data` pipelines, the same for every backend.

From tensorflow-datasets, keras-cv (VOC 2012), `.npz` files and folders of
images. A data set that cannot be had ends the program with a line that says
what to do.
"""

import dataclasses
import functools
import os
import pathlib
import sys

import common
import keras
import numpy as np

try:
    import tensorflow as tf
except ImportError:
    sys.exit(
        "The data pipelines of the examples need TensorFlow, whatever the "
        "backend: pip install tensorflow-cpu"
    )

if keras.backend.backend() != "tensorflow":
    # TensorFlow only reads here: the GPU is for the backend.
    tf.config.set_visible_devices([], "GPU")

LABELLED = ("mnist", "fashion_mnist", "cifar10", "cifar100", "imagenet2012")
IMAGES = (*LABELLED, "celeb_a")
# These come as they are; all others are resized.
FIXED_SIZES = ("mnist", "fashion_mnist", "cifar10", "cifar100")
NOT_MIRRORED = ("mnist", "fashion_mnist")
VOC_CLASSES, VOC_VOID = 21, 255
VOC_URL = (
    "https://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
    "VOCtrainval_11-May-2012.tar"
)
VOC_MD5 = "6cd6e144f989b92b3379bac3b3de84fd"
# What to do where no program can download a data set.
BY_HAND = {
    "imagenet2012": "Put ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
    "(image-net.org) into downloads/manual below TFDS_DATA_DIR, or give "
    "--dataset a folder with train and val, and a folder of images per class "
    "in both."
}
SHUFFLED = 10_000  # images held to draw from
CACHED = 100_000  # small images: up to so many stay in memory


@dataclasses.dataclass
class Data:
    """Batches for training and testing.

    Attributes:
        name: Name of the data set.
        train, test: `tf.data.Dataset` of batches `(x, y)`, images in 0..1.
        steps: Batches of one epoch.
        input_shape: Height, width and channels.
        num_classes: Number of classes, `None` where there are none.
        void: Label of pixels that do not count, or `None`.
    """

    name: str
    train: tf.data.Dataset
    test: tf.data.Dataset
    steps: int
    input_shape: tuple
    num_classes: int | None = None
    void: int | None = None

    @property
    def output_shape(self):
        """What a network computes of an image: logits, or another image."""
        labels = tf.nest.flatten(self.train.element_spec)[1].shape[1:]
        classes = () if self.num_classes is None else (self.num_classes,)
        return (*labels, *classes)

    def examples(self, number):
        """The first test images and what belongs to them, as arrays."""
        parts = next(iter(self.test.unbatch().batch(number)))
        return tuple(part.numpy() for part in parts)


def add_labelled(parser, default):
    """Adds the options that `labelled` reads."""
    parser.add_argument(
        "--dataset",
        default=default,
        help=f"{', '.join(LABELLED)}, or a folder\nwith a folder of "
        "images per class (default: %(default)s)",
    )
    parser.add_argument(
        "--image-size",
        type=common.whole(1),
        help="height and width to resize to",
    )


def labelled(options):
    """The `classification` data that the options name."""
    return classification(
        options.dataset,
        options.batch_size,
        options.image_size,
        options.limit,
        seed=options.seed,
    )


def classification(
    source, batch_size=128, image_size=None, limit=None, augment=True, seed=0
):
    """Images and their classes.

    Args:
        source: One of `LABELLED`, or a folder with a folder of images per
            class: below `train` and `test` (or `val`), or directly, of which
            a fifth becomes the test set.
        batch_size: Images per batch.
        image_size: Height and width. Default: of the data; 224 for others.
        limit: Number of training images to use, and of test images half as
            many. Default: all.
        augment: Whether to move and mirror the training images at random.
        seed: Seed of order and augmentation.

    Returns:
        `Data` with batches of images `(batch, height, width, channels)` and
        labels `(batch,)`.
    """
    if source in LABELLED:
        train, test, info = _tfds(source, limit)
        num_classes = info.features["label"].num_classes
    else:
        folder = _folder(source, f"one of {', '.join(LABELLED)}, or a folder")
        train, test, num_classes = _labelled_folder(folder, seed, limit)
    small = source in FIXED_SIZES and image_size is None
    size = None if small else image_size or 224
    layers = []
    if augment and size is None:
        layers = [_moved(0.125, seed)]
    if augment and source not in NOT_MIRRORED:
        layers.append(keras.layers.RandomFlip("horizontal", seed=seed))
    crop = keras.layers.RandomCrop(size, size, seed=seed) if size else None

    def prepare(image, label, training):
        if size is not None:
            # A margin to crop from, at random or the centre: at one scale.
            image = _resized(image, size + size // 8)
            if augment and training:
                image = crop(image, training=True)
            else:
                image = tf.image.resize_with_crop_or_pad(image, size, size)
        return _bytes(image), tf.cast(label, tf.int32)

    return _data(
        source,
        train,
        test,
        prepare,
        batch_size,
        seed,
        lambda x, y: (_applied(layers, x), y),
        keep=size is None,
        num_classes=num_classes,
    )


def segmentation(
    source,
    batch_size=16,
    image_size=None,
    void="default",
    limit=None,
    folder=None,
    seed=0,
):
    """Images and the class of each pixel.

    Args:
        source: `"voc2012"` or the path of an `.npz` file with `x_train`,
            `y_train`, `x_test`, `y_test`: uint8 images `(n, height, width,
            3)` and labels `(n, height, width)`.
        batch_size: Images per batch.
        image_size: Height and width of VOC. Default: 256.
        void: Label that does not count, or `None` where all do. Default: 255
            for VOC; the largest label for a file, as in CamVid.
        limit: Number of training images to use, and of test images half as
            many. Default: all.
        folder: Where VOC is kept. Default: that of keras-cv.
        seed: Seed of order and augmentation.

    Returns:
        `Data` with batches of images `(batch, height, width, 3)` and labels
        `(batch, height, width)`.
    """
    if source == "voc2012":
        train, test = _limited(*_voc(folder, image_size or 256), limit)
        num_classes = VOC_CLASSES
        void = VOC_VOID if void == "default" else void
    else:
        path = _file(source, "voc2012, or an .npz file such as CamVid's")
        arrays = _npz(path, ("x_train", "y_train", "x_test", "y_test"))
        _check_images(path, arrays, ("x_train", "x_test"))
        num_classes, void = _classes_and_void(path, arrays, void)
        train, test = (
            tf.data.Dataset.from_tensor_slices(
                (arrays[f"x_{part}"][:number], arrays[f"y_{part}"][:number])
            )
            for part, number in (
                ("train", limit),
                ("test", _half(limit)),
            )
        )
        source = path.stem

    def prepare(image, mask, training):
        return _bytes(image), tf.cast(mask, tf.int32)

    flip = keras.layers.RandomFlip("horizontal", seed=seed)

    def augment(x, y):
        both = {"images": x, "segmentation_masks": y[..., None]}
        both = flip(both, training=True)
        return both["images"], tf.cast(both["segmentation_masks"], y.dtype)[
            ..., 0
        ]

    return _data(
        source,
        train,
        test,
        prepare,
        batch_size,
        seed,
        augment,
        num_classes=num_classes,
        void=void,
    )


def images(source, batch_size=128, image_size=None, limit=None, seed=0):
    """Images alone, to be reconstructed.

    Args:
        source: One of `IMAGES`, an `.npz` file with uint8 images `x` or
            `x_train` and `x_test`, or a folder of images. Of one set of
            images a tenth becomes the test set.
        batch_size: Images per batch.
        image_size: Height and width to resize to. Default: of the data; 64
            for folders and data sets with images of many sizes.
        limit: Number of training images to use, and of test images half as
            many. Default: all.
        seed: Seed of order and augmentation.

    Returns:
        `Data` with batches of images, twice: `(x, x)`.
    """
    is_file = str(source).endswith(".npz")
    size = image_size
    if size is None and not is_file and source not in FIXED_SIZES:
        size = 64
    layers = []
    choices = f"one of {', '.join(IMAGES)}, an .npz file, or a folder"
    if source in IMAGES:
        train, test, _ = _tfds(source, limit, "image")
    elif is_file:
        path = _file(source, choices)
        arrays = _npz(path)
        if "x_train" in arrays and "x_test" in arrays:
            _check_images(path, arrays, ("x_train", "x_test"))
            train, test = arrays["x_train"], arrays["x_test"]
        elif "x" in arrays:
            _check_images(path, arrays, ("x",))
            kept = len(arrays["x"]) * 9 // 10
            train, test = arrays["x"][:kept], arrays["x"][kept:]
        else:
            sys.exit(
                f"'{path}' holds {sorted(arrays)}: give a file with images "
                "`x`, or `x_train` and `x_test`."
            )
        train = tf.data.Dataset.from_tensor_slices(train[:limit])
        test = tf.data.Dataset.from_tensor_slices(test[: _half(limit)])
        source = path.stem
    else:
        folder = _folder(source, choices)
        train, test = _unlabelled_folder(folder, seed, limit)
    if source not in NOT_MIRRORED:
        layers.append(keras.layers.RandomFlip("horizontal", seed=seed))

    def prepare(image, training):
        if size is not None:
            image = _resized(image, size)
        return _bytes(image)

    return _data(
        source,
        train,
        test,
        prepare,
        batch_size,
        seed,
        lambda x: _applied(layers, x),
        finish=lambda x: (x, x),
    )


# What the three have in common


def _data(
    name,
    train,
    test,
    prepare,
    batch_size,
    seed,
    augment,
    finish=None,
    keep=True,
    **more,
):
    """Prepares, caches, shuffles, batches, augments and finishes.

    Args:
        prepare: Function of one example and `training`, before it is cached.
        augment: Function of a batch for training.
        finish: Function of every batch, at the end.
    """
    train, test = (
        part.map(
            functools.partial(prepare, training=training), tf.data.AUTOTUNE
        )
        for part, training in ((train, True), (test, False))
    )
    number = int(train.cardinality())
    if not number or not int(test.cardinality()):
        sys.exit(f"'{name}' has too few images: none to train or to test on.")
    if keep and number <= CACHED:
        train, test = train.cache(), test.cache()
    batch_size = min(batch_size, number)
    train = (
        train.shuffle(min(number, SHUFFLED), seed=seed)
        .batch(batch_size, drop_remainder=True)
        .map(_scaled)
        .map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    )
    test = test.batch(batch_size).map(_scaled)
    if finish is not None:
        train, test = train.map(finish), test.map(finish)
    spec = tf.nest.flatten(train.element_spec)[0]
    # Each epoch ends with a wait for the next turn of the tuner, up to as
    # long as the epoch took.
    options = tf.data.Options()
    options.autotune.enabled = False
    return Data(
        str(name),
        train.prefetch(2).with_options(options),
        test.prefetch(2).with_options(options),
        number // batch_size,
        tuple(spec.shape[1:]),
        **more,
    )


def _half(limit):
    return None if limit is None else max(limit // 2, 1)


def _limited(train, test, limit):
    if limit is None:
        return train, test
    return train.take(limit), test.take(_half(limit))


def _bytes(image):
    """Of 0 to 255: a quarter of the memory, while it waits for its batch."""
    if image.dtype != tf.uint8:
        image = tf.saturate_cast(tf.round(image), tf.uint8)
    return image


def _scaled(x, *rest):
    x = tf.cast(x, tf.float32) / 255.0
    return (x, *rest) if rest else x


def _applied(layers, x):
    for layer in layers:
        x = layer(x, training=True)
    return x


def _moved(share, seed):
    return keras.layers.RandomTranslation(
        share, share, "constant", interpolation="nearest", seed=seed
    )


def _resized(image, size):
    """Resized to a square, the longer side cropped."""
    side = tf.reduce_min(tf.shape(image)[:2])
    channels = image.shape[-1]
    image = tf.image.resize_with_crop_or_pad(image, side, side)
    image = tf.image.resize(image, (size, size), antialias=True)
    return tf.ensure_shape(image, (size, size, channels))


def _tfds(name, limit, only=None):
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder(name)
        builder.download_and_prepare()
        splits = builder.info.splits
        second = "test" if "label" in builder.info.features else "validation"
        # ImageNet's own test set has no labels.
        if second not in splits or name == "imagenet2012":
            second = "validation"
        parts = [
            tfds.core.ReadInstruction(
                split, to=_at_most(splits[split], part), unit="abs"
            )
            for split, part in (
                ("train", limit),
                (second, _half(limit)),
            )
        ]
        train, test = (
            builder.as_dataset(split=part, shuffle_files=False)
            for part in parts
        )
        info = builder.info
    except Exception as error:
        raise common.NoData(
            name, "tensorflow-datasets", error, BY_HAND.get(name)
        ) from error

    def pick(example):
        if only is not None:
            return example[only]
        return example["image"], example["label"]

    return train.map(pick), test.map(pick), info


def _at_most(split, limit):
    number = split.num_examples
    return number if limit is None else min(number, limit)


def _listed(folder, seed, **options):
    """Files below a folder as Keras lists and splits them, shuffled once.

    Only the list: the images that Keras loads are shuffled anew at each pass,
    and the first ones are others each time.
    """
    try:
        return keras.utils.image_dataset_from_directory(
            folder, batch_size=None, seed=seed, verbose=False, **options
        )
    except ValueError as error:
        sys.exit(
            f"'{folder}' cannot be read as images: {common.first_line(error)}"
        )


def _loaded(paths, *labels):
    """The images of files, and what belongs to them."""

    def load(path, *label):
        image = tf.io.decode_image(
            tf.io.read_file(path), 3, expand_animations=False
        )
        image = tf.ensure_shape(image, (None, None, 3))
        return (image, *label) if label else image

    data = tf.data.Dataset.from_tensor_slices((paths, *labels))
    return data.map(load, tf.data.AUTOTUNE)


def _labelled_folder(folder, seed, limit):
    second = next(
        (
            folder / name
            for name in ("test", "val", "validation")
            if (folder / name).is_dir()
        ),
        None,
    )
    if (folder / "train").is_dir() and second is not None:
        folders = (folder / "train", second)
        train = _listed(folders[0], seed)
        test = _listed(folders[1], seed, class_names=train.class_names)
    else:
        folders = (folder, folder)
        train, test = (
            _listed(folder, seed, validation_split=0.2, subset=subset)
            for subset in ("training", "validation")
        )
    names = train.class_names
    parts = []
    for root, listed, number in (
        (folders[0], train, limit),
        (folders[1], test, _half(limit)),
    ):
        paths = listed.file_paths[:number]
        labels = [
            names.index(pathlib.Path(path).relative_to(root).parts[0])
            for path in paths
        ]
        parts.append(_loaded(paths, labels))
    return *parts, len(names)


def _unlabelled_folder(folder, seed, limit):
    train, test = _listed(
        folder, seed, labels=None, validation_split=0.1, subset="both"
    )
    return (
        _loaded(train.file_paths[:limit]),
        _loaded(test.file_paths[: _half(limit)]),
    )


def _downloaded_voc(folder):
    """Where VOC 2012 lies, downloaded and extracted below a folder.

    By Keras: keras-cv gives it a path for a name, which it no longer takes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return keras.utils.get_file(
        "voc2012",
        VOC_URL,
        file_hash=VOC_MD5,
        extract=True,
        cache_dir=folder,
        cache_subdir="",
    )


def _voc(folder, size):
    folder = pathlib.Path(folder or "~/.keras/pascal_voc_2012").expanduser()
    try:
        from keras_cv.datasets.pascal_voc.segmentation import load

        places = [folder, folder / "voc2012"]
        found = [p for p in places if (p / "VOCdevkit" / "VOC2012").is_dir()]
        place = str(found[0] if found else _downloaded_voc(folder))
        train, test = (load(split, place) for split in ("train", "eval"))
    except Exception as error:
        raise common.NoData(
            "voc2012",
            "keras-cv",
            error,
            f"Connect to a network, or download {VOC_URL} and extract it in "
            f"'{folder}' (--folder), which then holds VOCdevkit/VOC2012.",
        ) from error

    def resize(example):
        image = tf.ensure_shape(example["image"], (None, None, 3))
        mask = tf.ensure_shape(example["class_segmentation"], (None, None, 1))
        image = tf.image.resize(image, (size, size), antialias=True)
        mask = tf.image.resize(mask, (size, size), "nearest")
        return image, mask[..., 0]

    return train.map(resize), test.map(resize)


def _file(source, choices):
    """An `.npz` file: here, or beside the prepared data sets."""
    places = [pathlib.Path(source)]
    if os.environ.get("TFDS_DATA_DIR"):
        places.append(pathlib.Path(os.environ["TFDS_DATA_DIR"]).parent / source)
    for path in places:
        if path.is_file():
            return path
    sys.exit(f"--dataset must be {choices}. There is no file '{source}'.")


def _folder(source, choices):
    folder = pathlib.Path(source)
    if not folder.is_dir():
        sys.exit(f"--dataset must be {choices}. There is no folder '{source}'.")
    return folder


def _npz(path, needed=()):
    try:
        arrays = dict(np.load(path))
    except Exception as error:
        sys.exit(
            f"'{path}' cannot be read as an .npz file: "
            f"{common.first_line(error)}"
        )
    missing = [name for name in needed if name not in arrays]
    if missing:
        sys.exit(
            f"'{path}' lacks {missing}: it holds {sorted(arrays)}. Write them "
            "with numpy.savez."
        )
    return arrays


def _check_images(path, arrays, names):
    for name in names:
        images = arrays[name]
        if images.dtype != np.uint8 or images.ndim != 4:
            sys.exit(
                f"'{path}': '{name}' must hold images (n, height, width, "
                f"channels) as uint8, 0 to 255. Received: {images.dtype} of "
                f"shape {images.shape}."
            )
    shapes = {name: arrays[name].shape[1:] for name in names}
    if len(set(shapes.values())) > 1:
        sys.exit(f"'{path}' must hold images of one shape. Received: {shapes}.")


def _classes_and_void(path, arrays, void):
    """Number of classes and the label that does not count, checked."""
    for part in ("train", "test"):
        labels, needed = arrays[f"y_{part}"], arrays[f"x_{part}"].shape[:3]
        if labels.dtype.kind not in "iu" or labels.shape != needed:
            sys.exit(
                f"'{path}': 'y_{part}' must hold integers of shape {needed}, "
                f"a class per pixel. Received: {labels.dtype} of shape "
                f"{labels.shape}."
            )
    if void == "default":
        void = int(arrays["y_train"].max(initial=0))
    counted = {
        part: arrays[f"y_{part}"][arrays[f"y_{part}"] != void]
        for part in ("train", "test")
    }
    labels = counted["train"]
    num_classes = int(labels.max()) + 1 if labels.size else 0
    for part, labels in counted.items():
        if not labels.size or labels.min() < 0 or labels.max() >= num_classes:
            found = f"{labels.min()} to {labels.max()}" if labels.size else "no"
            sys.exit(
                f"'{path}': the labels of 'y_{part}' must be 0 to "
                f"{num_classes - 1} as in 'y_train', beside void ({void}). "
                f"Received: {found}. --void says another, or `none`."
            )
    share = 1 - counted["train"].size / arrays["y_train"].size
    print(f"{path.stem}: {share:.1%} of the training pixels are void ({void})")
    return num_classes, void
