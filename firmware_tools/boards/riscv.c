/* RV32: startup, semihosting, and the count of instructions that the processor keeps. */
#include "stack.h"

extern uint32_t _data_load[], _data_start[], _data_end[], _bss_start[], _bss_end[];
int main(void);
void start(void);

static int semihost(int operation, const void *argument)
{
    register int a0 __asm__("a0") = operation;
    register const void *a1 __asm__("a1") = argument;
    /* Three instructions of full length, in one page, say that this is no ordinary breakpoint. */
    __asm__ volatile(".balign 16\n"
                     ".option push\n"
                     ".option norvc\n"
                     "slli zero, zero, 0x1f\n"
                     "ebreak\n"
                     "srai zero, zero, 7\n"
                     ".option pop\n"
                     : "+r"(a0)
                     : "r"(a1)
                     : "memory");
    return a0;
}

void board_write(const char *text)
{
    (void)semihost(0x04, text); /* SYS_WRITE0 */
}

void board_exit(int code)
{
    const uint32_t block[2] = {0x20026U, (uint32_t)code}; /* ADP_Stopped_ApplicationExit */
    (void)semihost(0x20, block);                          /* SYS_EXIT_EXTENDED */
    for (;;) {
    }
}

static uint64_t began;

static uint64_t retired(void)
{
    uint32_t high, low, again;
    __asm__ volatile(".option arch, +zicsr");
    do {
        __asm__ volatile("csrr %0, minstreth" : "=r"(high));
        __asm__ volatile("csrr %0, minstret" : "=r"(low));
        __asm__ volatile("csrr %0, minstreth" : "=r"(again));
    } while (high != again);
    return ((uint64_t)high << 32) | low;
}

void board_count_begin(void)
{
    began = retired();
}

uint64_t board_count(void)
{
    return retired() - began;
}

__attribute__((used)) static void prepare(void)
{
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

__attribute__((section(".vectors"), naked, used)) void start(void)
{
    __asm__ volatile(".option arch, +zicsr\n"
                     "la sp, _stack_top\n"
                     "la t0, %0\n"
                     "csrw mtvec, t0\n"
                     "j %1\n"
                     :
                     : "i"(fault_handler), "i"(prepare));
}
