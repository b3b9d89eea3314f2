/* SPDX-License-Identifier: Apache-2.0 */
/* What the C files of the native module share: its state, the map, and stamps. Stable ABI (3.11). */
#ifndef VELO_CORE_H
#define VELO_CORE_H

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <sys/stat.h>

typedef struct {
    PyObject_HEAD
    char *start; /* NULL when the file is empty: mmap refuses a length of zero */
    Py_ssize_t size;
    int is_used; /* it was read since pages were last given back */
} Map;

#define MOST_USED 16

/* Attribute names and pieces of paths, interned once. */
enum {
    SLASH, PYCACHE, INIT, PATH_HOOKS, META_PATH, SYS_PATH, PATH, NAME, PATH_IMPORTER_CACHE, PYCACHE_PREFIX, GET_CODE,
    EXEC_MODULE, SOURCE_TO_CODE, FIND_SPEC, LOADERS, FOLDER, AT, COUNTS, CACHED_PATH, SET_FILEATTR, LOCATIONS, ORIGIN,
    SERVED, NATIVE, ERRORS, SETTLE, IMAGE_FILE, IMAGES, LOAD_LOADER, TEXTS
};

typedef struct {
    PyObject *map_type;
    PyObject *manifest_type;
    PyObject *folder_type;
    PyObject *finder_type;
    PyObject *images_type;
    PyObject *unusable;   /* why a manifest or pack is not used; never leaves the hook */
    PyObject *sys;        /* the dictionary of `sys` */
    PyObject *listdir;    /* posix.listdir */
    PyObject *getcwd;     /* posix.getcwd */
    PyObject *one;
    PyObject *text[TEXTS];
    PyObject *loads;      /* marshal.loads */
    PyObject *fix;        /* _imp._fix_co_filename */
    PyObject *audit;      /* sys.audit */
    PyObject *open_mode;  /* what auditors are told when a cached file is opened */
    PyObject *open_flags;
    PyObject *open_event;
    Map *used[MOST_USED]; /* the maps that were read since pages were last given back */
    int used_count;
    Py_ssize_t read;
} State;

typedef enum { CHANGED, UNCHANGED, ANOTHER_STAMP, FAILED } Stamp;

/* Map a regular file, for writing if asked: what is written stays in this process. Links are not followed. NULL with
 * OSError set. */
PyObject *velo_map(State *state, PyObject *path, int is_writable, struct stat *status);

/* As `velo_map`, for a file that only its owner (we, root, or the store's) could have written; NULL with OSError or
 * Unusable set. */
Map *velo_map_private(State *state, PyObject *path, uid_t owner, int is_writable, struct stat *status);

/* Whether the file has this stamp; a size of -1 is any size. Never FAILED. */
Stamp velo_compare(const char *path, long long size, long long mtime, long long ctime, unsigned long long inode);

/* As `velo_compare`, for a path that is text; FAILED with an exception set. */
Stamp velo_compare_path(PyObject *path, long long size, long long mtime, long long ctime, unsigned long long inode);

/* Note that so much of a map is about to be read; give the pages of all maps back once there were enough of them. */
void velo_note_read(State *state, Map *map, uint64_t length);

/* The code at this range of a pack, with `path` as its file name; `cached` is what auditors are told. */
PyObject *velo_make_code(State *state, Map *pack, uint64_t start, uint64_t length, PyObject *path, PyObject *cached);

/* An attribute of a module that every interpreter has loaded by now: to import it could run a program's hook. */
PyObject *velo_loaded(const char *name, const char *attribute);

/* Whether any audit hook is installed. None is called. */
int velo_is_audited(void);

/* The code of this source and bytecode out of an `Images`, with `path` as its file name; NULL without an exception
 * where there is none. */
PyObject *velo_image(State *state, PyObject *images, uint64_t source, uint64_t bytecode, PyObject *path);

/* Add the types of images.c and finder.c to the module. */
int velo_add_images(PyObject *module, State *state);
int velo_add_finder(PyObject *module, State *state);

/* serve(loader, fullname), see there. */
PyObject *velo_serve(PyObject *module, PyObject *const *arguments, Py_ssize_t count);

/* What is alive and would do something when destroyed; see remains.c. */
PyObject *velo_look_at_remains(PyObject *module, PyObject *arguments);

#endif
