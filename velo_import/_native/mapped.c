// SPDX-License-Identifier: Apache-2.0
/*
 * One mapped manifest as a Python object: checked once when it is opened, then asked for packs and roots. The layout is
 * known to manifest.c; the twin is velo_import.hook.manifest.Manifest.
 */

#include "objects.h"
#include "stamps.h"

#include <string.h>

static void manifest_dealloc(PyObject *self)
{
    Manifest *manifest = (Manifest *)self;
    for (Py_ssize_t i = 0; manifest->packs != NULL && i < manifest->pack_count; i++)
        Py_XDECREF(manifest->packs[i]);
    PyMem_Free(manifest->packs);
    PyMem_Free(manifest->roots);
    Py_XDECREF((PyObject *)manifest->map);
    Py_XDECREF(manifest->path);
    Py_XDECREF(manifest->pack_folder);
    release(self);
}

/* The identity without the prefix, or the prefix: what stands before or behind the first NUL. */
static velo_span identity_part(Manifest *manifest, int is_prefix)
{
    velo_span whole = manifest->content.section[VELO_IDENTITY];
    const uint8_t *end = whole.size ? memchr(whole.start, 0, (size_t)whole.size) : NULL;
    uint64_t length = end == NULL ? whole.size : (uint64_t)(end - whole.start);
    if (!is_prefix)
        return (velo_span){whole.start, length};
    return end == NULL ? (velo_span){whole.start, 0} : (velo_span){end + 1, whole.size - length - 1};
}

static PyObject *manifest_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    State *state = PyType_GetModuleState(type);
    PyObject *path, *pack_folder;
    const char *identity;
    Py_ssize_t identity_size;
    unsigned long owner = 0;
    if (!PyArg_ParseTuple(arguments, "UUy#|k", &path, &pack_folder, &identity, &identity_size, &owner))
        return NULL;
    Manifest *manifest = allocate((PyObject *)type);
    if (manifest == NULL)
        return NULL;
    Py_INCREF(path);
    manifest->path = path;
    Py_INCREF(pack_folder);
    manifest->pack_folder = pack_folder;
    manifest->owner = (uid_t)owner;
    struct stat status;
    manifest->map = velo_map_private(state, path, manifest->owner, 0, &status);
    if (manifest->map == NULL)
        goto refused;
    velo_verdict verdict = velo_manifest_open(&manifest->content, (const uint8_t *)manifest->map->start,
                                              (uint64_t)manifest->map->size);
    if (verdict != VELO_FOUND) {
        set_unusable(state, verdict == VELO_NO_MANIFEST ? "not a manifest" : "damaged");
        goto refused;
    }
    velo_span own = identity_part(manifest, 0);
    if (own.size != (uint64_t)identity_size || memcmp(own.start, identity, (size_t)own.size) != 0) {
        set_unusable(state, "build");
        goto refused;
    }
    manifest->pack_count = (Py_ssize_t)(manifest->content.section[VELO_PACKS].size / 48);
    manifest->root_count = (Py_ssize_t)(manifest->content.section[VELO_ROOTS].size / 48);
    manifest->packs = PyMem_Calloc((size_t)manifest->pack_count + 1, sizeof(PyObject *));
    manifest->roots = PyMem_Malloc((size_t)manifest->root_count + 1);
    if (manifest->packs == NULL || manifest->roots == NULL) {
        PyErr_NoMemory();
        goto refused;
    }
    memset(manifest->roots, -1, (size_t)manifest->root_count + 1);
    return (PyObject *)manifest;

refused:
    Py_DECREF((PyObject *)manifest);
    return NULL;
}

PyObject *velo_map_of_pack(State *state, Manifest *manifest, uint64_t index)
{
    if (index < (uint64_t)manifest->pack_count && manifest->packs[index] != NULL)
        return manifest->packs[index];
    velo_pack pack;
    if (velo_manifest_pack(&manifest->content, index, &pack) != VELO_FOUND)
        return Py_None;
    PyObject *map = NULL;
    struct stat status;
    PyObject *name = text_of(pack.name);
    PyObject *path = name == NULL ? NULL : join(manifest->pack_folder, TEXT(state, SLASH), name);
    if (path != NULL)
        map = (PyObject *)velo_map_private(state, path, manifest->owner, 0, &status);
    Py_XDECREF(path);
    Py_XDECREF(name);
    if (map != NULL && (pack.size != (uint64_t)status.st_size || pack.mtime != nanoseconds(MTIME(status)) ||
                        pack.ctime != nanoseconds(CTIME(status)) || pack.inode != status.st_ino))
        Py_CLEAR(map);
    if (map == NULL) {
        PyErr_Clear();
        Py_INCREF(Py_None);
        map = Py_None;
    }
    manifest->packs[index] = map;
    return map;
}

