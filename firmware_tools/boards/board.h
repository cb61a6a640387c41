/**
 * @file
 * @brief What a board's port gives the programs here: a way to talk, a count of instructions, the stack's depth.
 */
#ifndef BOARD_H
#define BOARD_H

#include <stddef.h>
#include <stdint.h>

/** @brief Write a text to whoever runs the board: a debugger, an emulator, a terminal. */
void board_write(const char *text);

/** @brief End the program; 0: all is well. */
void board_exit(int code);

/** @brief Ask the debugger or emulator for something: semihosting, on the Arm ports only. */
int board_semihost(int operation, const void *argument);

/**
 * @brief Begin to count; instructions where the emulator runs with -icount shift=0.
 * At most a second's worth of them, 670 million.
 */
void board_count_begin(void);

/** @brief Give the count since it began, to some dozens; 0 where nothing counts. */
uint64_t board_count(void);

/** @brief Paint the free part of the stack. */
void board_stack_begin(void);

/** @brief Give the deepest use of the stack since it was painted, in bytes; 0 where that is not known. */
uint32_t board_stack(void);

#endif
