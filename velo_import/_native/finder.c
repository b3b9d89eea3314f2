// SPDX-License-Identifier: Apache-2.0
/*
 * The finder as Python sees it: how it is made, what it holds, its two methods. How it searches is told in search.c, with
 * mapped.c (one manifest) and entry.c (one path entry); serve.c makes the code of a module that was found.
 */

#include "finder.h"

#include <string.h>

PyDoc_STRVAR(find_spec_doc, "find_spec(name, path=None, target=None)\n\n"
                            "The spec `PathFinder` would return, or None to let it speak for itself.");

static PyObject *finder_find_spec(PyObject *self, PyObject *const *arguments, Py_ssize_t count, PyObject *keywords)
{
    static const char *const names[] = {"name", "path", "target"};
    PyObject *given[3] = {NULL, Py_None, Py_None};
    Py_ssize_t named = keywords == NULL ? 0 : PyTuple_Size(keywords);
    int is_wrong = count > 3;
    for (Py_ssize_t i = 0; i < count && !is_wrong; i++)
        given[i] = arguments[i];
    for (Py_ssize_t i = 0; i < named && !is_wrong; i++) {
        int which = 0;
        while (which < 3 && PyUnicode_CompareWithASCIIString(PyTuple_GetItem(keywords, i), names[which]) != 0)
            which++;
        is_wrong = which == 3 || which < count;
        if (!is_wrong)
            given[which] = arguments[count + i];
    }
    if (is_wrong || given[0] == NULL) {
        PyErr_SetString(PyExc_TypeError, "find_spec() takes name, path and target");
        return NULL;
    }
    State *state = state_of(self);
    Finder *finder = (Finder *)self;
    PyObject *spec = velo_find(state, finder, given[0], given[1]);
    if (spec == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
        if (velo_add_to_count(state, finder->counts, ERRORS) < 0)
            PyErr_Clear();
        return none();
    }
    return spec;
}

PyDoc_STRVAR(invalidate_caches_doc,
             "invalidate_caches()\n\nForget every folder: the next import asks the kernel again, whatever the check.");

static PyObject *finder_invalidate_caches(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    Finder *finder = (Finder *)self;
    PyDict_Clear(finder->folders);
    finder->unknown = 0;
    for (Py_ssize_t i = 0; i < PyTuple_Size(finder->manifests); i++) {
        Manifest *manifest = (Manifest *)PyTuple_GetItem(finder->manifests, i);
        memset(manifest->roots, -1, (size_t)manifest->root_count + 1);
    }
    Py_RETURN_NONE;
}

/* Every reference that a finder holds, but the suffixes. */
static PyObject **references(Finder *finder, int index)
{
    PyObject **all[] = {
        &finder->manifests,     &finder->counts,           &finder->check,           &finder->zip_hook,
        &finder->file_hook,     &finder->suffixes,         &finder->folders,         &finder->cached_suffix,
        &finder->spec_type,     &finder->loader_type,      &finder->source_loader,   &finder->extension_loader,
        &finder->file_finder,   &finder->path_finder,      &finder->path_finder_dict, &finder->get_code,
        &finder->exec_module,   &finder->compile,          &finder->file_finder_find, &finder->path_finder_find,
    };
    return index < (int)(sizeof(all) / sizeof(*all)) ? all[index] : NULL;
}

static void finder_dealloc(PyObject *self)
{
    Finder *finder = (Finder *)self;
    PyObject_GC_UnTrack(self);
    for (int i = 0; references(finder, i) != NULL; i++)
        Py_CLEAR(*references(finder, i));
    for (int i = 0; i < finder->suffix_count; i++)
        Py_CLEAR(finder->suffix[i]);
    release(self);
}

static int finder_traverse(PyObject *self, visitproc visit, void *arg)
{
    Finder *finder = (Finder *)self;
    Py_VISIT(Py_TYPE(self));
    for (int i = 0; references(finder, i) != NULL; i++)
        Py_VISIT(*references(finder, i));
    return 0;
}

static int finder_clear(PyObject *self)
{
    /* Its dictionary of folders is the only way to a cycle; all else is needed to answer. */
    if (((Finder *)self)->folders != NULL)
        PyDict_Clear(((Finder *)self)->folders);
    return 0;
}

