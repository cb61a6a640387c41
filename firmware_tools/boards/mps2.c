/* QEMU's Arm MPS2 boards as fleet.c needs them: two serial ports, and the emulator's files (semihosting) as the
 * memory that outlasts a reset and as the source of randomness. The emulator's arguments are the id and the file. */
#include "fleet.h"

#include <string.h>

enum { SYS_OPEN = 0x01, SYS_WRITE = 0x05, SYS_READ = 0x06, SYS_SEEK = 0x0A, SYS_GET_CMDLINE = 0x15 };
enum { READ_ONLY = 1, READ_AND_WRITE = 3, NEW = 7 }; /* fopen's rb, r+b, w+b */

typedef struct uart {
    volatile uint32_t data, state, control, interrupts, divider;
} uart;

#define UART(line) ((uart *)(((line) == BOARD_GATEWAY) ? 0x40004000U : 0x40005000U))
#define TX_FULL 1U
#define RX_FULL 2U
#define RX_DONE 2U
#define RX_INTERRUPTS ((1U << 0) | (1U << 2)) /* of the two ports */

#define SYST_CSR (*(volatile uint32_t *)0xE000E010U)
#define SYST_RVR (*(volatile uint32_t *)0xE000E014U)
#define SYST_CVR (*(volatile uint32_t *)0xE000E018U)
#define NVIC_ISER (*(volatile uint32_t *)0xE000E100U)
#define NVIC_ICPR (*(volatile uint32_t *)0xE000E280U)
#define ICSR (*(volatile uint32_t *)0xE000ED04U)
#define PENDSTCLR (1U << 25)
#define TICK_MS 10U

static char arguments[512];
static const char *id = "";
static uint32_t kept_file, chance_file;
static uint32_t milliseconds;

static uint32_t open_file(const char *name, uint32_t mode)
{
    const uint32_t block[3] = {(uint32_t)name, mode, (uint32_t)strlen(name)};
    return (uint32_t)board_semihost(SYS_OPEN, block);
}

/* The program's name, the id and the file, with spaces between. */
static const char *next_argument(char **text)
{
    char *begin = *text;
    while (*begin == ' ') {
        begin++;
    }
    char *end = begin;
    while ((*end != ' ') && (*end != '\0')) {
        end++;
    }
    *text = (*end == '\0') ? end : &end[1];
    *end = '\0';
    return begin;
}

int board_open(void)
{
    const uint32_t block[2] = {(uint32_t)arguments, sizeof arguments};
    if (board_semihost(SYS_GET_CMDLINE, block) != 0) {
        return 1;
    }
    char *rest = arguments;
    (void)next_argument(&rest);
    id = next_argument(&rest);
    const char *file = next_argument(&rest);
    kept_file = open_file(file, READ_AND_WRITE);
    if (kept_file == UINT32_MAX) {
        kept_file = open_file(file, NEW);
    }
    chance_file = open_file("/dev/urandom", READ_ONLY);
    for (uint32_t line = 0U; line < 2U; line++) {
        uart *port = UART((board_line)line);
        port->divider = 217U; /* 25 MHz / 115,200 */
        port->control = 1U | 2U | 8U; /* send, receive, interrupt for what was received */
    }
    /* Interrupts wake the processor, but none is taken: the loop looks by itself. */
    __asm__ volatile("cpsid i");
    NVIC_ISER = RX_INTERRUPTS;
    SYST_RVR = (BOARD_MHZ * 1000U * TICK_MS) - 1U;
    SYST_CVR = 0U;
    SYST_CSR = 7U;
    return ((kept_file == UINT32_MAX) || (chance_file == UINT32_MAX)) ? 1 : 0;
}

const char *board_id(void)
{
    return id;
}

int board_take(board_line line, uint8_t *byte)
{
    uart *port = UART(line);
    if ((port->state & RX_FULL) == 0U) {
        return 0;
    }
    port->interrupts = RX_DONE;
    *byte = (uint8_t)port->data;
    return 1;
}

void board_put(board_line line, const uint8_t *bytes, size_t size)
{
    uart *port = UART(line);
    const uint32_t began = board_milliseconds();
    for (size_t i = 0U; i < size; i++) {
        while ((port->state & TX_FULL) != 0U) {
            if ((board_milliseconds() - began) > 1000U) {
                return;
            }
        }
        port->data = bytes[i];
    }
}

static int at_place(uint32_t place)
{
    const uint32_t block[2] = {kept_file, place};
    return board_semihost(SYS_SEEK, block) == 0;
}

int board_keep(uint32_t place, const void *bytes, uint32_t size)
{
    const uint32_t block[3] = {kept_file, (uint32_t)bytes, size};
    return (at_place(place) && (board_semihost(SYS_WRITE, block) == 0)) ? 0 : 1;
}

void board_recall(uint32_t place, void *bytes, uint32_t size)
{
    const uint32_t block[3] = {kept_file, (uint32_t)bytes, size};
    if (at_place(place)) {
        (void)board_semihost(SYS_READ, block);
    }
}

int board_chance(uint64_t *words, uint32_t count)
{
    const uint32_t block[3] = {chance_file, (uint32_t)words, count * (uint32_t)sizeof *words};
    return board_semihost(SYS_READ, block);
}

uint32_t board_milliseconds(void)
{
    if ((SYST_CSR & (1U << 16)) != 0U) { /* cleared by reading */
        milliseconds += TICK_MS;
    }
    return milliseconds;
}

void board_wait(void)
{
    __asm__ volatile("wfi");
    ICSR = PENDSTCLR;
    NVIC_ICPR = RX_INTERRUPTS;
}
