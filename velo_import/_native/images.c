// SPDX-License-Identifier: Apache-2.0
/*
 * Images: the code objects of functions as they lie in the memory of this very interpreter, mapped and made whole
 * (FORMAT.md, section 13). Where unmarshalling makes each object anew, here the functions of a module come in one
 * piece; what remains to be done is to add the place of the piece to each pointer within it, and to fill in what is
 * shared with others: types, names, numbers. A module's own code, and that of class bodies, runs once and is freed; it
 * is unmarshalled as ever, with holes in its constants where functions belong.
 *
 * Knows no layout of any object but where a tuple's items begin, and is told where code has its version:
 * ingest/image_worker.py does, which ran in this interpreter's build. Every offset is checked, so that no bytes of the
 * file make us write outside of its map. The surprises: the map is never given back, because its objects are alive until
 * the process ends (their reference counts begin so high that nobody ever frees one), and an image with functions is
 * given out once: whoever asks again gets code of his own, as from unmarshalling.
 */

#include "core.h"
#include "manifest.h"
#include "siphash.h"
#include "stamps.h"

#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { HEADER = 128, CHUNK_HEADER = 72 };
enum { CODE, TUPLE, BYTES, FILE_NAME, FIXED }; /* what an image always refers to */
enum { MOST_BODIES = 1 << 16 };
#define ALONE UINT32_MAX /* the number of a name that no other image has */
enum { TYPE = 8 }; /* where an object has the pointer to its type */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

typedef struct {
    PyObject_HEAD
    Map *map; /* objects are written to where they lie */
    PyObject *code_type;
    Py_ssize_t items; /* where the items of a tuple begin */
    uint32_t version; /* where a code object has its version, or 0 */
    uint64_t mask, names, data;
    uint64_t *slots;  /* a copy */
    uint8_t *taken;   /* for each slot */
    PyObject **named; /* names that were met, or NULL */
    unsigned long absent; /* how often somebody asked for what is in no slot */
} Images;

static uint32_t half_word(const uint8_t *at, uint64_t index)
{
    uint32_t value;
    memcpy(&value, at + 4 * index, sizeof(value));
    return value;
}

static int is_within(uint64_t start, uint64_t count, uint64_t each, uint64_t size)
{
    return start <= size && count <= (size - start) / each;
}

static void images_dealloc(PyObject *self)
{
    Images *images = (Images *)self;
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF((PyObject *)images->map);
    Py_XDECREF(images->code_type);
    PyMem_Free(images->slots);
    PyMem_Free(images->taken);
    PyMem_Free(images->named);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

/* Whether the objects of this interpreter have the sizes that the images were made with. */
static int is_same_build(PyObject *code_type, const uint8_t *sizes)
{
    PyObject *types[] = {code_type, (PyObject *)&PyTuple_Type, (PyObject *)&PyBytes_Type};
    for (int i = 0; i < 3; i++) {
        PyObject *size = PyObject_GetAttrString(types[i], "__basicsize__");
        unsigned long value = size == NULL ? 0 : PyLong_AsUnsignedLong(size);
        Py_XDECREF(size);
        if (PyErr_Occurred() || value != half_word(sizes, (uint64_t)i))
            return 0;
    }
    return 1;
}

/* The whole pages that this range lies in, with an advice. The kernel maps a file in pieces of up to 2 MiB, all of which
 * count as memory of ours; what is populated for writing is copied page by page, and can be given back. */
static void advise(const Images *images, uint64_t start, uint64_t size, int advice)
{
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), begin = start & ~(page - 1);
    (void)madvise(images->map->start + begin, (size_t)(start + size - begin), advice);
}