/* The suffixes of this interpreter, their loader classes, and what is tried in which order. */
static int read_suffixes(Finder *finder, PyObject *suffixes)
{
    Py_ssize_t count = PyList_Size(suffixes);
    if (count > MOST_SUFFIXES)
        count = -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *suffix, *kind;
        PyObject *item = PyList_GetItem(suffixes, i); /* borrowed */
        if (!PyTuple_Check(item) || !PyArg_ParseTuple(item, "UO", &suffix, &kind))
            return -1;
        Py_INCREF(suffix);
        finder->suffix[i] = suffix;
        finder->kind[i] = kind == finder->source_loader ? SOURCE : kind == finder->extension_loader ? EXTENSION : OTHER;
        finder->suffix_count = (int)i + 1;
    }
    if (count < 0 && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "too many suffixes");
    return count < 0 ? -1 : 0;
}

static PyObject *finder_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    static const char *const bootstrap = "_frozen_importlib", *const external = "_frozen_importlib_external";
    State *state = PyType_GetModuleState(type);
    PyObject *manifests, *counts, *check, *zip_hook, *file_hook, *suffixes;
    if (!PyArg_ParseTuple(arguments, "OOO(OO)O!", &manifests, &counts, &check, &zip_hook, &file_hook, &PyList_Type,
                          &suffixes))
        return NULL;
    Finder *finder = allocate((PyObject *)type);
    if (finder == NULL)
        return NULL;
    PyObject *optimise = NULL, *flags = NULL, *implementation = NULL, *tag = NULL, *verify = NULL;
    PyObject *given[] = {counts, check, zip_hook, file_hook, suffixes};
    PyObject **kept[] = {&finder->counts, &finder->check, &finder->zip_hook, &finder->file_hook, &finder->suffixes};
    for (int i = 0; i < 5; i++) {
        Py_INCREF(given[i]);
        *kept[i] = given[i];
    }
    if ((finder->manifests = PySequence_Tuple(manifests)) == NULL || (finder->folders = PyDict_New()) == NULL)
        goto failed;
    int are_ours = PyTuple_Size(finder->manifests) <= MOST_MANIFESTS;
    for (Py_ssize_t i = 0; i < PyTuple_Size(finder->manifests) && are_ours; i++)
        are_ours = (PyObject *)Py_TYPE(PyTuple_GetItem(finder->manifests, i)) == state->manifest_type;
    if (!are_ours) {
        PyErr_SetString(PyExc_TypeError, "manifests that are not ours, or too many");
        goto failed;
    }
    if ((finder->spec_type = velo_loaded(bootstrap, "ModuleSpec")) == NULL ||
        (finder->source_loader = velo_loaded(external, "SourceFileLoader")) == NULL ||
        (finder->extension_loader = velo_loaded(external, "ExtensionFileLoader")) == NULL ||
        (finder->file_finder = velo_loaded(external, "FileFinder")) == NULL ||
        (finder->path_finder = velo_loaded(external, "PathFinder")) == NULL ||
        (finder->path_finder_dict = PyObject_GetAttrString(finder->path_finder, "__dict__")) == NULL ||
        (finder->get_code = PyObject_GetAttr(finder->source_loader, TEXT(state, GET_CODE))) == NULL ||
        (finder->exec_module = PyObject_GetAttr(finder->source_loader, TEXT(state, EXEC_MODULE))) == NULL ||
        (finder->compile = PyObject_GetAttr(finder->source_loader, TEXT(state, SOURCE_TO_CODE))) == NULL ||
        (finder->file_finder_find = PyObject_GetAttr(finder->file_finder, TEXT(state, FIND_SPEC))) == NULL ||
        (finder->path_finder_find = PyObject_GetItem(finder->path_finder_dict, TEXT(state, FIND_SPEC))) == NULL ||
        read_suffixes(finder, suffixes) < 0)
        goto failed;
    if ((flags = velo_loaded("sys", "flags")) == NULL ||
        (optimise = PyObject_GetAttrString(flags, "optimize")) == NULL ||
        (implementation = velo_loaded("sys", "implementation")) == NULL ||
        (tag = PyObject_GetAttrString(implementation, "cache_tag")) == NULL ||
        (verify = PyObject_GetAttrString(counts, "verify")) == NULL ||
        (finder->verifies = PyObject_IsTrue(verify)) < 0)
        goto failed;
    int level = PyObject_IsTrue(optimise);
    if (level >= 0)
        finder->cached_suffix = level ? PyUnicode_FromFormat(".%S.opt-%S.pyc", tag, optimise)
                                      : PyUnicode_FromFormat(".%S.pyc", tag);
    if (finder->cached_suffix != NULL)
        goto done;
