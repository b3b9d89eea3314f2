// SPDX-License-Identifier: Apache-2.0
/*
 * The native half of the hook: files mapped without a descriptor left behind, stamps compared without building
 * Python's stat result, and a module's code made in one call.
 *
 * Reading order: `Map` (a read-only buffer over one mapped file), `velo_map` (the only way to make one),
 * `is_unchanged`, `velo_make_code` and `load_code` (what each served module costs), `take_lock`, then the module's
 * tables. The finder begins in finder.c, the manifest's layout stands in manifest.c. The Python twin of this file is
 * velo_import/hook/mapping.py; it is used where this module was not built, and the tests put both through the same
 * cases.
 *
 * Why not CPython's own mmap module: before 3.13 it keeps a duplicate of the descriptor. A program that closes
 * every descriptor and opens its own files would have one of them closed by our map at exit.
 *
 * Stable ABI (3.11): one build serves every CPython from 3.11 on.
 */

#include "core.h"
#include "manifest.h"
#include "siphash.h"
#include "stamps.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <unistd.h>

/* Mapped pages count as the process's memory while they stay, and what was unmarshalled is not needed again. So
 * they are given back once this much was read; giving them back more often costs more than reading them. */
#define MOST_READ (1 << 16)

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

PyObject *velo_map(State *state, PyObject *path, int is_writable, struct stat *status)
{
    PyObject *map = NULL;
    int descriptor = open(PyBytes_AsString(path), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (descriptor < 0 || fstat(descriptor, status) != 0)
        goto refused;
    if (!S_ISREG(status->st_mode)) {
        errno = EINVAL;
        goto refused;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)state->map_type, Py_tp_alloc);
    map = allocate((PyTypeObject *)state->map_type, 0); /* zeroed: start is NULL */
    if (map == NULL)
        goto done;
    ((Map *)map)->size = (Py_ssize_t)status->st_size;
    if (status->st_size > 0) {
        void *start = mmap(NULL, (size_t)status->st_size, is_writable ? PROT_READ | PROT_WRITE : PROT_READ,
                           is_writable ? MAP_PRIVATE : MAP_SHARED, descriptor, 0);
        if (start == MAP_FAILED)
            goto refused;
        ((Map *)map)->start = start;
    }
    goto done;

refused:
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    Py_CLEAR(map);
done:
    if (descriptor >= 0)
        close(descriptor);
    return map;
}

Map *velo_map_private(State *state, PyObject *path, uid_t owner, int is_writable, struct stat *status)
{
    PyObject *raw = NULL;
    if (!PyUnicode_FSConverter(path, &raw))
        return NULL;
    PyObject *map = velo_map(state, raw, is_writable, status);
    Py_DECREF(raw);
    if (map != NULL && ((status->st_uid != 0 && status->st_uid != geteuid() && status->st_uid != owner) ||
                        (status->st_mode & 0022))) {
        Py_CLEAR(map);
        PyErr_SetString(state->unusable, "owner");
    }
    return (Map *)map;
}

static PyObject *with_stamp(PyObject *map, const struct stat *status)
{
    return Py_BuildValue("N(LLLK)", map, (long long)status->st_size, nanoseconds(MTIME(*status)),
                         nanoseconds(CTIME(*status)), (unsigned long long)status->st_ino);
}

PyDoc_STRVAR(map_private_doc,
             "map_private(path: str, owner: int) -> tuple[Map, tuple[int, ...]]\n\n"
             "Map a file that only its owner (we, root, or the store's) could have written. Gives the map and\n"
             "(size, mtime_ns, ctime_ns, ino). Raises OSError, and Unusable for another owner or mode.");

static PyObject *map_private(PyObject *module, PyObject *arguments)
{
    PyObject *path;
    unsigned long owner;
    struct stat status;
    if (!PyArg_ParseTuple(arguments, "Uk", &path, &owner))
        return NULL;
    PyObject *map = (PyObject *)velo_map_private(PyModule_GetState(module), path, (uid_t)owner, 0, &status);
    return map == NULL ? NULL : with_stamp(map, &status);
}

static PyObject *map_file(PyObject *module, PyObject *argument)
{
    char *path;
    if (PyBytes_AsStringAndSize(argument, &path, NULL) < 0) /* refuses a path with a NUL in it */
        return NULL;
    struct stat status;
    PyObject *map = velo_map(PyModule_GetState(module), argument, 0, &status);
    if (map == NULL)
        return NULL;
    return Py_BuildValue("N(kkLLLK)", map, (unsigned long)status.st_uid, (unsigned long)status.st_mode,
                         (long long)status.st_size, nanoseconds(MTIME(status)), nanoseconds(CTIME(status)),
                         (unsigned long long)status.st_ino);
}

