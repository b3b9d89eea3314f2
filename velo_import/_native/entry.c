// SPDX-License-Identifier: Apache-2.0
/*
 * One path entry: the manifest's table of a folder while its stamp holds, a live listing once it does not. The twin is
 * velo_import.hook.finder.Folder.
 */

#include "objects.h"
#include "stamps.h"

#include <string.h>

static void folder_dealloc(PyObject *self)
{
    Folder *folder = (Folder *)self;
    velo_names_free(&folder->table);
    Py_XDECREF(folder->path);
    Py_XDECREF(folder->prefix);
    Py_XDECREF(folder->cached);
    Py_XDECREF(folder->raw);
    Py_XDECREF(folder->importer);
    Py_XDECREF(folder->names);
    Py_XDECREF((PyObject *)folder->manifest);
    release(self);
}

Folder *velo_new_folder(State *state, PyObject *path, PyObject *importer)
{
    Folder *folder = allocate(state->folder_type);
    if (folder == NULL)
        return NULL;
    Py_INCREF(path);
    folder->path = path;
    Py_INCREF(importer);
    folder->importer = importer;
    folder->asks = 1;
    folder->mtime = folder->ctime = -1;
    folder->inode = (unsigned long long)-1;
    Py_ssize_t length = PyUnicode_GetLength(path), size = length;
    while (size > 0 && PyUnicode_ReadChar(path, size - 1) == '/')
        size--;
    PyObject *stem = PyUnicode_Substring(path, 0, size);
    if (stem != NULL) {
        folder->prefix = PyUnicode_Concat(stem, TEXT(state, SLASH));
        folder->cached = PyUnicode_Concat(stem, TEXT(state, PYCACHE));
        Py_DECREF(stem);
    }
    if (folder->prefix == NULL || folder->cached == NULL || !PyUnicode_FSConverter(path, &folder->raw)) {
        Py_DECREF((PyObject *)folder);
        return NULL;
    }
    return folder;
}

int velo_take_block(State *state, Folder *folder, Manifest *manifest, const velo_folder *block)
{
    velo_names table;
    velo_verdict verdict = velo_names_make(&table, block);
    if (verdict == VELO_ABSENT) {
        PyErr_NoMemory();
        return -1;
    }
    if (verdict != VELO_FOUND)
        return set_unusable(state, "damaged");
    /* All of the block was read for its checksum; of all that a record or two will be read again. */
    velo_note_read(state, manifest->map, (uint64_t)(block->names.start + block->names.size - block->records));
    Py_INCREF((PyObject *)manifest);
    folder->manifest = manifest;
    folder->block = *block;
    folder->table = table;
    folder->mtime = block->mtime;
    folder->ctime = block->ctime;
    folder->inode = block->inode;
    return 0;
}

int velo_read_block(State *state, Folder *folder, Manifest *manifest, velo_folder *block)
{
    velo_verdict verdict = velo_manifest_folder(&manifest->content, PyBytes_AsString(folder->raw),
                                                (size_t)PyBytes_Size(folder->raw), block);
    if (verdict == VELO_DAMAGED)
        return set_unusable(state, "damaged");
    return verdict == VELO_FOUND;
}

int velo_is_current(Folder *folder)
{
    return !folder->asks || velo_compare(PyBytes_AsString(folder->raw), -1, folder->mtime, folder->ctime,
                                         folder->inode) == UNCHANGED;
}

int velo_ask(State *state, Folder *folder)
{
    if (velo_is_current(folder))
        return 0;
    struct stat status;
    PyObject *listing = NULL;
    if (stat(PyBytes_AsString(folder->raw), &status) == 0)
        listing = PyObject_CallFunctionObjArgs(state->listdir, folder->path, NULL);
    int is_there = listing != NULL;
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OSError))
            return -1;
        PyErr_Clear();
    }
    PyObject *names = PySet_New(listing);
    Py_XDECREF(listing);
    if (names == NULL)
        return -1;
    PyObject *before = folder->names;
    folder->names = names;
    Py_XDECREF(before);
    folder->mtime = is_there ? nanoseconds(MTIME(status)) : -1;
    folder->ctime = is_there ? nanoseconds(CTIME(status)) : -1;
    folder->inode = is_there ? (unsigned long long)status.st_ino : (unsigned long long)-1;
    return 0;
}