failed:
    Py_DECREF((PyObject *)finder);
    finder = NULL;
done:
    Py_XDECREF(optimise);
    Py_XDECREF(flags);
    Py_XDECREF(implementation);
    Py_XDECREF(tag);
    Py_XDECREF(verify);
    return (PyObject *)finder;
}

static PyMethodDef finder_methods[] = {
    {"find_spec", (PyCFunction)(void (*)(void))finder_find_spec, METH_FASTCALL | METH_KEYWORDS, find_spec_doc},
    {"invalidate_caches", finder_invalidate_caches, METH_NOARGS, invalidate_caches_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef finder_members[] = {
    {"counts", T_OBJECT_EX, offsetof(Finder, counts), READONLY, NULL},
    {"check", T_OBJECT_EX, offsetof(Finder, check), READONLY, NULL},
    {"manifests", T_OBJECT_EX, offsetof(Finder, manifests), READONLY, NULL},
    {"folders", T_OBJECT_EX, offsetof(Finder, folders), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot finder_slots[] = {
    {Py_tp_new, finder_new},
    {Py_tp_dealloc, finder_dealloc},
    {Py_tp_traverse, finder_traverse},
    {Py_tp_clear, finder_clear},
    {Py_tp_methods, finder_methods},
    {Py_tp_members, finder_members},
    {Py_tp_doc, "A meta-path finder; stands just before `PathFinder`. Never raises."},
    {0, NULL},
};

static PyType_Spec finder_spec = {
    .name = "velo_import.hook.finder.VeloFinder",
    .basicsize = sizeof(Finder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .slots = finder_slots,
};

static const char *const texts[TEXTS] = {
    [SLASH] = "/",
    [PYCACHE] = "/__pycache__/",
    [INIT] = "__init__",
    [PATH_HOOKS] = "path_hooks",
    [META_PATH] = "meta_path",
    [SYS_PATH] = "path",
    [PATH] = "path",
    [NAME] = "name",
    [PATH_IMPORTER_CACHE] = "path_importer_cache",
    [PYCACHE_PREFIX] = "pycache_prefix",
    [GET_CODE] = "get_code",
    [EXEC_MODULE] = "exec_module",
    [SOURCE_TO_CODE] = "source_to_code",
    [FIND_SPEC] = "find_spec",
    [LOADERS] = "_loaders",
    [FOLDER] = "_folder",
    [AT] = "_at",
    [COUNTS] = "_counts",
    [CACHED_PATH] = "_cached",
    [SET_FILEATTR] = "_set_fileattr",
    [LOCATIONS] = "submodule_search_locations",
    [ORIGIN] = "origin",
    [SERVED] = "served",
    [NATIVE] = "native",
    [ERRORS] = "errors",
    [SETTLE] = "settle",
    [IMAGE_FILE] = "image_file",
    [IMAGES] = "images",
    [LOAD_LOADER] = "load_loader",
};

int velo_add_finder(PyObject *module, State *state)
{
    for (int i = 0; i < TEXTS; i++) {
        state->text[i] = PyUnicode_InternFromString(texts[i]);
        if (state->text[i] == NULL)
            return -1;
    }
    PyObject *sys = velo_loaded("sys", "__dict__");
    state->sys = sys;
    state->one = PyLong_FromLong(1);
    state->listdir = velo_loaded("posix", "listdir");
    state->getcwd = velo_loaded("posix", "getcwd");
    state->unusable = PyErr_NewException("velo_import.hook.manifest.Unusable", NULL, NULL);
    state->manifest_type = velo_add_manifest(module);
    state->folder_type = velo_add_folder(module);
    state->finder_type = add_type(module, &finder_spec, "VeloFinder");
    if (PyErr_Occurred() || PyModule_AddObjectRef(module, "Unusable", state->unusable) < 0 ||
        PyModule_AddIntConstant(module, "HASH_KEY", 0x56454C4F) < 0 ||
        PyModule_AddIntConstant(module, "STAT", VELO_CHECK_STAT) < 0 ||
        PyModule_AddIntConstant(module, "ROOT_ONLY", VELO_CHECK_ROOT) < 0 ||
        PyModule_AddIntConstant(module, "NEVER", VELO_CHECK_NEVER) < 0)
        return -1;
    return 0;
}