/* Why the map is not to be used, or NULL. */
static const char *open_images(Images *images, const struct stat *status, const char *identity, Py_ssize_t identity_size)
{
    const uint8_t *data = (const uint8_t *)images->map->start;
    uint64_t size = (uint64_t)images->map->size;
    if (size < HEADER)
        return "not images";
    advise(images, 0, HEADER, MADV_POPULATE_WRITE);
    if (memcmp(data, "VELOIMAG\3\0\0\0\0\0\0\0", 16) != 0)
        return "not images";
    if (velo_word(data, 2) != size || (int64_t)velo_word(data, 10) != nanoseconds(MTIME(*status)) ||
        velo_word(data, 11) != status->st_ino)
        return "changed";
    uint64_t slots = velo_word(data, 5), count = velo_word(data, 6);
    images->names = velo_word(data, 7);
    images->data = velo_word(data, 8);
    if (slots < HEADER || !is_within(slots, count, 8, size) || count == 0 || (count & (count - 1)) ||
        images->names > size || images->data > size || images->data % 16)
        return "damaged";
    advise(images, 0, slots + count * 8, MADV_POPULATE_WRITE);
    if (velo_siphash(data + 32, (size_t)(slots - 32)) != velo_word(data, 3))
        return "damaged";
    if (velo_word(data, 4) != (uint64_t)identity_size || !is_within(HEADER, (uint64_t)identity_size, 1, slots) ||
        memcmp(data + HEADER, identity, (size_t)identity_size) != 0 || !is_same_build(images->code_type, data + 96))
        return "build";
    images->items = (Py_ssize_t)half_word(data + 96, 1);
    images->version = half_word(data + 96, 3);
    images->mask = count - 1;
    images->named = PyMem_Calloc((size_t)images->names + 1, sizeof(PyObject *));
    images->taken = PyMem_Calloc((size_t)count, 1);
    images->slots = PyMem_Malloc((size_t)count * 8);
    if (images->named == NULL || images->taken == NULL || images->slots == NULL)
        return "memory";
    memcpy(images->slots, data + slots, (size_t)count * 8);
    advise(images, 0, slots + count * 8, MADV_DONTNEED);
    return NULL;
}

static PyObject *images_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    (void)keywords;
    State *state = PyType_GetModuleState(type);
    PyObject *path, *code_type;
    const char *identity;
    Py_ssize_t identity_size;
    unsigned long owner;
    if (!PyArg_ParseTuple(arguments, "Uky#O!", &path, &owner, &identity, &identity_size, &PyType_Type, &code_type))
        return NULL;
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        PyErr_SetString(state->unusable, "subinterpreter");
        return NULL; /* Objects must not be shared between interpreters, and a second map would not be worth it. */
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Images *images = (Images *)allocate(type, 0); /* zeroed */
    if (images == NULL)
        return NULL;
    Py_INCREF(code_type);
    images->code_type = code_type;
    struct stat status;
    images->map = velo_map_private(state, path, (uid_t)owner, 1, &status);
    const char *reason = images->map == NULL ? "" : open_images(images, &status, identity, identity_size);
    if (reason == NULL)
        return (PyObject *)images;
    if (!PyErr_Occurred())
        PyErr_SetString(state->unusable, reason);
    Py_DECREF((PyObject *)images);
    return NULL;
}

/* Whether anything of the image stays in the map. Where nothing does, modules that are equal, as empty ones are, share
 * the image. */
static int has_functions(const uint8_t *chunk)
{
    return half_word(chunk, 1) || half_word(chunk, 2) || half_word(chunk, 5);
}

/* The chunk of this source and bytecode, if its image was not given out yet, or 0; it is given out by this. */
static uint64_t take_chunk(Images *images, uint64_t source, uint64_t bytecode)
{
    uint64_t at = bytecode & images->mask;
    for (uint64_t tries = 0; tries <= images->mask; tries++, at = (at + 1) & images->mask) {
        uint64_t slot = images->slots[at], start = slot >> 32 << 3;
        if (start == 0)
            break;
        if ((uint32_t)slot != bytecode >> 32 || !is_within(start, 1, CHUNK_HEADER, images->data))
            continue;
        advise(images, start, CHUNK_HEADER, MADV_POPULATE_WRITE);
        const uint8_t *chunk = (const uint8_t *)images->map->start + start;
        if (velo_word(chunk, 5) == source && velo_word(chunk, 6) == bytecode) {
            if (images->taken[at])
                return 0;
            /* Also if it turns out to be damaged: half of its pointers may be true by then. */
            images->taken[at] = has_functions(chunk);
            return start;
        }
    }
    images->absent++;
    return 0;
}

/* A name, borrowed: it is kept for ever. */
static PyObject *name_of(Images *images, uint64_t index, const uint8_t *text, uint64_t length)
{
    if (index != ALONE && index >= images->names)
        return NULL;
    PyObject *name = index == ALONE ? NULL : images->named[index];
    if (name == NULL) {
        name = PyUnicode_FromStringAndSize((const char *)text, (Py_ssize_t)length);
        if (name != NULL)
            PyUnicode_InternInPlace(&name);
        if (index != ALONE)
            images->named[index] = name;
    }
    return name;
}

/* The version of the code object that was loaded last; for all maps, because no two may be the same. CPython gives them
 * from 1 up: it would have to make four thousand million code objects until it gives one of ours. */
static uint32_t latest_version = 0;

/* Make the pointers of an image true, and give code objects, known by their types, versions. Whether all of them were
 * within bounds; if not, the image must not be used. */