int velo_root_asks(State *state, Manifest *manifest, uint64_t index, int check)
{
    velo_root root;
    if (velo_manifest_root(&manifest->content, index, &root) != VELO_FOUND)
        return set_unusable(state, "damaged");
    if (check < 0)
        check = (int)root.check;
    if (check == VELO_CHECK_NEVER)
        return 0;
    if (check != VELO_CHECK_ROOT)
        return 1;
    if (manifest->roots[index] < 0) {
        struct stat status;
        PyObject *path = PyBytes_FromStringAndSize((const char *)root.path.start, (Py_ssize_t)root.path.size);
        if (path == NULL)
            return -1;
        /* No inode here: network file systems renumber on each mount. */
        manifest->roots[index] = stat(PyBytes_AsString(path), &status) == 0 &&
                                 nanoseconds(MTIME(status)) == root.mtime &&
                                 nanoseconds(CTIME(status)) == root.ctime;
        Py_DECREF(path);
    }
    return !manifest->roots[index];
}

static PyObject *manifest_is_alone(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return PyBool_FromLong(((Manifest *)self)->content.data[12] & 2);
}

static PyObject *manifest_get_prefix(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    velo_span prefix = identity_part((Manifest *)self, 1);
    return PyBytes_FromStringAndSize((const char *)prefix.start, (Py_ssize_t)prefix.size);
}

static PyObject *manifest_get_root(PyObject *self, PyObject *argument)
{
    velo_root root;
    uint64_t index = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (velo_manifest_root(&((Manifest *)self)->content, index, &root) != VELO_FOUND) {
        set_unusable(state_of(self), "damaged");
        return NULL;
    }
    return Py_BuildValue("(NILLK)", text_of(root.path), root.check, (long long)root.mtime, (long long)root.ctime,
                         (unsigned long long)root.inode);
}

static PyObject *manifest_get_pack_name(PyObject *self, PyObject *argument)
{
    velo_pack pack;
    uint64_t index = PyLong_AsUnsignedLongLong(argument);
    if (PyErr_Occurred())
        return NULL;
    if (velo_manifest_pack(&((Manifest *)self)->content, index, &pack) != VELO_FOUND) {
        set_unusable(state_of(self), "damaged");
        return NULL;
    }
    return text_of(pack.name);
}

static PyObject *manifest_get_pack(PyObject *self, PyObject *argument)
{
    uint64_t index = PyLong_AsUnsignedLongLong(argument);
    PyObject *pack = PyErr_Occurred() ? NULL : velo_map_of_pack(state_of(self), (Manifest *)self, index);
    Py_XINCREF(pack);
    return pack;
}

static PyMethodDef manifest_methods[] = {
    {"is_alone", manifest_is_alone, METH_NOARGS, "Whether no other manifest of this environment lies beside it."},
    {"prefix", manifest_get_prefix, METH_NOARGS, "The `sys.prefix` it was made for, in bytes."},
    {"block", velo_get_block, METH_O, "One folder by its path in bytes, or None."},
    {"root", manifest_get_root, METH_O, "Path, check, mtime_ns, ctime_ns and inode of one root."},
    {"pack_name", manifest_get_pack_name, METH_O, "The pack's file name below the packs folder."},
    {"pack", manifest_get_pack, METH_O, "One mapped pack, or None when it is not to be used."},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef manifest_members[] = {
    {"path", T_OBJECT_EX, offsetof(Manifest, path), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot manifest_slots[] = {
    {Py_tp_new, manifest_new},
    {Py_tp_dealloc, manifest_dealloc},
    {Py_tp_methods, manifest_methods},
    {Py_tp_members, manifest_members},
    {Py_tp_doc, "One mapped manifest; the twin is velo_import.hook.manifest.Manifest."},
    {0, NULL},
};

static PyType_Spec manifest_spec = {
    .name = "velo_import.hook.manifest.Manifest",
    .basicsize = sizeof(Manifest),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = manifest_slots,
};

PyObject *velo_add_manifest(PyObject *module)
{
    return add_type(module, &manifest_spec, "Manifest");
}
