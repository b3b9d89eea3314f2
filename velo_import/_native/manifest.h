/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The manifest read in place (FORMAT.md, section 3): folders by path, modules of a folder by name.
 *
 * No Python in here: the hook, the launcher and the preload library share it. The caller maps the file and decides
 * whose files it believes; here every offset, length and count is checked against the size of the map, so that no
 * bytes of the file can make us read outside of it. Nothing is allocated but the table of `velo_names_make`.
 * The Python twin is velo_import/hook/manifest.py; tests put both through the same files.
 */
#ifndef VELO_MANIFEST_H
#define VELO_MANIFEST_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The section directory, in its order. */
enum {
    VELO_IDENTITY, VELO_ROOTS, VELO_PACKS, VELO_STRINGS, VELO_SLOTS, VELO_PATH_OFFSETS,
    VELO_VNODES, VELO_STAMPS, VELO_FOLDERS, VELO_PATHS, VELO_BLOCKS, VELO_SECTIONS
};

/* The words of a module's record. */
enum {
    VELO_HEAD, VELO_START, VELO_LENGTH, VELO_MTIME, VELO_CTIME, VELO_INODE, VELO_SIZE,
    VELO_SOURCE_CHECK, VELO_BYTECODE_CHECK, VELO_FILE, VELO_WORDS
};
enum { VELO_MASK = 0xFFFF, VELO_BARE_NAME = 1 };                            /* of a record's first word */
enum { VELO_IS_FOLDER = 1 << 24, VELO_DEFER = 2 << 24, VELO_IS_LINK = 4 << 24 };
enum { VELO_CHECK_STAT, VELO_CHECK_ROOT, VELO_CHECK_NEVER };                /* of a root */

typedef enum { VELO_FOUND, VELO_ABSENT, VELO_NO_MANIFEST, VELO_DAMAGED } velo_verdict;

typedef struct {
    const uint8_t *start;
    uint64_t size;
} velo_span;

typedef struct {
    const uint8_t *data;
    uint64_t size;
    velo_span section[VELO_SECTIONS];
} velo_manifest;

typedef struct {
    velo_span path;
    unsigned check;
    int64_t mtime, ctime;
    uint64_t inode;
} velo_root;

typedef struct {
    velo_span name; /* below packs/v1 */
    uint64_t size;
    int64_t mtime, ctime;
    uint64_t inode;
} velo_pack;

/* One folder as it was when it was listed. */
typedef struct {
    const uint8_t *records; /* `modules` times VELO_WORDS words */
    velo_span names;
    uint64_t modules, root;
    int64_t mtime, ctime;
    uint64_t inode;
} velo_folder;

/* The names of one folder as a hash table. */
typedef struct {
    uint32_t mask;
    uint32_t *slots;  /* 1 + index of a record; 0 ends the search */
    uint32_t *starts; /* where each name starts, and where another one would */
} velo_names;

static inline uint64_t velo_word(const uint8_t *at, size_t index)
{
    uint64_t value;
    memcpy(&value, at + 8 * index, sizeof(value));
    return value;
}

/* Whether these bytes are a manifest, whole as far as one checksum and the section directory tell. */
velo_verdict velo_manifest_open(velo_manifest *manifest, const uint8_t *data, uint64_t size);

/* The folder of this path. Its block is compared with its checksum. */
velo_verdict velo_manifest_folder(const velo_manifest *manifest, const char *path, size_t length, velo_folder *folder);

velo_verdict velo_manifest_root(const velo_manifest *manifest, uint64_t index, velo_root *root);
velo_verdict velo_manifest_pack(const velo_manifest *manifest, uint64_t index, velo_pack *pack);

/* Make the table of a folder's names; VELO_ABSENT when there is no memory for it. Ended by `velo_names_free`. */
velo_verdict velo_names_make(velo_names *names, const velo_folder *folder);
void velo_names_free(velo_names *names);

/* The index of the record of this name, or -1. */
int64_t velo_names_find(const velo_names *names, const velo_folder *folder, const char *name, size_t length);

#endif
