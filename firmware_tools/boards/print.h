/* Numbers as text, without the C library. */
#ifndef PRINT_H
#define PRINT_H

#include "board.h"

static inline void print_number(uint64_t value)
{
    char text[24];
    size_t at = sizeof text - 1U;
    text[at] = '\0';
    do {
        at--;
        text[at] = (char)('0' + (int)(value % 10U));
        value /= 10U;
    } while (value > 0U);
    board_write(&text[at]);
}

static inline void print_fact(const char *name, uint64_t value)
{
    board_write(name);
    board_write(" ");
    print_number(value);
    board_write("\n");
}

#endif
