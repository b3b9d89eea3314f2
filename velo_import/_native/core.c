// SPDX-License-Identifier: Apache-2.0
/*
 * The native half of the hook: files mapped without a descriptor left behind, stamps compared without building
 * Python's stat result, and a module's code made in one call.
 *
 * Reading order: `Map` (a read-only buffer over one mapped file), `map_file` (the only way to make one),
 * `is_unchanged`, `load_code` (what each served module costs), `Watch` (many stamps asked in one call),
 * `take_lock`, then the module's tables. The Python twin is velo_import/hook/mapping.py; it is used where this
 * module was not built, and the tests put both through the same cases.
 *
 * Why not CPython's own mmap module: before 3.13 it keeps a duplicate of the descriptor. A program that closes
 * every descriptor and opens its own files would have one of them closed by our map at exit.
 *
 * Stable ABI (3.11): one build serves every CPython from 3.11 on.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "stamps.h"

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    char *start; /* NULL when the file is empty: mmap refuses a length of zero */
    Py_ssize_t size;
    int is_used; /* it was read since pages were last given back */
} Map;

/* One search-path entry: what sys.path_importer_cache must hold for it, and the folder's stamp. */
typedef struct {
    PyObject *key;
    PyObject *importer;
    PyObject *path; /* bytes, or NULL: nothing to ask the kernel, or no folder at all (`is_absent`) */
    int is_absent;
    long long mtime, ctime;
    unsigned long long ino;
} Entry;

typedef struct {
    PyObject_HEAD
    Py_ssize_t count;
    Entry *entries;
} Watch;

/* Mapped pages count as the process's memory while they stay, and what was unmarshalled is not needed again. So
 * they are given back once this much was read; giving them back more often costs more than reading them. */
#define MOST_READ (1 << 17)
#define MOST_USED 16

typedef struct {
    PyObject *map_type;
    PyObject *watch_type;
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

/* The words of a module's record (FORMAT.md, section 3). */
enum { START = 1, LENGTH, MTIME_NS, CTIME_NS, INODE, SIZE, WORDS = 10 };

static int map_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    Map *map = (Map *)self;
    return PyBuffer_FillInfo(view, self, map->start ? map->start : "", map->size, 1, flags);
}

static void map_dealloc(PyObject *self)
{
    Map *map = (Map *)self;
    PyTypeObject *type = Py_TYPE(self);
    if (map->start != NULL)
        munmap(map->start, (size_t)map->size);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyType_Slot map_slots[] = {
    {Py_bf_getbuffer, map_getbuffer},
    {Py_tp_dealloc, map_dealloc},
    {Py_tp_doc, "A read-only buffer over one mapped file; holds no descriptor."},
    {0, NULL},
};

static PyType_Spec map_spec = {
    .name = "velo_import._native.core.Map",
    .basicsize = sizeof(Map),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = map_slots,
};

PyDoc_STRVAR(map_file_doc,
             "map_file(path: bytes) -> tuple[Map, tuple[int, ...]]\n\n"
             "Map a regular file read-only. Gives the map and (uid, mode, size, mtime_ns, ctime_ns, ino).\n"
             "Symbolic links are not followed. Raises OSError.");

static PyObject *map_file(PyObject *module, PyObject *argument)
{
    char *path;
    if (PyBytes_AsStringAndSize(argument, &path, NULL) < 0) /* refuses a path with a NUL in it */
        return NULL;
    PyObject *answer = NULL;
    PyObject *map = NULL;
    struct stat status;
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0 || fstat(descriptor, &status) != 0)
        goto refused;
    if (!S_ISREG(status.st_mode)) {
        errno = EINVAL;
        goto refused;
    }

    State *state = PyModule_GetState(module);
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)state->map_type, Py_tp_alloc);
    map = allocate((PyTypeObject *)state->map_type, 0); /* zeroed: start is NULL */
    if (map == NULL)
        goto done;
    ((Map *)map)->size = (Py_ssize_t)status.st_size;
    if (status.st_size > 0) {
        void *start = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, descriptor, 0);
        if (start == MAP_FAILED)
            goto refused;
        ((Map *)map)->start = start;
    }
    answer = Py_BuildValue("O(kkLLLK)", map, (unsigned long)status.st_uid, (unsigned long)status.st_mode,
                           (long long)status.st_size, nanoseconds(MTIME(status)), nanoseconds(CTIME(status)),
                           (unsigned long long)status.st_ino);
    goto done;