static int relocate(const Images *images, uint8_t *data, uint64_t size, const uint8_t *internal, uint64_t internals,
                    const uint8_t *external, uint64_t externals, PyObject *const *table, uint64_t table_size)
{
    uint64_t word;
    for (uint64_t i = 0; i < internals; i++) {
        uint64_t at = half_word(internal, i);
        if (at % 8 || !is_within(at, 1, 8, size))
            return 0;
        memcpy(&word, data + at, 8);
        if (word >= size)
            return 0;
        word += (uint64_t)(uintptr_t)data;
        memcpy(data + at, &word, 8);
    }
    for (uint64_t i = 0; i < externals; i++) {
        uint64_t at = half_word(external, i);
        if (at % 8 || !is_within(at, 1, 8, size))
            return 0;
        memcpy(&word, data + at, 8);
        if (word >= table_size)
            return 0;
        if (word == CODE && images->version != 0) {
            uint64_t place = at - TYPE + images->version;
            if (at < TYPE || !is_within(place, 1, sizeof(latest_version), size))
                return 0;
            latest_version--;
            memcpy(data + place, &latest_version, sizeof(latest_version));
        }
        word = (uint64_t)(uintptr_t)table[word];
        memcpy(data + at, &word, 8);
    }
    return 1;
}

/* The constants of a module's code or of a class body; borrowed. NULL if that is not what it is. */
static PyObject *constants_of(const Images *images, PyObject *code)
{
    if ((PyObject *)Py_TYPE(code) != images->code_type)
        return NULL;
    PyObject *constants = PyObject_GetAttrString(code, "co_consts");
    Py_XDECREF(constants); /* the code keeps it */
    return constants;
}

/* Put functions where the code of a module has holes. `bodies` are (body, index of a constant) pairs: the code of each
 * further body stands in the constants of one before it. `holes` are (body, index of a constant, place) triples. */
static int fill(const Images *images, PyObject *code, const uint8_t *bodies, uint64_t body_count, const uint8_t *holes,
                uint64_t hole_count, uint8_t *data, uint64_t data_size)
{
    PyObject **constants = PyMem_Malloc((size_t)(body_count + 1) * sizeof(PyObject *));
    if (constants == NULL)
        return 0;
    int is_whole = (constants[0] = constants_of(images, code)) != NULL;
    for (uint64_t i = 0; is_whole && i < body_count; i++) {
        uint64_t body = half_word(bodies, 2 * i), index = half_word(bodies, 2 * i + 1);
        is_whole = body <= i && index < (uint64_t)PyTuple_Size(constants[body]) &&
                   (constants[i + 1] = constants_of(images, PyTuple_GetItem(constants[body], (Py_ssize_t)index))) != NULL;
    }
    for (uint64_t i = 0; is_whole && i < hole_count; i++) {
        uint64_t body = half_word(holes, 3 * i), index = half_word(holes, 3 * i + 1), place = half_word(holes, 3 * i + 2);
        PyObject *function = (PyObject *)(data + place);
        is_whole = body <= body_count && index < (uint64_t)PyTuple_Size(constants[body]) && place % 16 == 0 &&
                   is_within(place, 1, 16, data_size) && (PyObject *)Py_TYPE(function) == images->code_type;
        if (!is_whole)
            break;
        /* The tuple is new, and nobody but its code has it. */
        PyObject **item = (PyObject **)((char *)constants[body] + images->items) + index;
        if (!(is_whole = *item == Py_None))
            break;
        Py_INCREF(function);
        Py_DECREF(*item);
        *item = function;
    }
    PyMem_Free(constants);
    return is_whole;
}

