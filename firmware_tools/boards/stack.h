/* Depth of the stack by painting: shared by the ports that have a linker script of their own. */
#ifndef STACK_H
#define STACK_H

#include "board.h"

extern uint32_t _stack_limit[], _stack_top[];
static uint32_t *painted_to;

void board_stack_begin(void)
{
    volatile uint32_t here;
    /* A margin for this function itself. */
    painted_to = (uint32_t *)((((uintptr_t)&here) & ~(uintptr_t)3U) - 64U);
    for (volatile uint32_t *word = _stack_limit; word < painted_to; word++) {
        *word = 0xA5A5A5A5U;
    }
}

uint32_t board_stack(void)
{
    const volatile uint32_t *word = _stack_limit;
    while ((word < painted_to) && (*word == 0xA5A5A5A5U)) {
        word++;
    }
    return (uint32_t)((uintptr_t)_stack_top - (uintptr_t)word);
}

#endif
