/**
 * @file
 * @brief A model in one piece of memory, as `firmware-tools export-c` writes it to model.pfr.
 *
 * Little endian: a header of 64 bytes, then w and the mean row (dim float32 each), then of an 8-bit table the
 * multipliers (uint16), filled up to 4 bytes, then the values. broker/protocol/modelfile.py writes it.
 */
#ifndef PFEDREC_MODEL_H
#define PFEDREC_MODEL_H

#include "table.h"

#ifdef __cplusplus
extern "C" {
#endif

#define PFR_MODEL_HEADER_BYTES 64U /**< Before w. */
#define PFR_MODEL_FORMAT 1U        /**< The one that this release reads and writes. */

/** @brief A table and what a new user starts from. */
typedef struct pfr_model {
    pfr_table table;
    const float *w;    /**< dim values. */
    float b;
    const float *mean; /**< The table's mean row, dim values. */
} pfr_model;

/**
 * @brief Find a model's parts in memory; nothing is copied, so the memory must stay.
 *
 * @param bytes  Aligned to 4 bytes.
 * @retval PFR_E_ARGUMENT  When the memory is not aligned.
 * @retval PFR_E_FORMAT    When it is no model of this format, has another size than it says, or values out of range.
 * @retval PFR_E_CHECKSUM  When its bytes have changed.
 */
pfr_status pfr_model_decode(const void *bytes, size_t size, pfr_model *model);

/** @brief Go on with the CRC-32 of IEEE 802.3 (zlib's); begin with 0. */
uint32_t pfr_crc32(uint32_t crc, const uint8_t *bytes, size_t size);

#ifdef __cplusplus
}
#endif

#endif