PyObject *velo_image(State *state, PyObject *self, uint64_t source, uint64_t bytecode, PyObject *path)
{
    Images *images = (Images *)self;
    uint64_t start = take_chunk(images, source, bytecode), size = (uint64_t)images->map->size;
    if (start == 0)
        return NULL;
    const uint8_t *chunk = (const uint8_t *)images->map->start + start;
    uint64_t data_size = half_word(chunk, 0), internals = half_word(chunk, 1), externals = half_word(chunk, 2),
             names = half_word(chunk, 3), bodies = half_word(chunk, 4), holes = half_word(chunk, 5),
             texts = half_word(chunk, 6), others = half_word(chunk, 7), marshalled = half_word(chunk, 8),
             place = images->data + 16 * (uint64_t)half_word(chunk, 9);
    uint64_t length = CHUNK_HEADER + 4 * (internals + externals + 2 * bodies + 3 * holes + 2 * names) + texts + marshalled;
    if (data_size == 0 || !is_within(start, length, 1, images->data) || !is_within(place, data_size, 1, size) ||
        others > marshalled || bodies > MOST_BODIES)
        return NULL;
    advise(images, start, length, MADV_POPULATE_WRITE);
    advise(images, place, data_size, MADV_POPULATE_WRITE);
    uint8_t *data = (uint8_t *)images->map->start + place;
    const uint8_t *internal = chunk + CHUNK_HEADER, *external = internal + 4 * internals;
    const uint8_t *body = external + 4 * externals, *hole = body + 8 * bodies, *named = hole + 12 * holes;
    const uint8_t *text = named + 8 * names, *rest = text + texts;
    PyObject *view = PyMemoryView_FromMemory((char *)rest, (Py_ssize_t)marshalled, PyBUF_READ);
    PyObject *kept = view == NULL ? NULL : PyObject_CallFunctionObjArgs(state->loads, view, NULL);
    Py_XDECREF(view);
    PyObject *code = NULL;
    PyObject **table = PyMem_Malloc((size_t)(FIXED + others + names) * sizeof(PyObject *));
    if (kept == NULL || table == NULL || !PyTuple_Check(kept) || PyTuple_Size(kept) != (Py_ssize_t)others + 1)
        goto done;
    code = PyTuple_GetItem(kept, 0);
    Py_INCREF(code);
    PyObject *fixed = PyObject_CallFunctionObjArgs(state->fix, code, path, NULL); /* refuses what is no code */
    Py_XDECREF(fixed);
    if (fixed == NULL)
        goto damaged;
    table[CODE] = images->code_type;
    table[TUPLE] = (PyObject *)&PyTuple_Type;
    table[BYTES] = (PyObject *)&PyBytes_Type;
    table[FILE_NAME] = path;
    for (uint64_t i = 0; i < others; i++)
        table[FIXED + i] = PyTuple_GetItem(kept, (Py_ssize_t)i + 1);
    for (uint64_t i = 0; i < names; i++) {
        uint64_t size_of_text = half_word(named, 2 * i + 1);
        if (size_of_text > (uint64_t)(rest - text))
            goto damaged;
        table[FIXED + others + i] = name_of(images, half_word(named, 2 * i), text, size_of_text);
        if (table[FIXED + others + i] == NULL)
            goto damaged;
        text += size_of_text;
    }
    if (!relocate(images, data, data_size, internal, internals, external, externals, table, FIXED + others + names))
        goto damaged;
    /* For ever: the image refers to them without counting, and lies in the map. */
    for (uint64_t i = FILE_NAME; has_functions(chunk) && i < FIXED + others; i++)
        Py_INCREF(table[i]);
    if (has_functions(chunk))
        Py_INCREF(self);
    if (fill(images, code, body, bodies, hole, holes, data, data_size))
        goto done;
damaged:
    Py_CLEAR(code);
done:
    advise(images, start, length, MADV_DONTNEED);
    Py_XDECREF(kept);
    PyMem_Free(table);
    if (code == NULL)
        PyErr_Clear();
    return code;
}

static PyObject *images_take(PyObject *self, PyObject *arguments)
{
    unsigned long long source, bytecode;
    PyObject *path;
    if (!PyArg_ParseTuple(arguments, "KKU", &source, &bytecode, &path))
        return NULL;
    PyObject *code = velo_image(PyType_GetModuleState(Py_TYPE(self)), self, source, bytecode, path);
    if (code == NULL) {
        Py_INCREF(Py_None);
        code = Py_None;
    }
    return code;
}

static PyObject *images_absent(PyObject *self, PyObject *nothing)
{
    (void)nothing;
    return PyLong_FromUnsignedLong(((Images *)self)->absent);
}

static PyMethodDef images_methods[] = {
    {"take", images_take, METH_VARARGS,
     "take(source_check: int, bytecode_check: int, path: str) -> code | None\n\n"
     "The code of this source and bytecode, with `path` as its file name; None where there is no image, and the\n"
     "second time if it has functions."},
    {"absent", images_absent, METH_NOARGS, "How often somebody asked for what the file does not know."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot images_slots[] = {
    {Py_tp_new, images_new},
    {Py_tp_dealloc, images_dealloc},
    {Py_tp_methods, images_methods},
    {Py_tp_doc, "Images(path: str, owner: int, identity: bytes, code_type: type)\n\n"
                "One mapped file of images. Raises OSError, and Unusable with the reason."},
    {0, NULL},
};

static PyType_Spec images_spec = {
    .name = "velo_import._native.core.Images",
    .basicsize = sizeof(Images),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = images_slots,
};

int velo_add_images(PyObject *module, State *state)
{
    state->images_type = PyType_FromModuleAndSpec(module, &images_spec, NULL);
    return state->images_type == NULL ? -1 : PyModule_AddObjectRef(module, "Images", state->images_type);
}
