"""Settings and fixtures that every test shares.

One suite serves the three backends: choose one with `KERAS_BACKEND`. Tests
without a backend marker run on all of them; `@pytest.mark.tensorflow`, `jax`
and `torch` restrict a test to the backends they name.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Several pytest workers may share one GPU.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# One thread each: the sums of two processes have one order, and the workers
# share the processors.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
)
# Agg draws without a display.
os.environ.setdefault("MPLBACKEND", "Agg")

if (
    os.environ.get("KERAS_BACKEND") == "jax"
    and os.environ.get("HYPOTHESIS_PROFILE") != "slow"
):
    # The quick tests spend their time on compiling, hardly any on running.
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_backend_optimization_level=0"
    )

if os.environ.get("KERAS_BACKEND") == "torch":
    # PyTorch goes first: imported after TensorFlow or JAX, it may find their
    # versions of shared libraries already loaded.
    import torch  # noqa: F401

import hypothesis
import keras
import numpy as np
import pytest

from .data_sets import prepared

BACKENDS = ("tensorflow", "jax", "torch")

hypothesis.settings.register_profile(
    "normal", derandomize=True, deadline=None, max_examples=25
)
hypothesis.settings.register_profile(
    "slow", derandomize=True, deadline=None, max_examples=250
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))


def use_full_float32():
    """Switches off TF32, so that GPUs compare as exactly as CPUs."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_tensor_float_32_execution(False)
    elif backend == "jax":
        import jax

        jax.config.update("jax_default_matmul_precision", "highest")
    elif backend == "torch":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False


def pytest_configure(config):
    if keras.backend.backend() not in BACKENDS:
        raise pytest.UsageError(
            f"Expected KERAS_BACKEND to be one of {BACKENDS}. Received: "
            f"{keras.backend.backend()!r}."
        )
    use_full_float32()


def pytest_report_header(config):
    backend = keras.backend.backend()
    backend_version = __import__(backend).__version__
    return (
        f"keras {keras.__version__}, backend {backend} {backend_version}, "
        f"numpy {np.__version__}, hypothesis profile "
        f"{hypothesis.settings.get_current_profile_name()}"
    )


def pytest_collection_modifyitems(items):
    backend = keras.backend.backend()
    for item in items:
        wanted = [name for name in BACKENDS if item.get_closest_marker(name)]
        if wanted and backend not in wanted:
            reason = f"runs on {', '.join(wanted)} only, not on {backend}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def fresh_keras():
    """Gives each test the same seed and fresh layer names."""
    # Garbage collection would add 0.2 seconds to each test.
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    # Set per test: `clear_session` forgets it.
    keras.config.disable_traceback_filtering()


@pytest.fixture(scope="session")
def mnist():
    """A part of MNIST as `(x_train, y_train), (x_test, y_test)`.

    The images are uint8 arrays of shape (num_images, 28, 28, 1), the labels
    int64 arrays of shape (num_images,): 10,000 for training and 2,000 for
    testing, read in 2 seconds instead of 9 for all. Nothing is downloaded:
    without a prepared copy below `TFDS_DATA_DIR` the test is skipped.
    """
    data_dir = prepared("mnist")
    tensorflow = pytest.importorskip("tensorflow")
    import tensorflow_datasets as tfds

    if keras.backend.backend() != "tensorflow":
        # TensorFlow only reads the files here.
        tensorflow.config.set_visible_devices([], "GPU")
    return tfds.as_numpy(
        tfds.load(
            "mnist",
            split=["train[:10000]", "test[:2000]"],
            data_dir=data_dir,
            download=False,
            batch_size=-1,
            as_supervised=True,
        )
    )
