// SPDX-License-Identifier: Apache-2.0
/* See manifest.h. Reading order: `velo_manifest_open`, `velo_manifest_folder`, `velo_names_make`. */

#include "manifest.h"
#include "siphash.h"

#include <stdlib.h>

enum { PREAMBLE_START = 32, DIRECTORY = 40, TABLES_START = 216, BLOCK_SIZE = 72, RECORD_SIZE = 8 * VELO_WORDS };
enum { ROOT_SIZE = 48, PACK_SIZE = 48 };

velo_verdict velo_manifest_open(velo_manifest *manifest, const uint8_t *data, uint64_t size)
{
    /* Magic, version 1, and of the mandatory features perhaps the first two. */
    static const uint8_t start[12] = {'V', 'E', 'L', 'O', 'M', 'N', 'F', 'T', 1, 0, 0, 0};
    if (size < TABLES_START || size % 8 || memcmp(data, start, sizeof(start)) != 0 || velo_word(data, 1) >> 32 > 3)
        return VELO_NO_MANIFEST;
    uint64_t end = velo_word(data, 4);
    if (velo_word(data, 2) != size || end < TABLES_START || end > size)
        return VELO_DAMAGED;
    if (velo_siphash(data + PREAMBLE_START, (size_t)(end - PREAMBLE_START)) != velo_word(data, 3))
        return VELO_DAMAGED;
    manifest->data = data;
    manifest->size = size;
    for (int i = 0; i < VELO_SECTIONS; i++) {
        uint64_t at = velo_word(data + DIRECTORY, 2 * (size_t)i);
        uint64_t length = velo_word(data + DIRECTORY, 2 * (size_t)i + 1);
        if (at % 8 || at > size || length > size - at)
            return VELO_DAMAGED;
        manifest->section[i] = (velo_span){data + at, length};
    }
    uint64_t slots = manifest->section[VELO_SLOTS].size / 4;
    uint64_t paths = manifest->section[VELO_PATH_OFFSETS].size / 8;
    if (slots == 0 || (slots & (slots - 1)) || paths == 0 ||
        manifest->section[VELO_FOLDERS].size / 8 < paths - 1)
        return VELO_DAMAGED;
    return VELO_FOUND;
}

/* The block at this place of the blocks section, once it has been compared with its checksum and says that it is the
 * one of the path with this index: what leads here has no checksum that is looked at. */
static velo_verdict open_block(const velo_manifest *manifest, uint64_t place, uint64_t index, velo_folder *folder)
{
    velo_span blocks = manifest->section[VELO_BLOCKS];
    if (place % 8 || place > blocks.size || blocks.size - place < BLOCK_SIZE)
        return VELO_DAMAGED;
    const uint8_t *block = blocks.start + place;
    uint64_t size = velo_word(block, 1), modules = velo_word(block, 2), names = velo_word(block, 8);
    if (size % 8 || size < BLOCK_SIZE || size > blocks.size - place || size > UINT32_MAX)
        return VELO_DAMAGED;
    uint64_t room = size - BLOCK_SIZE;
    if (modules > room / RECORD_SIZE || names > room - modules * RECORD_SIZE)
        return VELO_DAMAGED;
    if (velo_word(block, 7) != index || velo_siphash(block + 8, (size_t)size - 8) != velo_word(block, 0))
        return VELO_DAMAGED;
    folder->records = block + BLOCK_SIZE;
    folder->names = (velo_span){block + BLOCK_SIZE + modules * RECORD_SIZE, names};
    folder->modules = modules;
    folder->root = velo_word(block, 3);
    folder->mtime = (int64_t)velo_word(block, 4);
    folder->ctime = (int64_t)velo_word(block, 5);
    folder->inode = velo_word(block, 6);
    return VELO_FOUND;
}

velo_verdict velo_manifest_folder(const velo_manifest *manifest, const char *path, size_t length, velo_folder *folder)
{
    const velo_span *section = manifest->section;
    uint64_t mask = section[VELO_SLOTS].size / 4 - 1;
    uint64_t known = section[VELO_PATH_OFFSETS].size / 8 - 1;
    uint64_t slot = velo_siphash(path, length) & mask;
    for (uint64_t step = 0; step <= mask; step++, slot = (slot + 1) & mask) {
        uint32_t index;
        memcpy(&index, section[VELO_SLOTS].start + 4 * slot, sizeof(index));
        if (index == 0)
            return VELO_ABSENT;
        if (index > known)
            return VELO_DAMAGED;
        uint64_t start = velo_word(section[VELO_PATH_OFFSETS].start, index - 1);
        uint64_t end = (uint32_t)velo_word(section[VELO_PATH_OFFSETS].start, index);
        if (start >> 32)
            continue; /* the name of what is no folder */
        if (start > end || end > section[VELO_PATHS].size)
            return VELO_DAMAGED;
        if (end - start == length && memcmp(section[VELO_PATHS].start + start, path, length) == 0) {
            uint64_t place = velo_word(section[VELO_FOLDERS].start, index - 1);
            return place == 0 ? VELO_ABSENT : open_block(manifest, place - 1, index - 1, folder);
        }
    }
    return VELO_ABSENT;
}

