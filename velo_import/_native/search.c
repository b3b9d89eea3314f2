// SPDX-License-Identifier: Apache-2.0
/*
 * The search: the answer `PathFinder` would give for the current path list, or None. Work of each import, so it is C.
 *
 * Reading order, from the end: `velo_find`, `search` (all entries) with `search_quickly` (`sys.path`, most of the time),
 * `consider` and `answer` (one folder's), `make_spec`, and `open_folder`, which says what stands for an entry.
 *
 * The twin, and the truth, is velo_import/hook/finder.py; the stories are told with both. What is rare is done here by
 * calling the same Python functions that the twin calls.
 *
 * Python code may run in the middle of a search (path hooks, a program's own path list), and may search again or
 * call `invalidate_caches`: whatever is used after such a call is held by a reference.
 */

#include "finder.h"
#include "stamps.h"

#include <string.h>

/* What is searched for: the whole name, and its last part as text and bytes. */
typedef struct {
    PyObject *name, *tail;
    PyObject *encoded; /* holds `bytes` for a name that is not plain UTF-8 */
    const char *bytes;
    size_t size;
} Wanted;

/* Outcome of one folder: a search ends with a spec, with None, or with an exception; otherwise it goes on. */
typedef enum { ENDED, GOES_ON } Outcome;

static PyObject *sys_get(State *state, int which) /* borrowed; NULL without an exception when it is not there */
{
    return PyDict_GetItemWithError(state->sys, TEXT(state, which));
}

