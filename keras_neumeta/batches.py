"""Reads inputs in batches, from arrays or from a dataset."""

import numbers

import keras
from keras import ops

BATCH_SIZE = 128


def batches(argument, data, batch_size=BATCH_SIZE, num_inputs=1):
    """Yields the inputs of each batch as tensors.

    Args:
        argument: Name of the argument that the data came by, for errors.
        data: Inputs (an array, or a list or dict of arrays, cut into
            batches), or an iterable of batches `x` or `(x, y, ...)`.
        batch_size: Examples per batch where `data` is an array.
        num_inputs: Number of inputs of the model, or `None` if unknown.

    Raises:
        TypeError: If `data` is neither arrays nor an iterable.
        ValueError: If the number of arrays is not that of the inputs, or
            `batch_size` not a positive integer.
    """
    if not isinstance(batch_size, numbers.Integral) or batch_size < 1:
        raise ValueError(
            "Argument `batch_size` must be a positive integer. Received: "
            f"batch_size={batch_size!r}"
        )
    arrays = [x for x in keras.tree.flatten(data) if hasattr(x, "shape")]
    if arrays and len(arrays) == len(keras.tree.flatten(data)):
        if num_inputs is not None and len(arrays) != num_inputs:
            raise ValueError(
                f"Argument `{argument}` must hold one array per input "
                f"of the model ({num_inputs}), without labels, or be an "
                "iterable such as a `tf.data.Dataset` of batches `x` or "
                f"`(x, y)`. Received {len(arrays)} arrays."
            )
        length = arrays[0].shape[0]
        for start in range(0, length, batch_size):
            yield keras.tree.map_structure(
                lambda x, start=start: ops.convert_to_tensor(
                    x[start : start + batch_size]
                ),
                data,
            )
        return
    if not hasattr(data, "__iter__") and not hasattr(data, "__getitem__"):
        raise TypeError(
            f"Argument `{argument}` must be arrays of inputs or an "
            f"iterable of batches. Received: {data!r}"
        )
    for batch in data:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        yield keras.tree.map_structure(ops.convert_to_tensor, x)
