#include "../include/pfedrec/model.h"

#include <math.h>
#include <string.h>

/* The header, little endian: magic, format u16, table format u16, rows u32, dim u32, size u32 of the whole, crc u32
 * of what follows it, unit f32, b f32, then zeros up to 64 bytes. */
static const uint8_t MAGIC[4] = {(uint8_t)'P', (uint8_t)'F', (uint8_t)'R', (uint8_t)'M'};
#define CRC_END 24U

static uint32_t read_u32(const uint8_t *bytes)
{
    return (uint32_t)bytes[0] | ((uint32_t)bytes[1] << 8) | ((uint32_t)bytes[2] << 16) | ((uint32_t)bytes[3] << 24);
}

static float read_float(const uint8_t *bytes)
{
    const uint32_t bits = read_u32(bytes);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

uint32_t pfr_crc32(uint32_t crc, const uint8_t *bytes, size_t size)
{
    /* The polynomial's table for half a byte: 64 bytes of flash instead of 1,024. */
    static const uint32_t TABLE[16] = {0x00000000U, 0x1DB71064U, 0x3B6E20C8U, 0x26D930ACU, 0x76DC4190U, 0x6B6B51F4U,
                                       0x4DB26158U, 0x5005713CU, 0xEDB88320U, 0xF00F9344U, 0xD6D6A3E8U, 0xCB61B38CU,
                                       0x9B64C2B0U, 0x86D3D2D4U, 0xA00AE278U, 0xBDBDF21CU};
    uint32_t state = ~crc;
    for (size_t i = 0U; i < size; i++) {
        state ^= bytes[i];
        state = (state >> 4) ^ TABLE[state & 15U];
        state = (state >> 4) ^ TABLE[state & 15U];
    }
    return ~state;
}

static int is_little_endian(void)
{
    const uint32_t one = 1U;
    uint8_t first;
    memcpy(&first, &one, sizeof first);
    return first == 1U;
}

static int all_finite(const float *values, size_t count)
{
    for (size_t i = 0U; i < count; i++) {
        if (!isfinite(values[i])) {
            return 0;
        }
    }
    return 1;
}

pfr_status pfr_model_decode(const void *bytes, size_t size, pfr_model *model)
{
    const uint8_t *header = bytes;
    if ((bytes == NULL) || (model == NULL) || (((uintptr_t)bytes & 3U) != 0U)) {
        return PFR_E_ARGUMENT;
    }
    if ((size < PFR_MODEL_HEADER_BYTES) || (memcmp(header, MAGIC, sizeof MAGIC) != 0) || !is_little_endian()) {
        return PFR_E_FORMAT;
    }
    const uint32_t formats = read_u32(&header[4]);
    const uint32_t rows = read_u32(&header[8]), dim = read_u32(&header[12]);
    const uint32_t format = formats >> 16;
    const float unit = read_float(&header[24]), b = read_float(&header[28]);
    if (((formats & 0xFFFFU) != PFR_MODEL_FORMAT) || (format > (uint32_t)PFR_INT8) || (rows < 1U) ||
        (rows > PFR_MAX_ROWS) || (dim < 1U) || (dim > PFR_MAX_DIM) || !isfinite(unit) || (unit < 0.0F) ||
        !isfinite(b)) {
        return PFR_E_FORMAT;
    }
    const uint64_t n_values = (uint64_t)rows * dim;
    const uint64_t vectors = UINT64_C(8) * dim;
    const uint64_t multipliers = (format == (uint32_t)PFR_INT8) ? (((UINT64_C(2) * rows) + 3U) & ~UINT64_C(3)) : 0U;
    const uint64_t values = (format == (uint32_t)PFR_INT8) ? n_values : (UINT64_C(4) * n_values);
    const uint64_t total = PFR_MODEL_HEADER_BYTES + vectors + multipliers + values;
    if ((total != size) || (read_u32(&header[16]) != total)) {
        return PFR_E_FORMAT;
    }
    if (pfr_crc32(0U, &header[CRC_END], size - CRC_END) != read_u32(&header[20])) {
        return PFR_E_CHECKSUM;
    }
    const float *w = (const void *)&header[PFR_MODEL_HEADER_BYTES];
    const void *after = &header[PFR_MODEL_HEADER_BYTES + (size_t)vectors];
    pfr_model found;
    memset(&found, 0, sizeof found);
    found.table.format = (pfr_format)format;
    found.table.rows = rows;
    found.table.dim = dim;
    found.table.unit = unit;
    found.w = w;
    found.b = b;
    found.mean = &w[dim];
    if (format == (uint32_t)PFR_INT8) {
        found.table.multipliers = after;
        found.table.quantised =
            (const void *)&header[PFR_MODEL_HEADER_BYTES + (size_t)vectors + (size_t)multipliers];
        for (size_t i = 0U; i < (size_t)n_values; i++) {
            if (found.table.quantised[i] == INT8_MIN) { /* integer scores have no room for it */
                return PFR_E_FORMAT;
            }
        }
    } else {
        found.table.values = after;
        if (!all_finite(found.table.values, (size_t)n_values)) {
            return PFR_E_FORMAT;
        }
    }
    if (!all_finite(w, 2U * (size_t)dim)) {
        return PFR_E_FORMAT;
    }
    *model = found;
    return PFR_OK;
}