refused:
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, argument);
done:
    Py_XDECREF(map);
    if (descriptor >= 0)
        close(descriptor);
    return answer;
}

PyDoc_STRVAR(is_unchanged_doc,
             "is_unchanged(path: str, size: int, mtime_ns: int, ctime_ns: int, ino: int) -> bool | None\n\n"
             "Whether the file still has this stamp; None when only a time or the inode differs, so that\n"
             "its content has to be asked. A size of -1 is any size. A file that is not there has changed.");

typedef enum { CHANGED, UNCHANGED, ANOTHER_STAMP, FAILED } Stamp;

static Stamp compare_stamp(PyObject *path, long long size, long long mtime, long long ctime,
                           unsigned long long ino)
{
    PyObject *encoded = NULL;
    if (!PyUnicode_FSConverter(path, &encoded))
        return FAILED;
    struct stat status;
    int refused = stat(PyBytes_AsString(encoded), &status);
    Py_DECREF(encoded);
    if (refused || (size >= 0 && size != (long long)status.st_size))
        return CHANGED;
    if (nanoseconds(MTIME(status)) == mtime && nanoseconds(CTIME(status)) == ctime && status.st_ino == ino)
        return UNCHANGED;
    return ANOTHER_STAMP;
}

static PyObject *stamp_answer(Stamp stamp)
{
    if (stamp == FAILED)
        return NULL;
    PyObject *answer = stamp == CHANGED ? Py_False : stamp == UNCHANGED ? Py_True : Py_None;
    Py_INCREF(answer);
    return answer;
}

static PyObject *is_unchanged(PyObject *module, PyObject *arguments)
{
    (void)module;
    PyObject *path;
    long long size, mtime, ctime;
    unsigned long long ino;
    if (!PyArg_ParseTuple(arguments, "OLLLK", &path, &size, &mtime, &ctime, &ino))
        return NULL;
    return stamp_answer(compare_stamp(path, size, mtime, ctime, ino));
}

/* Note that so much of a map is about to be read; give pages back once there were enough of them. */
static void note_read(State *state, Map *map, Py_ssize_t length)
{
    if (state->read + length > MOST_READ || (!map->is_used && state->used_count == MOST_USED)) {
        for (int i = 0; i < state->used_count; i++) {
            Map *used = state->used[i];
            /* All of it: the kernel has mapped pages around those that were read. */
            madvise(used->start, (size_t)used->size, MADV_DONTNEED);
            used->is_used = 0;
            Py_DECREF((PyObject *)used);
        }
        state->used_count = 0;
        state->read = 0;
    }
    state->read += length;
    if (!map->is_used) {
        Py_INCREF((PyObject *)map);
        state->used[state->used_count++] = map;
        map->is_used = 1;
    }
}

PyDoc_STRVAR(load_code_doc,
             "load_code(path: str, cached: str, records: buffer, at: int, asks: bool, pack: Map) -> code | bool | None\n\n"
             "The code of the module whose record is at word `at`, with `path` as its file name. If the kernel is\n"
             "to be asked and says that the source is another, False, or None when only a time or the inode\n"
             "differs. Raises IndexError for a record or a range that is not there; EOFError, TypeError or\n"
             "ValueError for bytes that are no code; and what an auditor raises.");

