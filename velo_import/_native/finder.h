/* SPDX-License-Identifier: Apache-2.0 */
/* The finder, as finder.c makes it and search.c uses it. */
#ifndef VELO_FINDER_H
#define VELO_FINDER_H

#include "objects.h"

typedef enum { SOURCE, EXTENSION, OTHER } Kind;

enum {
    MOST_SUFFIXES = 15,
    MOST_MANIFESTS = 8, /* one that is named, and two in each of two stores */
    FEW = 4             /* of folders on sys.path that no manifest knows */
};

typedef struct {
    PyObject_HEAD
    PyObject *manifests; /* tuple */
    PyObject *counts, *check, *zip_hook, *file_hook, *suffixes, *folders, *cached_suffix;
    PyObject *spec_type;
    PyObject *loader_type; /* NULL until a module is found: most of what a process starts with is frozen */
    PyObject *source_loader, *extension_loader, *file_finder, *path_finder, *path_finder_dict;
    /* What CPython's own classes must still be for our answer to stand for theirs. */
    PyObject *get_code, *exec_module, *compile, *file_finder_find, *path_finder_find;
    PyObject *suffix[MOST_SUFFIXES];
    Kind kind[MOST_SUFFIXES];
    int suffix_count;
    int verifies;
    int is_hooked; /* others have path hooks: a folder is ours once `PathFinder` has made a FileFinder */
    int unknown; /* folders on sys.path that no manifest knows */
} Finder;

/* The spec of this name on this path (None for `sys.path`), None to leave it to `PathFinder`; NULL with an exception. */
PyObject *velo_find(State *state, Finder *finder, PyObject *name, PyObject *path);

#endif
