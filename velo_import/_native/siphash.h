/* SPDX-License-Identifier: Apache-2.0 */
/* SipHash-1-3 under Velo's fixed key (FORMAT.md, section 2): what CPython's _imp.source_hash(0x56454C4F, data) gives. */
#ifndef VELO_SIPHASH_H
#define VELO_SIPHASH_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the store's files are little-endian, and are read without conversion"
#endif

#define VELO_ROTATE(x, bits) ((x) << (bits) | (x) >> (64 - (bits)))
#define VELO_SIPROUND                                                                                              \
    do {                                                                                                           \
        v0 += v1, v1 = VELO_ROTATE(v1, 13) ^ v0, v0 = VELO_ROTATE(v0, 32);                                         \
        v2 += v3, v3 = VELO_ROTATE(v3, 16) ^ v2;                                                                   \
        v0 += v3, v3 = VELO_ROTATE(v3, 21) ^ v0;                                                                   \
        v2 += v1, v1 = VELO_ROTATE(v1, 17) ^ v2, v2 = VELO_ROTATE(v2, 32);                                         \
    } while (0)

static inline uint64_t velo_siphash(const void *data, size_t size)
{
    const uint64_t key = 0x56454C4F;
    uint64_t v0 = UINT64_C(0x736f6d6570736575) ^ key, v1 = UINT64_C(0x646f72616e646f6d);
    uint64_t v2 = UINT64_C(0x6c7967656e657261) ^ key, v3 = UINT64_C(0x7465646279746573);
    const uint8_t *at = data;
    uint64_t last = (uint64_t)size << 56;
    uint64_t word;
    for (size_t rest = size; rest >= 8; rest -= 8, at += 8) {
        memcpy(&word, at, 8);
        v3 ^= word;
        VELO_SIPROUND;
        v0 ^= word;
    }
    word = 0;
    if (size & 7)
        memcpy(&word, at, size & 7);
    last |= word;
    v3 ^= last;
    VELO_SIPROUND;
    v0 ^= last;
    v2 ^= 0xff;
    VELO_SIPROUND;
    VELO_SIPROUND;
    VELO_SIPROUND;
    return v0 ^ v1 ^ v2 ^ v3;
}

#endif