static PyObject *load_code(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (count != 6 || !PyObject_TypeCheck(arguments[5], (PyTypeObject *)state->map_type)) {
        PyErr_SetString(PyExc_TypeError, "six arguments, the last of them a map");
        return NULL;
    }
    PyObject *path = arguments[0];
    Map *map = (Map *)arguments[5];
    Py_ssize_t at = PyLong_AsSsize_t(arguments[3]);
    int asks = PyObject_IsTrue(arguments[4]);
    Py_buffer records;
    if (asks < 0 || (at == -1 && PyErr_Occurred()) || PyObject_GetBuffer(arguments[2], &records, PyBUF_SIMPLE) < 0)
        return NULL;
    uint64_t record[WORDS];
    int is_there = at >= 0 && at <= records.len / 8 - WORDS;
    if (is_there)
        memcpy(record, (const char *)records.buf + at * 8, sizeof(record));
    PyBuffer_Release(&records);
    if (!is_there || record[START] > (uint64_t)map->size || record[LENGTH] > (uint64_t)map->size - record[START] ||
        record[LENGTH] == 0) {
        PyErr_SetString(PyExc_IndexError, "no such range");
        return NULL;
    }
    if (asks) {
        Stamp stamp = compare_stamp(path, (long long)record[SIZE], (long long)record[MTIME_NS],
                                    (long long)record[CTIME_NS], record[INODE]);
        if (stamp != UNCHANGED)
            return stamp_answer(stamp);
    }

    PyObject *view = NULL;
    PyObject *code = NULL;
    /* Auditors see the event that reading the cached file would have raised. */
    PyObject *audited = PyObject_CallFunctionObjArgs(state->audit, state->open_event, arguments[1],
                                                     state->open_mode, state->open_flags, NULL);
    if (audited == NULL)
        return NULL;
    Py_DECREF(audited);
    note_read(state, map, (Py_ssize_t)record[LENGTH]);
    view = PyMemoryView_FromMemory(map->start + record[START], (Py_ssize_t)record[LENGTH], PyBUF_READ);
    if (view != NULL)
        code = PyObject_CallFunctionObjArgs(state->loads, view, NULL);
    Py_XDECREF(view);
    if (code != NULL) {
        PyObject *fixed = PyObject_CallFunctionObjArgs(state->fix, code, path, NULL); /* refuses what is no code */
        if (fixed == NULL)
            Py_CLEAR(code);
        Py_XDECREF(fixed);
    }
    return code;
}

