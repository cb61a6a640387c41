/* The machine that compiles: for trying a program before it goes onto a board. */
#include "board.h"

#include <stdio.h>
#include <stdlib.h>

void board_write(const char *text)
{
    (void)fputs(text, stdout);
}

void board_exit(int code)
{
    exit(code);
}

void board_count_begin(void)
{
}

uint64_t board_count(void)
{
    return 0U;
}

void board_stack_begin(void)
{
}

uint32_t board_stack(void)
{
    return 0U;
}