/* A piece of the strings section. */
static velo_verdict find_string(const velo_manifest *manifest, uint64_t at, uint64_t size, velo_span *found)
{
    velo_span strings = manifest->section[VELO_STRINGS];
    if (at > strings.size || size > strings.size - at)
        return VELO_DAMAGED;
    *found = (velo_span){strings.start + at, size};
    return VELO_FOUND;
}

velo_verdict velo_manifest_root(const velo_manifest *manifest, uint64_t index, velo_root *root)
{
    if (index >= manifest->section[VELO_ROOTS].size / ROOT_SIZE)
        return VELO_DAMAGED;
    const uint8_t *at = manifest->section[VELO_ROOTS].start + index * ROOT_SIZE;
    uint64_t head = velo_word(at, 1);
    root->check = (unsigned)(head >> 40 & 0xFF);
    root->mtime = (int64_t)velo_word(at, 2);
    root->ctime = (int64_t)velo_word(at, 3);
    root->inode = velo_word(at, 4);
    return find_string(manifest, velo_word(at, 0), head & 0xFFFFFFFF, &root->path);
}

velo_verdict velo_manifest_pack(const velo_manifest *manifest, uint64_t index, velo_pack *pack)
{
    if (index >= manifest->section[VELO_PACKS].size / PACK_SIZE)
        return VELO_DAMAGED;
    const uint8_t *at = manifest->section[VELO_PACKS].start + index * PACK_SIZE;
    pack->size = velo_word(at, 2);
    pack->mtime = (int64_t)velo_word(at, 3);
    pack->ctime = (int64_t)velo_word(at, 4);
    pack->inode = velo_word(at, 5);
    return find_string(manifest, velo_word(at, 0), velo_word(at, 1) & 0xFFFFFFFF, &pack->name);
}

/* FNV-1a: names are short, and whoever writes the manifest needs no collision to slow us down. */
static uint32_t hash_name(const void *name, size_t length)
{
    const uint8_t *bytes = name;
    uint32_t hash = 2166136261u;
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ bytes[i]) * 16777619u;
    return hash ^ hash >> 15;
}

velo_verdict velo_names_make(velo_names *names, const velo_folder *folder)
{
    uint32_t modules = (uint32_t)folder->modules; /* a block has less than 4 GB */
    uint32_t slots = 8;
    while (slots < 2 * (uint64_t)modules)
        slots *= 2;
    names->mask = slots - 1;
    names->slots = calloc((size_t)slots + modules + 1, sizeof(uint32_t));
    if (names->slots == NULL)
        return VELO_ABSENT;
    names->starts = names->slots + slots;
    const uint8_t *text = folder->names.start;
    uint64_t at = 0;
    for (uint32_t index = 0; index < modules; index++) {
        uint64_t rest = folder->names.size - at;
        const uint8_t *end = rest ? memchr(text + at, 0, (size_t)rest) : NULL;
        uint64_t length = end == NULL ? rest : (uint64_t)(end - (text + at));
        /* Each name but the last is ended by a NUL, and only they. */
        if ((end == NULL) != (index == modules - 1)) {
            velo_names_free(names);
            return VELO_DAMAGED;
        }
        names->starts[index] = (uint32_t)at;
        names->starts[index + 1] = (uint32_t)(at + length + 1);
        int64_t twice = velo_names_find(names, folder, (const char *)text + at, (size_t)length);
        uint32_t slot = hash_name(text + at, (size_t)length) & names->mask;
        while (names->slots[slot] && (int64_t)names->slots[slot] != twice + 1)
            slot = (slot + 1) & names->mask;
        names->slots[slot] = index + 1; /* of two records with one name the later counts, as in the twin */
        at += length + (end != NULL);
    }
    return VELO_FOUND;
}

void velo_names_free(velo_names *names)
{
    free(names->slots);
    names->slots = names->starts = NULL;
    names->mask = 0;
}

int64_t velo_names_find(const velo_names *names, const velo_folder *folder, const char *name, size_t length)
{
    if (names->slots == NULL)
        return -1;
    uint32_t slot = hash_name(name, length) & names->mask;
    for (uint32_t index; (index = names->slots[slot]) != 0; slot = (slot + 1) & names->mask) {
        uint32_t start = names->starts[index - 1];
        if (names->starts[index] - start - 1 == length && memcmp(folder->names.start + start, name, length) == 0)
            return (int64_t)index - 1;
    }
    return -1;
}