static void watch_dealloc(PyObject *self)
{
    Watch *watch = (Watch *)self;
    PyTypeObject *type = Py_TYPE(self);
    for (Py_ssize_t i = 0; i < watch->count; i++) {
        Py_XDECREF(watch->entries[i].key);
        Py_XDECREF(watch->entries[i].importer);
        Py_XDECREF(watch->entries[i].path);
    }
    PyMem_Free(watch->entries);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(watch_is_current_doc,
             "is_current(count: int, importers: dict) -> bool\n\n"
             "Whether the first `count` entries still have their importers and their stamps.");

static PyObject *watch_is_current(PyObject *self, PyObject *arguments)
{
    Watch *watch = (Watch *)self;
    Py_ssize_t count;
    PyObject *importers;
    if (!PyArg_ParseTuple(arguments, "nO!", &count, &PyDict_Type, &importers))
        return NULL;
    if (count < 0 || count > watch->count)
        count = watch->count;
    for (Py_ssize_t i = 0; i < count; i++) {
        Entry *entry = &watch->entries[i];
        PyObject *importer = PyDict_GetItemWithError(importers, entry->key); /* borrowed */
        if (importer == NULL && PyErr_Occurred())
            return NULL;
        if (importer == NULL ? entry->is_absent || entry->importer != Py_None : importer != entry->importer)
            Py_RETURN_FALSE;
        if (entry->path == NULL)
            continue;
        struct stat status;
        if (stat(PyBytes_AsString(entry->path), &status) != 0 || status.st_ino != entry->ino ||
            nanoseconds(MTIME(status)) != entry->mtime || nanoseconds(CTIME(status)) != entry->ctime)
            Py_RETURN_FALSE;
    }
    Py_RETURN_TRUE;
}

static PyMethodDef watch_methods[] = {
    {"is_current", watch_is_current, METH_VARARGS, watch_is_current_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot watch_slots[] = {
    {Py_tp_dealloc, watch_dealloc},
    {Py_tp_methods, watch_methods},
    {Py_tp_doc, "The entries of a search path, to be asked in one call."},
    {0, NULL},
};

static PyType_Spec watch_spec = {
    .name = "velo_import._native.core.Watch",
    .basicsize = sizeof(Watch),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = watch_slots,
};

PyDoc_STRVAR(watch_doc,
             "watch(entries: list[tuple[str, object, bytes | None, bool, int, int, int]]) -> Watch\n\n"
             "Each entry: key and value in sys.path_importer_cache (None for no value), path in bytes or None if\n"
             "the kernel need not be asked, whether it is no folder, then mtime_ns, ctime_ns and inode.");

static PyObject *watch(PyObject *module, PyObject *argument)
{
    if (!PyList_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    State *state = PyModule_GetState(module);
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)state->watch_type, Py_tp_alloc);
    PyObject *answer = allocate((PyTypeObject *)state->watch_type, 0); /* zeroed: no entries */
    if (answer == NULL)
        return NULL;
    Watch *made = (Watch *)answer;
    Py_ssize_t count = PyList_Size(argument);
    made->entries = PyMem_Calloc((size_t)count + 1, sizeof(Entry));
    if (made->entries == NULL) {
        Py_DECREF(answer);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        Entry *entry = &made->entries[i];
        PyObject *key, *importer, *path;
        int is_absent;
        PyObject *item = PyList_GetItem(argument, i); /* borrowed */
        if (item == NULL || !PyTuple_Check(item) ||
            !PyArg_ParseTuple(item, "UOOpLLK", &key, &importer, &path, &is_absent, &entry->mtime,
                              &entry->ctime, &entry->ino) ||
            (path != Py_None && !PyBytes_Check(path))) {
            if (!PyErr_Occurred())
                PyErr_SetString(PyExc_TypeError, "an entry is not what it should be");
            Py_DECREF(answer);
            return NULL;
        }
        Py_INCREF(key);
        Py_INCREF(importer);
        Py_XINCREF(path == Py_None ? NULL : path);
        entry->key = key;
        entry->importer = importer;
        entry->path = path == Py_None ? NULL : path;
        entry->is_absent = is_absent;
        made->count = i + 1;
    }
    return answer;
}

PyDoc_STRVAR(take_lock_doc,
             "take_lock(path: bytes) -> int\n\n"
             "Open a lock file, made if need be, and lock it without waiting. Gives the descriptor.\n"
             "Raises OSError, BlockingIOError when another process holds it.");

static PyObject *take_lock(PyObject *module, PyObject *argument)
{
    (void)module;
    char *path;
    if (PyBytes_AsStringAndSize(argument, &path, NULL) < 0) /* refuses a path with a NUL in it */
        return NULL;
    int descriptor = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (descriptor < 0 || flock(descriptor, LOCK_EX | LOCK_NB) != 0) {
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, argument);
        if (descriptor >= 0)
            close(descriptor);
        return NULL;
    }
    return PyLong_FromLong(descriptor);
}

static PyMethodDef functions[] = {
    {"map_file", map_file, METH_O, map_file_doc},
    {"is_unchanged", is_unchanged, METH_VARARGS, is_unchanged_doc},
    {"load_code", (PyCFunction)(void (*)(void))load_code, METH_FASTCALL, load_code_doc},
    {"watch", watch, METH_O, watch_doc},
    {"take_lock", take_lock, METH_O, take_lock_doc},
    {NULL, NULL, 0, NULL},
};

/* An attribute of a module that every interpreter has loaded by now: to import it could run a program's hook. */
static PyObject *loaded(const char *name, const char *attribute)
{
    PyObject *text = PyUnicode_FromString(name);
    PyObject *module = text == NULL ? NULL : PyImport_GetModule(text);
    PyObject *found = module == NULL ? NULL : PyObject_GetAttrString(module, attribute);
    if (module == NULL && !PyErr_Occurred())
        PyErr_SetObject(PyExc_ImportError, text);
    Py_XDECREF(module);
    Py_XDECREF(text);
    return found;
}

static int module_exec(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->map_type = PyType_FromModuleAndSpec(module, &map_spec, NULL);
    state->watch_type = PyType_FromModuleAndSpec(module, &watch_spec, NULL);
    state->loads = loaded("marshal", "loads");
    state->fix = loaded("_imp", "_fix_co_filename");
    state->audit = loaded("sys", "audit");
    state->open_event = PyUnicode_FromString("open");
    state->open_mode = PyUnicode_FromString("rb");
    state->open_flags = PyLong_FromLong(O_RDONLY | O_CLOEXEC);
    return PyErr_Occurred() ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->map_type);
        Py_VISIT(state->watch_type);
        Py_VISIT(state->loads);
        Py_VISIT(state->fix);
        Py_VISIT(state->audit);
    }
    return 0;
}

static int module_clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_CLEAR(state->map_type);
        Py_CLEAR(state->watch_type);
        Py_CLEAR(state->loads);
        Py_CLEAR(state->fix);
        Py_CLEAR(state->audit);
        Py_CLEAR(state->open_event);
        Py_CLEAR(state->open_mode);
        Py_CLEAR(state->open_flags);
        while (state->used_count > 0)
            Py_DECREF((PyObject *)state->used[--state->used_count]);
    }
    return 0;
}

static void module_free(void *module)
{
    module_clear(module);
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "core",
    .m_doc = "Velo's native helpers for the hook.",
    .m_size = sizeof(State),
    .m_methods = functions,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
    .m_free = module_free,
};

PyMODINIT_FUNC PyInit_core(void)
{
    return PyModuleDef_Init(&definition);
}
