"""The models that devices run, built with TensorFlow: its only home, and loaded only to build.

The bytes depend on this file and on the TensorFlow release alone, so that a build can be checked against
what ships.
"""

import os
from typing import Any

from broker.errors import MissingExtraError


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


def _tensorflow() -> Any:
    # Read by TensorFlow on import; without them a build talks on stderr about the CPU and the compiler.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    try:
        import tensorflow as tf  # noqa: PLC0415 - 2 GB, and only a build needs it
    except ImportError as error:
        raise MissingExtraError("firmware", "tensorflow") from error
    return tf
