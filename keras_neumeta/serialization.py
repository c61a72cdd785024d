"""How the library's own classes and their seed generators are saved."""

import keras
from keras import ops

register_serializable = keras.saving.register_keras_serializable(
    package="keras_neumeta"
)


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
