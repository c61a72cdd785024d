"""How the library's own classes and their seed generators are saved."""

import keras
from keras import ops

from keras_neumeta.version import __version__

# Of what a hypermodel saves; see CONTRIBUTING.
FILE_VERSION = 1

register_serializable = keras.saving.register_keras_serializable(
    package="keras_neumeta"
)


def checked_config(config, keys):
    """A saved config without its version, if this version can read it.

    Args:
        config: Dict that `get_config` returned, its version among it.
        keys: Names that this version saves. Files of older versions may lack
            some.

    Raises:
        ValueError: If it was saved by a newer version, or is not complete.
    """
    config = dict(config)
    version = config.pop("version", 1)
    if version not in range(1, FILE_VERSION + 1):
        raise ValueError(
            "The hypermodel was saved by another version of keras_neumeta: "
            f"expected a file version of 1 to {FILE_VERSION}, which is what "
            f"keras_neumeta {__version__} reads. Received: {version!r}. "
            "Update keras_neumeta."
        )
    missing = sorted(keys - config.keys())
    if missing and version == FILE_VERSION:
        raise ValueError(
            "The config of the hypermodel is not complete, the file may be "
            f"damaged: expected the entries {sorted(keys)}. Missing: "
            f"{missing}. Save the hypermodel again."
        )
    return config


def save_generator(store, key, generator):
    """Writes the state of a seed generator, which Keras saves nowhere.

    Args:
        store: As for `save_own_variables` of a layer.
        key: Where in the store.
        generator: `keras.random.SeedGenerator`.
    """
    store[key] = ops.convert_to_numpy(generator.state)


def load_generator(store, key, generator):
    """Reads what `save_generator` wrote.

    Returns:
        Dict of the rest of the store, for the layer's own variables.
    """
    generator.state.assign(store[key])
    return {name: store[name] for name in store.keys() if name != key}
