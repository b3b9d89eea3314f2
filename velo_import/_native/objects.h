/* SPDX-License-Identifier: Apache-2.0 */
/* Small things that every room of the finder does with Python's objects; and what the rooms know of each other: one
 * mapped manifest (mapped.c), and one path entry (entry.c). */
#ifndef VELO_OBJECTS_H
#define VELO_OBJECTS_H

#include "core.h"
#include "manifest.h"

#include <structmember.h>

typedef struct {
    PyObject_HEAD
    Map *map;
    velo_manifest content;
    PyObject *path, *pack_folder; /* text */
    uid_t owner;
    PyObject **packs; /* for each pack a map, None for one that is not to be used, or NULL */
    signed char *roots; /* for each root whether its stamp held, or -1 */
    Py_ssize_t pack_count, root_count;
} Manifest;

typedef struct {
    PyObject_HEAD
    PyObject *path, *prefix, *cached; /* text: without, and with the final slash; of the folder __pycache__ */
    PyObject *raw;                    /* the path in bytes */
    PyObject *importer;               /* what sys.path_importer_cache held when the folder was opened */
    PyObject *names;                  /* the listing, a set; NULL while the folder is what the block describes */
    Manifest *manifest;               /* NULL when no manifest knows the folder */
    velo_folder block;
    velo_names table;
    long long mtime, ctime;
    unsigned long long inode;
    int asks;     /* the kernel is asked on each use */
    int verifies; /* payloads are compared with their checksum: left to the twin's loader */
} Folder;

static inline State *state_of(void *object)
{
    return PyType_GetModuleState(Py_TYPE((PyObject *)object));
}

static inline void *allocate(PyObject *type)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    return allocate((PyTypeObject *)type, 0); /* zeroed */
}

static inline void release(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static inline PyObject *text_of(velo_span span)
{
    return PyUnicode_DecodeFSDefaultAndSize((const char *)span.start, (Py_ssize_t)span.size);
}

static inline PyObject *join(PyObject *first, PyObject *second, PyObject *third)
{
    PyObject *both = PyUnicode_Concat(first, second);
    if (both == NULL || third == NULL)
        return both;
    PyObject *all = PyUnicode_Concat(both, third);
    Py_DECREF(both);
    return all;
}

static inline PyObject *none(void)
{
    Py_INCREF(Py_None);
    return Py_None;
}

/* An interned text of the state; borrowed. */
#define TEXT(state, which) ((state)->text[which])

static inline int set_unusable(State *state, const char *reason)
{
    PyErr_SetString(state->unusable, reason);
    return -1;
}

static inline PyObject *add_type(PyObject *module, PyType_Spec *spec, const char *name)
{
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (type != NULL && PyModule_AddObjectRef(module, name, type) < 0)
        Py_CLEAR(type);
    return type;
}

/* One mapped pack, or None when it is gone, foreign, or no longer what was verified; borrowed. */
PyObject *velo_map_of_pack(State *state, Manifest *manifest, uint64_t index);

/* Whether folders of this root are compared with the kernel on each use; -1 for an error. */
int velo_root_asks(State *state, Manifest *manifest, uint64_t index, int check);

/* The folder of this path as no manifest knows it: no stamp can be -1, so that its first use lists it. */
Folder *velo_new_folder(State *state, PyObject *path, PyObject *importer);

/* Let the folder be what this block of the manifest describes. */
int velo_take_block(State *state, Folder *folder, Manifest *manifest, const velo_folder *block);

/* What the manifest says about this folder: 1, 0 when it does not know it, -1 for an error. */
int velo_read_block(State *state, Folder *folder, Manifest *manifest, velo_folder *block);

/* Whether the folder still has its stamp, as far as it is to be asked. */
int velo_is_current(Folder *folder);

/* Compare the folder with its stamp; list it if it has moved, as `FileFinder` does on each use. */
int velo_ask(State *state, Folder *folder);

/* A manifest's method: one folder by its path in bytes, or None. */
PyObject *velo_get_block(PyObject *self, PyObject *argument);

/* Add one to an attribute of what counts. */
int velo_add_to_count(State *state, PyObject *counts, int which);

/* Make the types of mapped.c and entry.c. */
PyObject *velo_add_manifest(PyObject *module);
PyObject *velo_add_folder(PyObject *module);

#endif
