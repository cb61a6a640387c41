/**
 * @file
 * @brief What a board's port gives fleet.c beside board.h: two lines, memory that outlasts a reset, chance, and time.
 */
#ifndef FLEET_H
#define FLEET_H

#include "board.h"

/** @brief The lines: to the gateway, and to whoever uses the board. */
typedef enum board_line { BOARD_GATEWAY = 0, BOARD_USER = 1 } board_line;

/** @brief Make the lines, the clock and the memory ready; give 0 when they are. */
int board_open(void);

/** @brief Give this board's id in the fleet; set when the board was made. */
const char *board_id(void);

/** @brief Take a byte from a line; give 0 when none has come. */
int board_take(board_line line, uint8_t *byte);

/** @brief Put bytes on a line; a line that takes nothing for a second loses the rest. */
void board_put(board_line line, const uint8_t *bytes, size_t size);

/**
 * @brief Write into the memory that outlasts a reset; give 0 when it is there.
 * A reset may leave any part of it written: whoever reads it must be able to tell.
 */
int board_keep(uint32_t place, const void *bytes, uint32_t size);

/** @brief Read from it; what was never written is anything. */
void board_recall(uint32_t place, void *bytes, uint32_t size);

/** @brief Draw from the hardware's source of randomness; give 0 when it was. */
int board_chance(uint64_t *words, uint32_t count);

/** @brief Give milliseconds since the start; they may stand still while the processor works. */
uint32_t board_milliseconds(void);

/** @brief Sleep until a byte comes, for ten milliseconds at most. */
void board_wait(void);

#endif
