/* The port of fleet.c for tests on the machine that compiles. The gateway's line is standard input and output, the
 * user's the descriptors 3 and 4. FLEET_MEMORY names the file that outlasts a reset; with FLEET_CUT_AT=n the n-th
 * write to it is half done, and the power goes. */
#define _POSIX_C_SOURCE 200809L
#include "fleet.h"

#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int memory;
static long cut_at;

void board_write(const char *text)
{
    (void)!write(2, text, strlen(text));
}

void board_exit(int code)
{
    exit(code);
}

int board_open(void)
{
    const char *file = getenv("FLEET_MEMORY"), *cut = getenv("FLEET_CUT_AT");
    memory = open((file == NULL) ? "" : file, O_RDWR | O_CREAT, 0600);
    cut_at = (cut == NULL) ? 0 : atol(cut);
    return (memory < 0) ? 1 : 0;
}

const char *board_id(void)
{
    return "pi-1";
}

static int input_of(board_line line)
{
    return (line == BOARD_GATEWAY) ? 0 : 3;
}

int board_take(board_line line, uint8_t *byte)
{
    struct pollfd look = {input_of(line), POLLIN, 0};
    if (poll(&look, 1, 0) < 1) {
        return 0;
    }
    if (read(input_of(line), byte, 1) != 1) { /* the test has gone */
        exit(0);
    }
    return 1;
}

void board_put(board_line line, const uint8_t *bytes, size_t size)
{
    (void)!write((line == BOARD_GATEWAY) ? 1 : 4, bytes, size);
}

int board_keep(uint32_t place, const void *bytes, uint32_t size)
{
    const int cut = (--cut_at == 0);
    const size_t written = cut ? size / 2U : size;
    const ssize_t done = pwrite(memory, bytes, written, (off_t)place);
    if (cut) {
        _exit(9);
    }
    return (done == (ssize_t)size) ? 0 : 1;
}

void board_recall(uint32_t place, void *bytes, uint32_t size)
{
    (void)!pread(memory, bytes, size, (off_t)place);
}

int board_chance(uint64_t *words, uint32_t count)
{
    const int source = open("/dev/urandom", O_RDONLY);
    const ssize_t done = read(source, words, count * sizeof *words);
    (void)close(source);
    return (done == (ssize_t)(count * sizeof *words)) ? 0 : 1;
}

uint32_t board_milliseconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((now.tv_sec * 1000) + (now.tv_nsec / 1000000));
}

void board_wait(void)
{
    struct pollfd look[2] = {{0, POLLIN, 0}, {3, POLLIN, 0}};
    (void)poll(look, 2, 1);
}
