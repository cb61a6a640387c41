"""The models that devices run, built with TensorFlow: its only home, and loaded only to build.

The bytes depend on this file, on the TensorFlow release, and on the table where one is baked in; so that a
build can be checked against what ships.
"""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from broker.errors import MissingExtraError
from trainer.errors import ParameterError
from trainer.params import Floats

Conversion = Literal["float32", "float16", "dynamic", "int8"]
CONVERSIONS: tuple[Conversion, ...] = ("float32", "float16", "dynamic", "int8")
_REPRESENTATIVE = 500
"""Score functions at most that full int8 sees while it chooses its scales."""


def build_scorer() -> bytes:
    """Build the model that scores a catalogue: ``logits = w · items^T + b``.

    The item table, w and b are inputs, so that one file serves every user, version and catalogue. The op
    is FULLY_CONNECTED with the item table as its weights. Measured on x86-64 with tflite-runtime 2.14,
    one thread, d = 32, in µs, with all inputs set / with w and b set only:

    =========================  ==========  ============
    op                         1,682 rows  100,000 rows
    =========================  ==========  ============
    FULLY_CONNECTED            10 / 6      1,410 / 510
    BATCH_MATMUL, 3-D          11 / 6      1,410 / 520
    BATCH_MATMUL, w a column   27 / 22     2,650 / 1,720
    MUL, SUM                   25 / 20     2,650 / 1,720
    =========================  ==========  ============

    On ai-edge-litert 2.3 FULLY_CONNECTED is as fast, and BATCH_MATMUL twice as slow as here.

    Returns
    -------
    bytes
        A TFLite flatbuffer with one signature: inputs ``items`` (n_items, dim), ``w`` (1, dim) and ``b``
        (1,), output ``logits`` (1, n_items), all float32, n_items and dim of any size. The same bytes
        in every call.

    Raises
    ------
    MissingExtraError
        When TensorFlow is not installed.
    """
    tf = _tensorflow()

    def score(items: Any, w: Any, b: Any) -> dict[str, Any]:
        return {"logits": tf.matmul(w, items, transpose_b=True) + b}

    signature = [
        tf.TensorSpec([None, None], tf.float32, name="items"),
        tf.TensorSpec([1, None], tf.float32, name="w"),
        tf.TensorSpec([1], tf.float32, name="b"),
    ]
    module = tf.Module()
    module.score = tf.function(score, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.score.get_concrete_function()], module
    )
    model: bytes = converter.convert()
    return model


def build_baked(table: Floats, conversion: Conversion, users: tuple[Floats, Floats] | None = None) -> bytes:
    """Build a model with the item table in it: ``logits = w · items^T + b`` of w and b alone.

    Parameters
    ----------
    table : ndarray, shape (n_items, dim), float32
    conversion : str
        ``float32``; ``float16``: the table in half precision; ``dynamic``: the table in 8-bit integers,
        inputs and outputs in floats; ``int8``: everything in 8-bit integers, inputs and outputs too, as
        microcontroller runtimes want it.
    users : tuple of ndarray, shapes (n_users, dim) and (n_users,), float32
        Score functions of real users: ``int8`` needs them to choose the scales of inputs and outputs by.

    Returns
    -------
    bytes
        A TFLite flatbuffer with one signature: inputs ``w`` (1, dim) and ``b`` (1,), output ``logits`` (1,
        n_items). The same bytes in every call.

    Raises
    ------
    MissingExtraError
        When TensorFlow is not installed.
    ParameterError
        When ``int8`` is asked for without users.
    """
    tf = _tensorflow()
    items = tf.constant(table)

    def score(w: Any, b: Any) -> dict[str, Any]:
        return {"logits": tf.matmul(w, items, transpose_b=True) + b}

    module = tf.Module()
    signature = [
        tf.TensorSpec([1, table.shape[1]], tf.float32, name="w"),
        tf.TensorSpec([1], tf.float32, name="b"),
    ]
    module.score = tf.function(score, input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.score.get_concrete_function()], module
    )
    if conversion != "float32":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    # A scale for each item needs a newer runtime than devices and boards have (tflite-runtime 2.14).
    converter._experimental_disable_per_channel_quantization_for_dense_layers = True  # noqa: SLF001
    if conversion == "float16":
        converter.target_spec.supported_types = [tf.float16]
    elif conversion == "int8":
        if users is None:
            raise ParameterError("int8 chooses its scales by users' score functions; there are none")
        W, b = users
        chosen = np.linspace(0, len(W) - 1, min(_REPRESENTATIVE, len(W))).astype(np.int64)

        def representative() -> Iterator[dict[str, Floats]]:
            for user in chosen:
                yield {"w": W[user][None], "b": b[user : user + 1]}

        converter.representative_dataset = representative
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    with _silence():
        model: bytes = converter.convert()
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the converter's remarks about itself from stderr, which it writes to from C++ too."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _tensorflow() -> Any:
    # Read by TensorFlow on import; without them a build talks on stderr about the CPU and the compiler.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf  # noqa: PLC0415 - 2 GB, and only a build needs it
    except ImportError as error:
        raise MissingExtraError("firmware", "tensorflow") from error
    return tf