PyDoc_STRVAR(is_unchanged_doc,
             "is_unchanged(path: str, size: int, mtime_ns: int, ctime_ns: int, ino: int) -> bool | None\n\n"
             "Whether the file still has this stamp; None when only a time or the inode differs, so that\n"
             "its content has to be asked. A size of -1 is any size. A file that is not there has changed.");

Stamp velo_compare(const char *path, long long size, long long mtime, long long ctime, unsigned long long inode)
{
    struct stat status;
    if (stat(path, &status) != 0 || (size >= 0 && size != (long long)status.st_size))
        return CHANGED;
    if (nanoseconds(MTIME(status)) == mtime && nanoseconds(CTIME(status)) == ctime && status.st_ino == inode)
        return UNCHANGED;
    return ANOTHER_STAMP;
}

Stamp velo_compare_path(PyObject *path, long long size, long long mtime, long long ctime, unsigned long long inode)
{
    PyObject *encoded = NULL;
    if (!PyUnicode_FSConverter(path, &encoded))
        return FAILED;
    Stamp stamp = velo_compare(PyBytes_AsString(encoded), size, mtime, ctime, inode);
    Py_DECREF(encoded);
    return stamp;
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
    return stamp_answer(velo_compare_path(path, size, mtime, ctime, ino));
}

