"""Numbers as C source: constants, aligned arrays, and the two pairs of files that an export is made of."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from broker.protocol.modelfile import Model
from firmware_tools.golden import INCARNATION, INSTANCE, PASSES, VERSION, Golden
from trainer.integers import QuantisedTable
from trainer.params import Hyperparameters

_WIDTH = 100
_NOTICE = "/* Written by firmware-tools export-c. */\n"


def floats(values: Iterable[float]) -> list[str]:
    """Give float32 values as C constants that read back as the same bits."""
    return [float_constant(value) for value in values]


def float_constant(value: float) -> str:
    """Give one float32 value as a C constant that reads back as the same bits."""
    text = f"{np.float32(value):.9g}"
    return f"{text}F" if "." in text or "e" in text else f"{text}.0F"


def integers(values: Iterable[int], suffix: str = "") -> list[str]:
    """Give integers as C constants."""
    return [f"{int(value)}{suffix}" for value in values]


def words(values: Iterable[int]) -> list[str]:
    """Give 64-bit words as C constants."""
    return [f"UINT64_C(0x{int(value):016x})" for value in values]


def array(declaration: str, constants: Sequence[str]) -> str:
    """Give the definition of an array, its constants in lines of a bounded width."""
    return f"{declaration} = {{\n{chr(10).join(_lines(constants))}\n}};\n"


def _lines(constants: Sequence[str]) -> Iterator[str]:
    line = "   "
    for constant in constants:
        if len(line) + len(constant) + 2 > _WIDTH:
            yield line
            line = "   "
        line += f" {constant},"
    yield line


def model_files(model: Model) -> dict[str, str]:
    """Give ``model_data.h`` and ``model_data.c``: the model as aligned constant arrays."""
    rows, dim = model.shape
    is_int8 = isinstance(model.table, QuantisedTable)
    header = f"""{_NOTICE}#ifndef MODEL_DATA_H
#define MODEL_DATA_H

#include "pfedrec/model.h"

#define MODEL_ROWS {rows}U
#define MODEL_DIM {dim}U
#define MODEL_INT8 {int(is_int8)}

/** The item table, and what a new user starts from. */
extern const pfr_model pfedrec_model;

#endif
"""
    aligned = "__attribute__((aligned(16)))"
    parts = [f'{_NOTICE}#include "model_data.h"\n']
    if isinstance(model.table, QuantisedTable):
        parts += [
            array(
                f"static const int8_t values[{rows * dim}] {aligned}", integers(model.table.values.ravel())
            ),
            array(
                f"static const uint16_t multipliers[{rows}] {aligned}", integers(model.table.multipliers, "U")
            ),
        ]
        unit = float_constant(float(model.table.unit))
        table = f"{{PFR_INT8, MODEL_ROWS, MODEL_DIM, NULL, values, multipliers, {unit}}}"
    else:
        parts.append(array(f"static const float values[{rows * dim}] {aligned}", floats(model.table.ravel())))
        table = "{PFR_FLOAT32, MODEL_ROWS, MODEL_DIM, values, NULL, NULL, 0.0F}"
    parts += [
        array(f"static const float w[{dim}] {aligned}", floats(model.w)),
        array(f"static const float mean[{dim}] {aligned}", floats(model.mean)),
        f"const pfr_model pfedrec_model = {{{table}, w, {float_constant(model.b)}, mean}};\n",
    ]
    return {"model_data.h": header, "model_data.c": "\n".join(parts)}


def golden_files(golden: Golden) -> dict[str, str]:
    """Give ``golden.h`` and ``golden.c``: what the self-test compares with."""
    settings = golden.hyperparameters
    samples = golden.positives.size * (1 + settings.negatives)
    numbers = {
        "SCORED": len(golden.scores),
        "SCORED_ROWS": golden.scored_rows.size,
        "RANKED": golden.ranking_crcs.size,
        "POSITIVES": golden.positives.size,
        "PASSES": PASSES,
        "SAMPLES": samples,
        "BATCHES": -(-samples // settings.batch_size),
        "NEGATIVES": settings.negatives,
        "BATCH_SIZE": settings.batch_size,
        "PROBES": golden.probe_rows.size,
        "HEAD_BYTES": len(golden.head),
        "INSTANCE": INSTANCE,
        "INCARNATION": INCARNATION,
        "VERSION": VERSION,
    }
    constants = {name: f"{value}U" for name, value in numbers.items()} | _settings(settings)
    constants["B"] = float_constant(golden.b)
    arrays = {
        "uint64_t golden_vector_words": words(golden.vector_words),
        "uint64_t golden_training_words": words(golden.training_words),
        "uint32_t golden_scored_rows": integers(golden.scored_rows, "U"),
        "float golden_scores": floats(golden.scores.ravel()),
        "uint32_t golden_integer_crcs": integers(golden.integer_crcs, "U"),
        "uint32_t golden_ranking_crcs": integers(golden.ranking_crcs, "U"),
        "uint32_t golden_positives": integers(golden.positives, "U"),
        "uint32_t golden_excluded": integers(np.sort(golden.positives), "U"),
        "float golden_taste": floats(golden.taste),
        "float golden_w": floats(golden.w),
        "uint32_t golden_probe_rows": integers(golden.probe_rows, "U"),
        "float golden_changes": floats(golden.changes.ravel()),
        "uint8_t golden_head": integers(golden.head, "U"),
    }
    defined = "".join(f"#define GOLDEN_{name} {value}\n" for name, value in constants.items())
    declared = "".join(f"extern const {name}[{len(values)}];\n" for name, values in arrays.items())
    guarded = f"#ifndef GOLDEN_H\n#define GOLDEN_H\n\n#include <stdint.h>\n\n{defined}\n{declared}\n#endif\n"
    definitions = (array(f"const {name}[{len(values)}]", values) for name, values in arrays.items())
    return {
        "golden.h": _NOTICE + guarded,
        "golden.c": f'{_NOTICE}#include "golden.h"\n\n' + "\n".join(definitions),
    }


def _settings(settings: Hyperparameters) -> dict[str, str]:
    return {"LR": repr(settings.lr), "ITEM_LR": repr(settings.item_lr), "DECAY": repr(settings.decay)}
