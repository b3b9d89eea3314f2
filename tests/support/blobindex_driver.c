/* SPDX-License-Identifier: Apache-2.0 */
/* Looks digests up with blobindex.h: argv[1] is an index; stdin holds 32-byte digests; one line each. */
#include "blobindex.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

int main(int count, char **arguments)
{
    FILE *file = count == 2 ? fopen(arguments[1], "rb") : NULL;
    if (file == NULL)
        return 2;
    fseek(file, 0, SEEK_END);
    size_t size = (size_t)ftell(file);
    rewind(file);
    uint8_t *data = malloc(size ? size : 1); /* exactly as long as the file, so that a sanitizer sees its end */
    if (data == NULL || fread(data, 1, size, file) != size)
        return 2;
    fclose(file);
    velo_blobindex index;
    if (!velo_blobindex_open(&index, data, size)) {
        puts("refused");
        free(data);
        return 0;
    }
    uint8_t digest[32];
    while (fread(digest, 1, sizeof(digest), stdin) == sizeof(digest)) {
        velo_place place;
        if (velo_blobindex_find(&index, digest, &place))
            printf("%" PRIu32 " %u %u %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", place.pack, place.codec, place.kind,
                   place.offset, place.length, place.size);
        else
            puts("none");
    }
    free(data);
    return 0;
}
