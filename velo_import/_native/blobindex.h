/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The blob index read in place (FORMAT.md, section 8): where a packed blob is, in about two cache misses.
 *
 * For C parts that must not open LMDB. Allocates nothing, locks nothing, calls nothing but memcmp and memcpy.
 * The caller maps the file and has verified its checksum (velo_import/store/index.py); here every offset is
 * checked against the size all the same, so that no bytes of the file can make us read outside of it.
 * The Python twin is velo_import/format/blobindex.py; tests put both through the same files.
 */
#ifndef VELO_BLOBINDEX_H
#define VELO_BLOBINDEX_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the store's files are little-endian, and are read without conversion"
#endif

typedef struct {
    const uint8_t *data;
    uint64_t packs, entries, fan_at, entries_at;
    unsigned bits;
} velo_blobindex;

typedef struct {
    uint32_t pack; /* number of the pack in the index's table of ids */
    uint8_t codec, kind;
    uint64_t offset, length, size;
} velo_place;

enum { VELO_BLOBINDEX_HEADER = 96, VELO_BLOBINDEX_ENTRY = 64, VELO_BLOBINDEX_MOST_BITS = 24 };

static inline uint64_t velo_u64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

static inline uint32_t velo_u32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof(value));
    return value;
}

/* Whether these bytes are laid out as an index; then `index` may be used for look-ups. */
static inline int velo_blobindex_open(velo_blobindex *index, const uint8_t *data, size_t size)
{
    static const uint8_t start[16] = {'V', 'E', 'L', 'O', 'B', 'I', 'D', 'X', 1, 0, 0, 0, 0, 0, 0, 0};
    if (size < VELO_BLOBINDEX_HEADER || memcmp(data, start, sizeof(start)) != 0 || velo_u64(data + 16) != size)
        return 0;
    uint64_t packs = velo_u64(data + 24), entries = velo_u64(data + 32), bits = velo_u64(data + 40);
    /* Bounds first, so that the sums below cannot overflow. */
    if (bits > VELO_BLOBINDEX_MOST_BITS || packs > size / 32 || entries > size / VELO_BLOBINDEX_ENTRY)
        return 0;
    uint64_t fan_size = ((UINT64_C(1) << bits) + 1) * 4;
    index->data = data;
    index->packs = packs;
    index->entries = entries;
    index->bits = (unsigned)bits;
    index->fan_at = VELO_BLOBINDEX_HEADER + packs * 32;
    index->entries_at = index->fan_at + (fan_size + 63) / 64 * 64;
    return index->entries_at + entries * VELO_BLOBINDEX_ENTRY == size;
}

/* Whether the digest is in the index; then `place` says where its content is. */
static inline int velo_blobindex_find(const velo_blobindex *index, const uint8_t digest[32], velo_place *place)
{
    uint32_t head = (uint32_t)digest[0] << 24 | (uint32_t)digest[1] << 16 | (uint32_t)digest[2] << 8 | digest[3];
    uint64_t slot = (uint64_t)head >> (32 - index->bits);
    const uint8_t *fan = index->data + index->fan_at + slot * 4;
    uint64_t first = velo_u32(fan), end = velo_u32(fan + 4);
    if (end > index->entries)
        return 0;
    for (; first < end; first++) {
        const uint8_t *entry = index->data + index->entries_at + first * VELO_BLOBINDEX_ENTRY;
        if (memcmp(entry, digest, 32) != 0)
            continue;
        place->pack = velo_u32(entry + 32);
        place->codec = entry[36];
        place->kind = entry[37];
        place->offset = velo_u64(entry + 40);
        place->length = velo_u64(entry + 48);
        place->size = velo_u64(entry + 56);
        return place->pack < index->packs;
    }
    return 0;
}

#endif
