/* Cortex-M: startup, semihosting, and SysTick for counting. */
#include "stack.h"

extern uint32_t _data_load[], _data_start[], _data_end[], _bss_start[], _bss_end[];
int main(void);
void reset_handler(void);

/* The library's mathematics reports errors here; without it, it would bring a kilobyte of its own. */
int *__errno(void);
int *__errno(void)
{
    static int number;
    return &number;
}

int board_semihost(int operation, const void *argument)
{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void board_write(const char *text)
{
    (void)board_semihost(0x04, text); /* SYS_WRITE0 */
}

void board_exit(int code)
{
    const uint32_t block[2] = {0x20026U, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    (void)board_semihost(0x20, block);                          /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

#define SYST_CSR (*(volatile uint32_t *)0xE000E010U)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014U)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018U)

void board_count_begin(void)
{
    SYST_CSR = 0U;
    SYST_RVR = 0xFFFFFFU;
    SYST_CVR = 0U;
    SYST_CSR = 5U; /* the processor's clock, no interrupt */
}

uint64_t board_count(void)
{
    const uint32_t ticks = 0xFFFFFFU - (SYST_CVR & 0xFFFFFFU);
    return ((uint64_t)ticks * 1000U) / BOARD_MHZ; /* the emulator's instructions take a nanosecond each */
}

void reset_handler(void)
{
#if defined(__ARM_FP) && (__ARM_FP != 0)
    *(volatile uint32_t *)0xE000ED88U |= 0xF00000U; /* CPACR: the floating-point unit, for all */
    __asm__ volatile("dsb\n isb");
#endif
    uint32_t *from = _data_load;
    for (uint32_t *to = _data_start; to < _data_end; to++) {
        *to = *from++;
    }
    for (uint32_t *to = _bss_start; to < _bss_end; to++) {
        *to = 0U;
    }
    board_exit(main());
}

static void fault_handler(void)
{
    board_write("FAULT\n");
    board_exit(3);
}

typedef void (*vector)(void);
__attribute__((section(".vectors"), used)) static const vector vectors[16] = {
    (vector)(uintptr_t)_stack_top, reset_handler, fault_handler, fault_handler, fault_handler, fault_handler,
    fault_handler};
