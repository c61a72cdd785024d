"""Images for the benchmarks."""


def load(name):
    """Images in 0..1 and labels, of the training and the test set."""
    import tensorflow_datasets as tfds

    splits = tfds.load(
        name, split=["train", "test"], batch_size=-1, as_supervised=True
    )
    return [
        (x.astype("float32") / 255.0, y.astype("int32"))
        for x, y in tfds.as_numpy(splits)
    ]