static void give_pages_back(State *state)
{
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

void velo_note_read(State *state, Map *map, uint64_t length)
{
    if (length > MOST_READ) /* also what a damaged record says */
        length = MOST_READ;
    if (state->read + (Py_ssize_t)length > MOST_READ || (!map->is_used && state->used_count == MOST_USED))
        give_pages_back(state);
    state->read += (Py_ssize_t)length;
    if (!map->is_used) {
        Py_INCREF((PyObject *)map);
        state->used[state->used_count++] = map;
        map->is_used = 1;
    }
}

PyObject *velo_make_code(State *state, Map *pack, uint64_t start, uint64_t length, PyObject *path, PyObject *cached)
{
    /* Auditors see the event that reading the cached file would have raised. */
    PyObject *audited = PyObject_CallFunctionObjArgs(state->audit, state->open_event, cached, state->open_mode,
                                                     state->open_flags, NULL);
    if (audited == NULL)
        return NULL;
    Py_DECREF(audited);
    velo_note_read(state, pack, length);
    PyObject *view = PyMemoryView_FromMemory(pack->start + start, (Py_ssize_t)length, PyBUF_READ);
    PyObject *code = view == NULL ? NULL : PyObject_CallFunctionObjArgs(state->loads, view, NULL);
    Py_XDECREF(view);
    if (code != NULL) {
        PyObject *fixed = PyObject_CallFunctionObjArgs(state->fix, code, path, NULL); /* refuses what is no code */
        if (fixed == NULL)
            Py_CLEAR(code);
        Py_XDECREF(fixed);
    }
    return code;
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
    uint64_t record[VELO_WORDS];
    int is_there = at >= 0 && at <= records.len / 8 - VELO_WORDS;
    if (is_there)
        memcpy(record, (const char *)records.buf + at * 8, sizeof(record));
    PyBuffer_Release(&records);
    if (!is_there || record[VELO_START] > (uint64_t)map->size || record[VELO_LENGTH] > (uint64_t)map->size - record[VELO_START] ||
        record[VELO_LENGTH] == 0) {
        PyErr_SetString(PyExc_IndexError, "no such range");
        return NULL;
    }
    if (asks) {
        Stamp stamp = velo_compare_path(path, (long long)record[VELO_SIZE], (long long)record[VELO_MTIME],
                                    (long long)record[VELO_CTIME], record[VELO_INODE]);
        if (stamp != UNCHANGED)
            return stamp_answer(stamp);
    }

    return velo_make_code(state, map, record[VELO_START], record[VELO_LENGTH], path, arguments[1]);
}

/* In every CPython since 3.8; the stable ABI's header declares it only from 3.13 on. */
extern int PySys_Audit(const char *event, const char *format, ...);

/* Called for the arguments of an event: after it was seen that somebody listens, and before anybody is told. */
static PyObject *refuse(void *is_listening)
{
    *(int *)is_listening = 1;
    PyErr_SetNone(PyExc_RuntimeError);
    return NULL;
}

PyDoc_STRVAR(is_audited_doc,
             "is_audited() -> bool\n\n"
             "Whether any audit hook is installed. None is called.");

int velo_is_audited(void)
{
    int is_listening = 0;
    if (PySys_Audit("velo", "O&", refuse, &is_listening) < 0)
        PyErr_Clear();
    return is_listening;
}

static PyObject *is_audited(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyBool_FromLong(velo_is_audited());
}

/* In every CPython, and exported; the stable ABI's headers leave it out. */
extern PyObject *PyMarshal_ReadObjectFromString(const char *data, Py_ssize_t length);

PyDoc_STRVAR(unpack_doc,
             "unpack(pieces: buffer, start: int, length: int, check: bytes) -> object | None\n\n"
             "The marshalled piece at this range; None unless its checksum is the given one. Raises\n"
             "EOFError, TypeError or ValueError for what is not marshalled.");

static PyObject *unpack(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer pieces, check;
    Py_ssize_t start, length;
    PyObject *found = NULL;
    if (!PyArg_ParseTuple(arguments, "y*nny*", &pieces, &start, &length, &check))
        return NULL;
    int is_there = start >= 0 && length >= 0 && start <= pieces.len && length <= pieces.len - start && check.len == 8;
    uint64_t sum = is_there ? velo_siphash((const char *)pieces.buf + start, (size_t)length) : 0;
    if (is_there && memcmp(&sum, check.buf, sizeof(sum)) == 0)
        found = PyMarshal_ReadObjectFromString((const char *)pieces.buf + start, length);
    else
        found = Py_NewRef(Py_None);
    PyBuffer_Release(&pieces);
    PyBuffer_Release(&check);
    return found;
}

PyDoc_STRVAR(run_doc,
             "run(code: code, namespace: dict) -> None\n\n"
             "Run a module's code. As `exec`, except that auditors are not told. Raises what the code raises, and TypeError or\n"
             "AttributeError for what is no code.");

static PyObject *run(PyObject *module, PyObject *arguments)
{
    State *state = PyModule_GetState(module);
    PyObject *code, *namespace;
    if (!PyArg_ParseTuple(arguments, "OO!", &code, &PyDict_Type, &namespace))
        return NULL;
    PyObject *name = PyObject_GetAttrString(code, "co_filename");
    PyObject *fixed = name == NULL ? NULL : PyObject_CallFunctionObjArgs(state->fix, code, name, NULL);
    Py_XDECREF(name);
    if (fixed == NULL) /* which refuses what is no code */
        return NULL;
    Py_DECREF(fixed);
    return PyEval_EvalCode(code, namespace, namespace);
}

PyDoc_STRVAR(load_extension_doc,
             "load_extension(name: str) -> module\n\n"
             "A module that the interpreter has built in, left out of `sys.modules`. Raises ImportError.");

static PyObject *load_extension(PyObject *module, PyObject *name)
{
    (void)module;
    PyObject *found = PyImport_GetModule(name);
    if (found != NULL || PyErr_Occurred())
        return found;
    PyObject *type = velo_loaded("_frozen_importlib", "ModuleSpec");
    PyObject *create = velo_loaded("_imp", "create_builtin"), *exec = velo_loaded("_imp", "exec_builtin");
    PyObject *spec = type == NULL ? NULL : PyObject_CallFunctionObjArgs(type, name, Py_None, NULL), *done = NULL;
    if (spec != NULL && create != NULL && exec != NULL)
        found = PyObject_CallFunctionObjArgs(create, spec, NULL);
    if (found == Py_None) {
        PyErr_SetObject(PyExc_ImportError, name);
        Py_CLEAR(found);
    }
    if (found != NULL && (done = PyObject_CallFunctionObjArgs(exec, found, NULL)) == NULL)
        Py_CLEAR(found);
    Py_XDECREF(done);
    Py_XDECREF(spec);
    Py_XDECREF(exec);
    Py_XDECREF(create);
    Py_XDECREF(type);
    return found;
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

PyDoc_STRVAR(note_read_doc,
             "note_read(map: Map, length: int) -> None\n\n"
             "Note that so much of a map is about to be read. The pages of all maps are given back once there were enough.");

static PyObject *note_read(PyObject *module, PyObject *arguments)
{
    State *state = PyModule_GetState(module);
    PyObject *map;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "O!n", (PyTypeObject *)state->map_type, &map, &length))
        return NULL;
    velo_note_read(state, (Map *)map, length < 0 ? 0 : (uint64_t)length);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(note_end_doc,
             "note_end() -> None\n\n"
             "Note that the program ends: the pages of all maps are given back before the exit needs memory of its own.");

static PyObject *note_end(PyObject *module, PyObject *nothing)
{
    (void)nothing;
    give_pages_back(PyModule_GetState(module));
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_loads_doc,
             "set_loads(loads: Callable[[buffer], object]) -> None\n\n"
             "What makes code of bytes from now on, instead of `marshal.loads`: for hook/trace.py, which takes the time.");

static PyObject *set_loads(PyObject *module, PyObject *argument)
{
    State *state = PyModule_GetState(module);
    PyObject *before = state->loads;
    Py_INCREF(argument);
    state->loads = argument;
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(serve_doc,
             "serve(loader: VeloSourceLoader, fullname: str) -> code | None\n\n"
             "The code of the module from its pack, counted; None where anything is out of the ordinary, and nothing\n"
             "has been done then. Raises what unmarshalling or an auditor raises.");

PyDoc_STRVAR(look_at_remains_doc,
             "look_at_remains(python_class: type, weak: type, function: type, stdlib: bytes, ignored: tuple,\n"
             "    get_objects: Callable[[], list], deep: bool) -> tuple[list, list, set[str]]\n\n"
             "Objects alive that have a finaliser, or are known to do something when destroyed, except those\n"
             "`ignored`; callbacks of weak references; files of native code, not CPython's, that cleans up.\n"
             "`python_class` is any class made by a `class` statement, `weak` and `function` are the types of weak\n"
             "references and of functions, `stdlib` is the folder of the standard library's native modules.\n"
             "`deep` looks also at what the collector does not list, which costs three times as much.\n"
             "Raises OverflowError when there is too much, RuntimeError in an interpreter that is not the main one.");

static PyMethodDef functions[] = {
    {"map_file", map_file, METH_O, map_file_doc},
    {"map_private", map_private, METH_VARARGS, map_private_doc},
    {"unpack", unpack, METH_VARARGS, unpack_doc},
    {"run", run, METH_VARARGS, run_doc},
    {"load_extension", load_extension, METH_O, load_extension_doc},
    {"is_unchanged", is_unchanged, METH_VARARGS, is_unchanged_doc},
    {"load_code", (PyCFunction)(void (*)(void))load_code, METH_FASTCALL, load_code_doc},
    {"serve", (PyCFunction)(void (*)(void))velo_serve, METH_FASTCALL, serve_doc},
    {"take_lock", take_lock, METH_O, take_lock_doc},
    {"look_at_remains", velo_look_at_remains, METH_VARARGS, look_at_remains_doc},
    {"is_audited", is_audited, METH_NOARGS, is_audited_doc},
    {"note_read", note_read, METH_VARARGS, note_read_doc},
    {"note_end", note_end, METH_NOARGS, note_end_doc},
    {"set_loads", set_loads, METH_O, set_loads_doc},
    {NULL, NULL, 0, NULL},
};

PyObject *velo_loaded(const char *name, const char *attribute)
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
    state->loads = velo_loaded("marshal", "loads");
    state->fix = velo_loaded("_imp", "_fix_co_filename");
    state->audit = velo_loaded("sys", "audit");
    state->open_event = PyUnicode_FromString("open");
    state->open_mode = PyUnicode_FromString("r");
    state->open_flags = PyLong_FromLong(O_RDONLY | O_CLOEXEC);
    return PyErr_Occurred() || velo_add_images(module, state) < 0 || velo_add_finder(module, state) < 0 ? -1 : 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    if (state != NULL) {
        Py_VISIT(state->map_type);
        Py_VISIT(state->manifest_type);
        Py_VISIT(state->folder_type);
        Py_VISIT(state->finder_type);
        Py_VISIT(state->images_type);
        Py_VISIT(state->unusable);
        Py_VISIT(state->sys);
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
        Py_CLEAR(state->manifest_type);
        Py_CLEAR(state->folder_type);
        Py_CLEAR(state->finder_type);
        Py_CLEAR(state->images_type);
        Py_CLEAR(state->unusable);
        Py_CLEAR(state->sys);
        Py_CLEAR(state->listdir);
        Py_CLEAR(state->getcwd);
        Py_CLEAR(state->one);
        for (int i = 0; i < TEXTS; i++)
            Py_CLEAR(state->text[i]);
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
