/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nanoseconds for one look-up in a blob index from C: argv[1] is the index, argv[2] a file of 32-byte digests in
 * random order. Prints, for each of 21 passes over all of them, nanoseconds for each look-up; every one must hit.
 */
#include "blobindex.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

static const uint8_t *mapped(const char *path, size_t *size)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) != 0)
        return NULL;
    *size = (size_t)status.st_size;
    void *start = mmap(NULL, *size, PROT_READ, MAP_SHARED, file, 0);
    return start == MAP_FAILED ? NULL : start;
}

int main(int count, char **arguments)
{
    size_t size, length;
    const uint8_t *data = count == 3 ? mapped(arguments[1], &size) : NULL;
    const uint8_t *digests = count == 3 ? mapped(arguments[2], &length) : NULL;
    velo_blobindex index;
    if (data == NULL || digests == NULL || !velo_blobindex_open(&index, data, size))
        return 2;
    for (int pass = 0; pass < 21; pass++) {
        struct timespec from, to;
        uint64_t found = 0, sum = 0;
        clock_gettime(CLOCK_MONOTONIC, &from);
        for (size_t at = 0; at + 32 <= length; at += 32) {
            velo_place place;
            if (velo_blobindex_find(&index, digests + at, &place)) {
                found++;
                sum += place.offset;
            }
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        if (found != length / 32 || sum == 0)
            return 3;
        double elapsed = (double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec);
        printf("%.1f\n", elapsed / (double)found);
    }
    return 0;
}
