// SPDX-License-Identifier: Apache-2.0
/*
 * The code of a module that the finder has found: asked of the kernel if need be, then out of the images or, where they
 * have none, unmarshalled out of its pack. What is out of the ordinary is left to the twin, velo_import/hook/loader.py.
 */

#include "objects.h"

int velo_add_to_count(State *state, PyObject *counts, int which)
{
    PyObject *before = PyObject_GetAttr(counts, TEXT(state, which));
    PyObject *after = before == NULL ? NULL : PyNumber_Add(before, state->one);
    int failed = after == NULL || PyObject_SetAttr(counts, TEXT(state, which), after) < 0;
    Py_XDECREF(before);
    Py_XDECREF(after);
    return failed ? -1 : 0;
}

/* Call what is to be called with each module that is served (hook/calm.py). */
static int settle(State *state, PyObject *counts)
{
    PyObject *settle = PyObject_GetAttr(counts, TEXT(state, SETTLE));
    PyObject *done = settle == NULL || settle == Py_None ? settle : PyObject_CallFunctionObjArgs(settle, NULL);
    if (done != settle)
        Py_XDECREF(settle);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The code of a record out of the images, which are opened for the first module; NULL without an exception where there
 * is none, and where auditors would see that nothing is unmarshalled. */
static PyObject *image_of(State *state, PyObject *counts, const uint8_t *record, PyObject *path)
{
    if (velo_is_audited())
        return NULL;
    PyObject *images = PyObject_GetAttr(counts, TEXT(state, IMAGE_FILE)), *code = NULL;
    if (images != NULL && images != Py_None && (PyObject *)Py_TYPE(images) != state->images_type) {
        PyObject *opened = NULL;
        if (PyObject_SetAttr(counts, TEXT(state, IMAGE_FILE), Py_None) == 0)
            opened = PyObject_CallFunctionObjArgs(images, NULL);
        if (opened != NULL && PyObject_SetAttr(counts, TEXT(state, IMAGE_FILE), opened) < 0)
            Py_CLEAR(opened);
        Py_DECREF(images);
        images = opened;
    }
    if (images != NULL && (PyObject *)Py_TYPE(images) == state->images_type)
        code = velo_image(state, images, velo_word(record, VELO_SOURCE_CHECK), velo_word(record, VELO_BYTECODE_CHECK),
                          path);
    Py_XDECREF(images);
    if (code != NULL && velo_add_to_count(state, counts, IMAGES) < 0)
        Py_CLEAR(code);
    return code;
}

/* The code that this record leads to, unmarshalled; NULL without an exception where its pack or the range is not there. */
static PyObject *code_in_pack(State *state, Manifest *manifest, const uint8_t *record, PyObject *path, PyObject *cached)
{
    PyObject *pack = velo_map_of_pack(state, manifest, (velo_word(record, VELO_HEAD) >> 32) - 1);
    uint64_t start = velo_word(record, VELO_START), length = velo_word(record, VELO_LENGTH);
    if (pack == Py_None || length == 0 || start > (uint64_t)((Map *)pack)->size ||
        length > (uint64_t)((Map *)pack)->size - start)
        return NULL;
    Py_INCREF(pack);
    PyObject *code = velo_make_code(state, (Map *)pack, start, length, path, cached);
    Py_DECREF(pack);
    return code;
}

PyObject *velo_serve(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    State *state = PyModule_GetState(module);
    if (count != 2 || state->sys == NULL) {
        PyErr_SetString(PyExc_TypeError, "two arguments");
        return NULL;
    }
    PyObject *loader = arguments[0], *code = NULL;
    PyObject *folder = NULL, *name = NULL, *at = NULL, *path = NULL, *cached = NULL, *counts = NULL;
    if ((folder = PyObject_GetAttr(loader, TEXT(state, FOLDER))) == NULL ||
        (name = PyObject_GetAttr(loader, TEXT(state, NAME))) == NULL ||
        (at = PyObject_GetAttr(loader, TEXT(state, AT))) == NULL ||
        (path = PyObject_GetAttr(loader, TEXT(state, PATH))) == NULL ||
        (cached = PyObject_GetAttr(loader, TEXT(state, CACHED_PATH))) == NULL ||
        (counts = PyObject_GetAttr(loader, TEXT(state, COUNTS))) == NULL)
        goto done;
    Folder *known = (Folder *)folder;
    int is_ordinary = (PyObject *)Py_TYPE(folder) == state->folder_type && known->manifest != NULL &&
                      !known->verifies && PyUnicode_Check(path) && PyUnicode_Check(name) &&
                      PyUnicode_Check(arguments[1]) &&
                      (name == arguments[1] || PyUnicode_Compare(name, arguments[1]) == 0);
    unsigned long long word = is_ordinary ? PyLong_AsUnsignedLongLong(at) : 0;
    if (PyErr_Occurred())
        goto done;
    is_ordinary = is_ordinary && word % VELO_WORDS == 0 && word / VELO_WORDS < known->block.modules;
    if (is_ordinary) {
        const uint8_t *record = known->block.records + word * 8;
        Stamp stamp = UNCHANGED;
        if (known->asks)
            stamp = velo_compare_path(path, (long long)velo_word(record, VELO_SIZE),
                                      (long long)velo_word(record, VELO_MTIME),
                                      (long long)velo_word(record, VELO_CTIME), velo_word(record, VELO_INODE));
        if (stamp == UNCHANGED && settle(state, counts) == 0) {
            code = image_of(state, counts, record, path);
            /* The record was read, and an image counts as what it stands for: maps are to be given back as often. */
            velo_note_read(state, known->manifest->map, code == NULL ? 0 : velo_word(record, VELO_LENGTH));
            /* Only now the pack is opened: a start of images alone opens none. */
            if (code == NULL && !PyErr_Occurred())
                code = code_in_pack(state, known->manifest, record, path, cached);
            if (code != NULL && velo_add_to_count(state, counts, SERVED) < 0)
                Py_CLEAR(code);
        }
    }
    if (code == NULL && !PyErr_Occurred())
        code = none();
done:
    Py_XDECREF(folder);
    Py_XDECREF(name);
    Py_XDECREF(at);
    Py_XDECREF(path);
    Py_XDECREF(cached);
    Py_XDECREF(counts);
    return code;
}