static int defer(Finder *finder, const char *reason)
{
    PyObject *done = PyObject_CallMethod(finder->counts, "defer", "s", reason);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int defer_origin(Finder *finder, const char *method, const char *reason, PyObject *name, PyObject *origin)
{
    PyObject *done = PyObject_CallMethod(finder->counts, method, "sOO", reason, name, origin);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Whether an attribute of a class is still this object; -1 for an error. */
static int is_still(PyObject *class, PyObject *name, PyObject *known)
{
    PyObject *found = PyObject_GetAttr(class, name);
    Py_XDECREF(found);
    return found == NULL ? -1 : found == known;
}

/* Whether anybody but CPython is asked what to make of a path; -1 for an error. */
static int are_paths_hooked(State *state, Finder *finder)
{
    PyObject *hooks = sys_get(state, PATH_HOOKS);
    if (hooks == NULL)
        return PyErr_Occurred() ? -1 : 1;
    return !PyList_Check(hooks) || PyList_Size(hooks) < 2 || PyList_GetItem(hooks, 0) != finder->zip_hook ||
           PyList_GetItem(hooks, 1) != finder->file_hook;
}

/* Whether all whose behaviour our answer stands for are as CPython made them; -1 for an error. */
static int is_import_system_ours(State *state, Finder *finder)
{
    int is_ours = is_still(finder->source_loader, TEXT(state, GET_CODE), finder->get_code);
    if (is_ours == 1)
        is_ours = is_still(finder->source_loader, TEXT(state, EXEC_MODULE), finder->exec_module);
    if (is_ours == 1)
        is_ours = is_still(finder->source_loader, TEXT(state, SOURCE_TO_CODE), finder->compile);
    if (is_ours == 1)
        is_ours = is_still(finder->file_finder, TEXT(state, FIND_SPEC), finder->file_finder_find);
    if (is_ours != 1)
        return is_ours;
    /* From the class's own dictionary: asked for by name, a class method is another object each time. */
    PyObject *find = PyObject_GetItem(finder->path_finder_dict, TEXT(state, FIND_SPEC));
    Py_XDECREF(find);
    if (find != finder->path_finder_find)
        return find == NULL ? -1 : 0;
    PyObject *finders = sys_get(state, META_PATH);
    return finders == NULL ? (PyErr_Occurred() ? -1 : 0) : PySequence_Contains(finders, finder->path_finder);
}

/* The mask a manifest would record for this name in a folder that lists `names`; -1 for an error. */
static int live_mask(Finder *finder, PyObject *names, PyObject *tail)
{
    int mask = PySet_Contains(names, tail);
    for (int i = 0; mask >= 0 && i < finder->suffix_count; i++) {
        PyObject *file = PyUnicode_Concat(tail, finder->suffix[i]);
        int is_there = file == NULL ? -1 : PySet_Contains(names, file);
        Py_XDECREF(file);
        mask = is_there < 0 ? -1 : mask | is_there << (i + 1);
    }
    return mask;
}

/* Leave a module to `PathFinder` because the manifest does not know it as the folder lists it now. */
static int leave_unknown(State *state, Finder *finder, PyObject *name, Folder *folder, PyObject *tail, int mask)
{
    for (int i = 0; i < finder->suffix_count; i++) {
        if (!(mask & 2 << i))
            continue;
        PyObject *origin = join(folder->prefix, tail, finder->suffix[i]);
        if (origin == NULL)
            return -1;
        int done = folder->manifest == NULL
                       ? defer_origin(finder, "defer_learnable", "folder not known", name, origin)
                       : defer_origin(finder, "defer_stale", "folder changed", name, origin);
        Py_DECREF(origin);
        return done;
    }
    if (PyUnicode_Compare(tail, TEXT(state, INIT)) != 0) {
        /* Only the bare name is there: a package that is new, or a namespace. */
        PyObject *path = join(folder->prefix, tail, NULL);
        Folder *child = path == NULL ? NULL : velo_new_folder(state, path, Py_None);
        Py_XDECREF(path);
        int inner = child == NULL || velo_ask(state, child) < 0 ? -1
                    : child->names == NULL                    ? 0
                                                              : live_mask(finder, child->names, TEXT(state, INIT));
        if (inner > VELO_BARE_NAME)
            inner = leave_unknown(state, finder, name, child, TEXT(state, INIT), inner) < 0 ? -1 : -2;
        Py_XDECREF((PyObject *)child);
        if (inner < 0)
            return inner == -2 ? 0 : -1;
    }
    return defer(finder, "namespace package");
}

/* Count a manifest that is damaged, and go on with the next; any other error stands. */
static int count_damage(State *state, Finder *finder)
{
    if (!PyErr_ExceptionMatches(state->unusable))
        return -1;
    PyErr_Clear();
    return velo_add_to_count(state, finder->counts, ERRORS);
}

/* The first block whose stamp holds, else the first there is; and whether to ask on each use. */
static int choose_block(State *state, Finder *finder, Folder *folder)
{
    struct {
        Manifest *manifest;
        velo_folder block;
        int asks;
    } known[MOST_MANIFESTS];
    int check = -1, count = 0, chosen = 0;
    if (finder->check != Py_None && (check = (int)PyLong_AsLong(finder->check)) < 0 && PyErr_Occurred())
        return -1;
    for (Py_ssize_t i = 0; i < PyTuple_Size(finder->manifests); i++) {
        Manifest *manifest = (Manifest *)PyTuple_GetItem(finder->manifests, i);
        int found = velo_read_block(state, folder, manifest, &known[count].block);
        int asks = found == 1 ? velo_root_asks(state, manifest, known[count].block.root, check) : 0;
        if ((found < 0 || asks < 0) && count_damage(state, finder) < 0)
            return -1;
        if (found != 1 || asks < 0)
            continue;
        known[count].manifest = manifest;
        known[count++].asks = asks;
    }
    for (int i = 0; count > 1 && i < count; i++) {
        const velo_folder *block = &known[i].block;
        if (!known[i].asks || velo_compare(PyBytes_AsString(folder->raw), -1, block->mtime, block->ctime,
                                           block->inode) == UNCHANGED) {
            chosen = i;
            break;
        }
    }
    if (count == 0)
        return 0;
    if (velo_take_block(state, folder, known[chosen].manifest, &known[chosen].block) < 0)
        return count_damage(state, finder); /* as if no manifest knew it */
    folder->asks = known[chosen].asks;
    return 0;
}

/* The folder of a path entry; None if `PathFinder` would skip it, else an importer that is not ours. New reference. */
static PyObject *open_folder(State *state, Finder *finder, PyObject *entry, int is_on_sys_path);

/* Whether `PathFinder` would still ask the same importer (NULL for none), or make the one that we spared. */
static int is_as_opened(Finder *finder, PyObject *folder, PyObject *importer)
{
    if (importer == NULL)
        importer = Py_None;
    return importer == ((Folder *)folder)->importer && !(importer == Py_None && finder->is_hooked);
}

/* As it was opened before, unless its importer has changed. */
static PyObject *get_folder(State *state, Finder *finder, PyObject *entry, int is_on_sys_path)
{
    if (!PyUnicode_Check(entry))
        return none();
    entry = PyUnicode_FromObject(entry); /* exactly text: what a subclass might do is its own business */
    if (entry == NULL)
        return NULL;
    PyObject *known = PyDict_GetItemWithError(finder->folders, entry);
    if (known != NULL) {
        PyObject *importers = sys_get(state, PATH_IMPORTER_CACHE);
        Py_INCREF(known);
        PyObject *importer = importers == NULL ? NULL : PyDict_GetItemWithError(importers, entry);
        if (PyErr_Occurred() || !is_as_opened(finder, known, importer))
            Py_CLEAR(known);
    }
    if (known == NULL && !PyErr_Occurred())
        known = open_folder(state, finder, entry, is_on_sys_path);
    Py_DECREF(entry);
    return known;
}

/* The importer's own path, if it is a `FileFinder` as CPython makes them; NULL otherwise, or for an error. */
static PyObject *path_of_importer(State *state, Finder *finder, PyObject *importer)
{
    if ((PyObject *)Py_TYPE(importer) != finder->file_finder)
        return NULL;
    PyObject *loaders = PyObject_GetAttr(importer, TEXT(state, LOADERS));
    int is_ours = loaders == NULL ? -1 : PyObject_RichCompareBool(loaders, finder->suffixes, Py_EQ);
    Py_XDECREF(loaders);
    PyObject *path = is_ours == 1 ? PyObject_GetAttr(importer, TEXT(state, PATH)) : NULL;
    if (path != NULL && !PyUnicode_Check(path))
        Py_CLEAR(path);
    return path;
}

static PyObject *open_folder(State *state, Finder *finder, PyObject *entry, int is_on_sys_path)
{
    PyObject *key = NULL, *importer = NULL, *path = NULL, *answer = NULL;
    Folder *folder = NULL;
    int is_current_folder = PyUnicode_GetLength(entry) == 0;
    if (is_current_folder) {
        key = PyObject_CallFunctionObjArgs(state->getcwd, NULL);
        if (key == NULL && PyErr_ExceptionMatches(PyExc_FileNotFoundError)) {
            PyErr_Clear();
            return none();
        }
    } else {
        key = entry;
        Py_INCREF(key);
    }
    PyObject *importers = key == NULL ? NULL : sys_get(state, PATH_IMPORTER_CACHE);
    if (importers == NULL || !PyDict_Check(importers))
        goto done;
    importer = PyDict_GetItemWithError(importers, key);
    Py_XINCREF(importer);
    PyObject *known = PyErr_Occurred() ? NULL : PyDict_GetItemWithError(finder->folders, key); /* borrowed */
    if (PyErr_Occurred())
        goto done;
    if (is_current_folder && known != NULL && is_as_opened(finder, known, importer)) {
        Py_INCREF(known);
        answer = known;
        goto done;
    }
    if (importer == NULL) {
        folder = velo_new_folder(state, key, Py_None);
        if (folder == NULL || (!finder->is_hooked && choose_block(state, finder, folder) < 0))
            goto done;
        if (folder->manifest == NULL && (is_on_sys_path || finder->is_hooked)) {
            importer = PyObject_CallMethod(finder->path_finder, "_path_importer_cache", "O", key);
            if (importer == NULL)
                goto done;
            known = PyDict_GetItemWithError(finder->folders, key); /* path hooks may have searched as well */
            if (PyErr_Occurred())
                goto done;
            if (known == NULL && !finder->is_hooked && ++finder->unknown == FEW + 1) {
                /* A single script in a new folder is not worth a learner; a long path listed at each start is. */
                PyObject *wanted = PyObject_GetAttrString(finder->counts, "wanted");
                PyObject *nothing = wanted == NULL ? NULL : PyUnicode_FromStringAndSize("", 0);
                int failed = nothing == NULL || PyMapping_SetItemString(wanted, "sys.path", nothing) < 0;
                Py_XDECREF(wanted);
                Py_XDECREF(nothing);
                if (failed)
                    goto done;
            }
            Py_CLEAR(folder);
        }
    }
    if (importer == Py_None) {
        answer = importer;
        Py_INCREF(answer);
        goto done;
    }
    if (importer != NULL) {
        path = path_of_importer(state, finder, importer);
        if (path == NULL) {
            if (!PyErr_Occurred()) {
                answer = importer;
                Py_INCREF(answer);
            }
            goto done;
        }
        known = PyDict_GetItemWithError(finder->folders, key);
        if (known != NULL && PyUnicode_Compare(((Folder *)known)->path, path) == 0) {
            /* PathFinder has made its own meanwhile; ours is as good as before. */
            PyObject *before = ((Folder *)known)->importer;
            Py_INCREF(importer);
            ((Folder *)known)->importer = importer;
            Py_INCREF(known);
            answer = known;
            Py_DECREF(before);
            goto done;
        }
        if (PyErr_Occurred())
            goto done;
        folder = velo_new_folder(state, path, importer);
        if (folder == NULL || choose_block(state, finder, folder) < 0)
            goto done;
    }
    /* Without an importer PathFinder would make a FileFinder now. We spare that: the hooks are CPython's own. */
    folder->verifies = finder->verifies;
    if (PyDict_SetItem(finder->folders, key, (PyObject *)folder) == 0) {
        answer = (PyObject *)folder;
        Py_INCREF(answer);
    }
done:
    Py_XDECREF((PyObject *)folder);
    Py_XDECREF(path);
    Py_XDECREF(importer);
    Py_XDECREF(key);
    if (answer == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_ValueError, "no path importer cache");
    return answer;
}

static int is_regular_file(PyObject *path)
{
    PyObject *raw = NULL;
    if (!PyUnicode_FSConverter(path, &raw))
        return -1;
    struct stat status;
    int is_regular = stat(PyBytes_AsString(raw), &status) == 0 && S_ISREG(status.st_mode);
    Py_DECREF(raw);
    return is_regular;
}

/* See to it that the class of our loaders is there. */
static int load_loader(State *state, Finder *finder)
{
    if (finder->loader_type != NULL)
        return 0;
    PyObject *load = PyObject_GetAttr(finder->counts, TEXT(state, LOAD_LOADER));
    PyObject *type = load == NULL ? NULL : PyObject_CallFunctionObjArgs(load, NULL);
    Py_XDECREF(load);
    if (type != NULL && finder->loader_type == NULL) { /* another thread may have been here meanwhile */
        Py_INCREF(type);
        finder->loader_type = type;
    }
    Py_XDECREF(type);
    return type == NULL ? -1 : 0;
}

/* A loader of ours, and the path of the `.pyc` that it stands for. */
static PyObject *make_loader(State *state, Finder *finder, PyObject *name, PyObject *origin, Folder *folder,
                             int64_t index, PyObject *cached)
{
    PyObject *at = PyLong_FromLongLong(index * VELO_WORDS);
    PyObject *loader = NULL;
    if (at != NULL && load_loader(state, finder) == 0)
        loader = PyObject_CallFunctionObjArgs(finder->loader_type, name, origin, NULL);
    if (loader != NULL && (PyObject_SetAttr(loader, TEXT(state, FOLDER), (PyObject *)folder) < 0 ||
                           PyObject_SetAttr(loader, TEXT(state, AT), at) < 0 ||
                           PyObject_SetAttr(loader, TEXT(state, COUNTS), finder->counts) < 0 ||
                           PyObject_SetAttr(loader, TEXT(state, CACHED_PATH), cached) < 0))
        Py_CLEAR(loader);
    Py_XDECREF(at);
    return loader;
}

/* The spec of the module whose record this is; None when it is left to `PathFinder`, NULL for an error. */
static PyObject *make_spec(State *state, Finder *finder, PyObject *name, PyObject *tail, Folder *folder, int64_t index,
                           int is_package)
{
    uint64_t head = velo_word(folder->block.records, (size_t)index * VELO_WORDS);
    if (head & VELO_DEFER)
        return defer(finder, "left to Python") < 0 ? NULL : none();
    int suffix = (int)(head >> 16 & 0xFF) - 1;
    if (suffix < 0 || suffix >= finder->suffix_count) {
        set_unusable(state, "damaged");
        return NULL;
    }
    Kind kind = finder->kind[suffix];
    PyObject *cached = NULL, *loader = NULL, *spec = NULL, *places = NULL;
    PyObject *origin = join(folder->prefix, tail, finder->suffix[suffix]);
    if (origin == NULL)
        return NULL;
    /* The listing says that the name is there; whether it is still a file only the kernel knows, once the folder
     * has changed or the name is a link. */
    if (folder->names != NULL || (folder->asks && (head & VELO_IS_LINK || kind == EXTENSION))) {
        int is_there = is_regular_file(origin);
        if (is_there <= 0) {
            if (is_there == 0 && defer_origin(finder, "defer_stale", "folder changed", name, origin) == 0)
                spec = none();
            goto done;
        }
    }
    if (kind == OTHER || (kind == SOURCE && head >> 32 == 0)) {
        int done = kind == OTHER ? defer(finder, "sourceless module")
                                 : defer_origin(finder, "defer_learnable", "no bytecode yet", name, origin);
        spec = done < 0 ? NULL : none();
        goto done;
    }
    if (kind == SOURCE) {
        cached = join(folder->cached, tail, finder->cached_suffix);
        loader = cached == NULL ? NULL : make_loader(state, finder, name, origin, folder, index, cached);
    } else {
        loader = PyObject_CallFunctionObjArgs(finder->extension_loader, name, origin, NULL);
    }
    if (loader == NULL)
        goto done;
    PyObject *arguments = PyTuple_Pack(2, name, loader);
    PyObject *keywords = arguments == NULL ? NULL : PyDict_New();
    if (keywords != NULL && PyDict_SetItem(keywords, TEXT(state, ORIGIN), origin) == 0)
        spec = PyObject_Call(finder->spec_type, arguments, keywords);
    Py_XDECREF(arguments);
    Py_XDECREF(keywords);
    if (spec == NULL)
        goto done;
    PyObject *prefix = sys_get(state, PYCACHE_PREFIX);
    /* Until 3.14 each import works out the name of the cached file; later ones leave it until it is asked for. */
    int names_cached = kind == SOURCE && prefix == Py_None && Py_Version < 0x030F0000;
    if ((prefix == NULL && PyErr_Occurred()) ||
        (names_cached && PyObject_SetAttr(spec, TEXT(state, CACHED_PATH), cached) < 0) ||
        PyObject_SetAttr(spec, TEXT(state, SET_FILEATTR), Py_True) < 0 ||
        (kind == EXTENSION && velo_add_to_count(state, finder->counts, NATIVE) < 0))
        goto failed;
    if (is_package) {
        places = PyList_New(1);
        if (places == NULL)
            goto failed;
        Py_INCREF(folder->path);
        PyList_SetItem(places, 0, folder->path);
        if (PyObject_SetAttr(spec, TEXT(state, LOCATIONS), places) < 0)
            goto failed;
    }
    goto done;

failed:
    Py_CLEAR(spec);
done:
    Py_XDECREF(places);
    Py_XDECREF(loader);
    Py_XDECREF(cached);
    Py_DECREF(origin);
    return spec;
}

/* What this folder offers under the name, by its record. */
static Outcome answer(State *state, Finder *finder, const Wanted *wanted, Folder *folder, int64_t index,
                      PyObject **spec)
{
    uint64_t head = velo_word(folder->block.records, (size_t)index * VELO_WORDS);
    int has_file = (head & VELO_MASK & ~(uint64_t)VELO_BARE_NAME) != 0;
    *spec = NULL;
    if (head & VELO_IS_FOLDER) {
        PyObject *path = join(folder->prefix, wanted->tail, NULL);
        PyObject *found = NULL;
        if (path != NULL && !finder->is_hooked) {
            found = get_folder(state, finder, path, 0);
        } else if (path != NULL) {
            /* The folder that holds it looks inside by itself: nobody is asked yet. */
            found = (PyObject *)velo_new_folder(state, path, Py_None);
            if (found != NULL && choose_block(state, finder, (Folder *)found) < 0)
                Py_CLEAR(found);
            else if (found != NULL)
                ((Folder *)found)->verifies = finder->verifies;
        }
        Py_XDECREF(path);
        if (found == NULL)
            return ENDED;
        if ((PyObject *)Py_TYPE(found) != state->folder_type) {
            Py_DECREF(found);
            *spec = defer(finder, "other importer") < 0 ? NULL : none();
            return ENDED;
        }
        Folder *child = (Folder *)found;
        int64_t inner = -1;
        int known = 0, mask = 0, is_over = 1;
        if (child->asks && velo_ask(state, child) < 0)
            goto done;
        inner = velo_names_find(&child->table, &child->block, "__init__", 8);
        known = inner < 0 ? 0 : (int)(velo_word(child->block.records, (size_t)inner * VELO_WORDS) & VELO_MASK);
        if (child->names != NULL) {
            mask = live_mask(finder, child->names, TEXT(state, INIT));
            if (mask < 0)
                goto done;
            if (mask != known) {
                if (leave_unknown(state, finder, wanted->name, child, TEXT(state, INIT), mask) == 0)
                    *spec = none();
                goto done;
            }
        }
        if (known > VELO_BARE_NAME)
            *spec = make_spec(state, finder, wanted->name, TEXT(state, INIT), child, inner, 1);
        else if (!has_file)
            *spec = defer(finder, "namespace package") < 0 ? NULL : none();
        else
            is_over = 0;
    done:
        Py_DECREF(found);
        if (is_over)
            return ENDED;
    }
    if (!has_file)
        return GOES_ON;
    *spec = make_spec(state, finder, wanted->name, wanted->tail, folder, index, 0);
    return ENDED;
}

/* What a folder that has been asked offers. */
static Outcome consider(State *state, Finder *finder, const Wanted *wanted, Folder *folder, PyObject **spec)
{
    int64_t index = velo_names_find(&folder->table, &folder->block, wanted->bytes, wanted->size);
    *spec = NULL;
    if (folder->names != NULL) {
        int mask = live_mask(finder, folder->names, wanted->tail);
        if (mask <= 0)
            return mask < 0 ? ENDED : GOES_ON;
        uint64_t head = index < 0 ? 0 : velo_word(folder->block.records, (size_t)index * VELO_WORDS);
        if (index < 0 || (int)(head & VELO_MASK) != mask || (mask & VELO_BARE_NAME && !(head & VELO_IS_FOLDER))) {
            if (leave_unknown(state, finder, wanted->name, folder, wanted->tail, mask) == 0)
                *spec = none();
            return ENDED;
        }
    } else if (index < 0) {
        return GOES_ON;
    }
    return answer(state, finder, wanted, folder, index, spec);
}

/* Whether an importer that is not ours has nothing to say: the zip importer without the module. -1 for an error. */
static int is_silent(Finder *finder, PyObject *importer, PyObject *name)
{
    if ((PyObject *)Py_TYPE(importer) != finder->zip_hook)
        return 0;
    PyObject *found = PyObject_CallMethod(importer, "find_spec", "O", name);
    Py_XDECREF(found);
    return found == NULL ? -1 : found == Py_None;
}

/* Whether a folder that was opened lists the name, as far as is known without asking; -1 for an error. */
static int offers(State *state, Finder *finder, const Wanted *wanted, Folder *folder)
{
    if (folder->names == NULL && folder->manifest == NULL && velo_ask(state, folder) < 0)
        return -1;
    if (folder->names == NULL)
        return velo_names_find(&folder->table, &folder->block, wanted->bytes, wanted->size) >= 0;
    int mask = live_mask(finder, folder->names, wanted->tail);
    return mask < 0 ? -1 : mask > 0;
}

/* Whether the first folders of `sys.path`, opened a moment ago, still are what they were. */
static int are_current(Finder *finder, PyObject *path, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *entry = PyList_GetItem(path, i); /* borrowed */
        PyObject *folder = entry == NULL ? NULL : PyDict_GetItemWithError(finder->folders, entry);
        if (PyErr_Occurred()) {
            PyErr_Clear(); /* an entry that cannot be a key, or a list that has shrunk: the slow road sees it too */
            return 0;
        }
        if (folder != NULL && !velo_is_current((Folder *)folder))
            return 0;
    }
    return 1;
}

/* `sys.path`, if every entry up to the first that offers the name is a folder or nothing at all, and all of them are
 * what they were. Names that nobody offers cost no call to the kernel: PathFinder asks every folder then, and if it
 * finds something after all, that is seen at exit. */
static Outcome search_quickly(State *state, Finder *finder, const Wanted *wanted, PyObject *path, PyObject **spec)
{
    *spec = NULL;
    for (Py_ssize_t i = 0; i < PyList_Size(path); i++) {
        PyObject *entry = PyList_GetItem(path, i); /* borrowed */
        if (PyUnicode_Check(entry) && PyUnicode_GetLength(entry) == 0)
            return GOES_ON; /* the current folder, which may be another one at the next import */
        Py_INCREF(entry);
        PyObject *found = get_folder(state, finder, entry, 1);
        Py_DECREF(entry);
        if (found == NULL)
            return ENDED;
        int is_folder = (PyObject *)Py_TYPE(found) == state->folder_type;
        if (!is_folder && found != Py_None) {
            Py_DECREF(found);
            return GOES_ON;
        }
        int is_there = is_folder ? offers(state, finder, wanted, (Folder *)found) : 0;
        if (is_there == 1) {
            Outcome outcome = GOES_ON;
            if (are_current(finder, path, i) && velo_is_current((Folder *)found))
                outcome = consider(state, finder, wanted, (Folder *)found, spec);
            Py_DECREF(found);
            return outcome;
        }
        Py_DECREF(found);
        if (is_there < 0)
            return ENDED;
    }
    PyObject *absent = PyObject_GetAttrString(finder->counts, "absent");
    if (absent != NULL && PySet_Add(absent, wanted->name) == 0 && defer(finder, "not found") == 0)
        *spec = none();
    Py_XDECREF(absent);
    return ENDED;
}

static PyObject *search(State *state, Finder *finder, const Wanted *wanted, PyObject *path)
{
    PyObject *spec = NULL;
    int is_on_sys_path = path == Py_None;
    if (is_on_sys_path) {
        path = sys_get(state, SYS_PATH);
        if (path == NULL)
            return NULL;
    }
    Py_INCREF(path);
    if (is_on_sys_path && !finder->is_hooked && PyList_Check(path) && search_quickly(state, finder, wanted, path, &spec) == ENDED) {
        Py_DECREF(path);
        return spec;
    }
    PyObject *entries = PyObject_GetIter(path);
    Py_DECREF(path);
    if (entries == NULL)
        return NULL;
    Outcome outcome = GOES_ON;
    PyObject *entry;
    while (outcome == GOES_ON && (entry = PyIter_Next(entries)) != NULL) {
        PyObject *found = get_folder(state, finder, entry, is_on_sys_path);
        Py_DECREF(entry);
        if (found == NULL) {
            outcome = ENDED;
        } else if ((PyObject *)Py_TYPE(found) == state->folder_type) {
            Folder *folder = (Folder *)found;
            outcome = folder->asks && velo_ask(state, folder) < 0 ? ENDED
                                                                  : consider(state, finder, wanted, folder, &spec);
        } else if (found != Py_None) {
            int silent = is_silent(finder, found, wanted->name);
            if (silent <= 0) {
                outcome = ENDED;
                if (silent == 0 && defer(finder, "other importer") == 0)
                    spec = none();
            }
        }
        Py_XDECREF(found);
    }
    Py_DECREF(entries);
    if (outcome == ENDED || PyErr_Occurred())
        return spec;
    return defer(finder, "not found") < 0 ? NULL : none();
}

PyObject *velo_find(State *state, Finder *finder, PyObject *name, PyObject *path)
{
    int is_ours = state->sys == NULL ? -2 : is_import_system_ours(state, finder);
    if (is_ours == -2)
        return none(); /* the interpreter is being taken apart */
    if (is_ours < 0)
        return NULL;
    if (!is_ours)
        return defer(finder, "import system changed") < 0 ? NULL : none();
    int is_hooked = are_paths_hooked(state, finder);
    if (is_hooked < 0)
        return NULL;
    finder->is_hooked = is_hooked;
    if (!PyUnicode_Check(name)) {
        PyErr_SetString(PyExc_TypeError, "a name is text");
        return NULL;
    }
    /* Searched for at each start, mostly in vain, and then again by PathFinder: asking twice gains nothing. */
    if (PyUnicode_CompareWithASCIIString(name, "sitecustomize") == 0 ||
        PyUnicode_CompareWithASCIIString(name, "usercustomize") == 0)
        return none();
    Wanted wanted = {.name = name};
    Py_ssize_t length = PyUnicode_GetLength(name), dot = PyUnicode_FindChar(name, '.', 0, length, -1);
    if (dot < -1)
        return NULL;
    wanted.tail = dot < 0 ? PyUnicode_FromObject(name) : PyUnicode_Substring(name, dot + 1, length);
    if (wanted.tail == NULL)
        return NULL;
    Py_ssize_t size;
    PyObject *spec = NULL;
    wanted.bytes = PyUnicode_AsUTF8AndSize(wanted.tail, &size);
    if (wanted.bytes == NULL) {
        PyErr_Clear();
        wanted.encoded = PyUnicode_AsEncodedString(wanted.tail, "utf-8", "surrogateescape");
        if (wanted.encoded == NULL)
            PyErr_Clear(); /* no file can have this name; an empty one is in no table */
        size = wanted.encoded == NULL ? 0 : PyBytes_Size(wanted.encoded);
        wanted.bytes = wanted.encoded == NULL ? "" : PyBytes_AsString(wanted.encoded);
    }
    wanted.size = (size_t)size;
    spec = search(state, finder, &wanted, path);
    Py_XDECREF(wanted.encoded);
    Py_DECREF(wanted.tail);
    return spec;
}