static PyObject *folder_get_records(PyObject *self, void *closure)
{
    (void)closure;
    Folder *folder = (Folder *)self;
    Py_ssize_t start = 0, end = 0;
    if (folder->manifest != NULL) {
        start = folder->block.records - folder->manifest->content.data;
        end = start + (Py_ssize_t)folder->block.modules * 8 * VELO_WORDS;
    }
    PyObject *source = folder->manifest == NULL ? PyBytes_FromStringAndSize(NULL, 0) : NULL;
    PyObject *view = PyMemoryView_FromObject(source == NULL ? (PyObject *)folder->manifest->map : source);
    PyObject *slice = view == NULL ? NULL : PySequence_GetSlice(view, start, end);
    PyObject *words = slice == NULL ? NULL : PyObject_CallMethod(slice, "cast", "s", "Q");
    Py_XDECREF(source);
    Py_XDECREF(view);
    Py_XDECREF(slice);
    return words;
}

static PyObject *folder_get_table(PyObject *self, void *closure)
{
    (void)closure;
    Folder *folder = (Folder *)self;
    PyObject *table = PyDict_New();
    for (uint64_t i = 0; table != NULL && folder->manifest != NULL && i < folder->block.modules; i++) {
        const char *start = (const char *)folder->block.names.start + folder->table.starts[i];
        Py_ssize_t length = (Py_ssize_t)(folder->table.starts[i + 1] - folder->table.starts[i]) - 1;
        PyObject *name = PyUnicode_DecodeUTF8(start, length, "surrogateescape");
        PyObject *place = PyLong_FromUnsignedLongLong(i * VELO_WORDS);
        if (name == NULL || place == NULL || PyDict_SetItem(table, name, place) < 0)
            Py_CLEAR(table);
        Py_XDECREF(name);
        Py_XDECREF(place);
    }
    return table;
}

static PyObject *folder_get_root(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((Folder *)self)->block.root);
}

PyObject *velo_get_block(PyObject *self, PyObject *argument)
{
    State *state = state_of(self);
    char *raw;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(argument, &raw, &size) < 0)
        return NULL;
    PyObject *path = PyUnicode_DecodeFSDefaultAndSize(raw, size);
    Folder *folder = path == NULL ? NULL : velo_new_folder(state, path, Py_None);
    Py_XDECREF(path);
    velo_folder block;
    int found = folder == NULL ? -1 : velo_read_block(state, folder, (Manifest *)self, &block);
    if (found == 1 && (found = velo_take_block(state, folder, (Manifest *)self, &block)) == 0)
        return (PyObject *)folder;
    Py_XDECREF((PyObject *)folder);
    if (found < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyMemberDef folder_members[] = {
    {"path", T_OBJECT_EX, offsetof(Folder, path), READONLY, NULL},
    {"importer", T_OBJECT_EX, offsetof(Folder, importer), READONLY, NULL},
    {"names", T_OBJECT, offsetof(Folder, names), READONLY, NULL},
    {"manifest", T_OBJECT, offsetof(Folder, manifest), READONLY, NULL},
    {"asks", T_INT, offsetof(Folder, asks), READONLY, NULL},
    {"mtime", T_LONGLONG, offsetof(Folder, mtime), READONLY, NULL},
    {"ctime", T_LONGLONG, offsetof(Folder, ctime), READONLY, NULL},
    {"ino", T_ULONGLONG, offsetof(Folder, inode), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef folder_properties[] = {
    {"records", folder_get_records, NULL, "The block's records as flat words.", NULL},
    {"table", folder_get_table, NULL, "The place of each module's record.", NULL},
    {"root", folder_get_root, NULL, "The index of its root.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot folder_slots[] = {
    {Py_tp_dealloc, folder_dealloc},
    {Py_tp_members, folder_members},
    {Py_tp_getset, folder_properties},
    {Py_tp_doc, "One path entry; the twin is velo_import.hook.finder.Folder."},
    {0, NULL},
};

static PyType_Spec folder_spec = {
    .name = "velo_import.hook.finder.Folder",
    .basicsize = sizeof(Folder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = folder_slots,
};

PyObject *velo_add_folder(PyObject *module)
{
    return add_type(module, &folder_spec, "Folder");
}
