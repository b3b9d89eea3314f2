// SPDX-License-Identifier: Apache-2.0
/*
 * What is alive when a program ends, and what of it would do anything but give memory back if it were destroyed.
 *
 * Reading order: `Survey` (one look at everything), `kind_of` (what an object's type says, asked once per type),
 * `look` (one object), `visit` (what an object refers to), `survey_one` and `velo_look_at_remains` (all of it). The
 * judgement over what is found is velo_import/hook/remains.py and finalisers.py. There is no Python twin: only C can
 * see whose code cleans up after a type. Without this module a program ends as CPython ends it.
 *
 * The rule: memory that CPython itself gives back is nothing to ask about. Asked about are objects with a
 * finaliser, callbacks of weak references, and native code that is neither CPython's nor its standard library's.
 *
 * Stable ABI (3.11).
 */

#define _GNU_SOURCE /* dladdr */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "core.h"

#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <string.h>

/* Standard library types that write, or tell somebody, when they are destroyed, without a finaliser to show it. */
static const char *const CAREFUL[] = {
    "_curses",     "_curses_panel",    "_dbm",           "_gdbm",          "_interpchannels", "_interpqueues",
    "_interpreters", "_remote_debugging", "_sqlite3", "_tkinter",       "_xxinterpchannels", "_xxsubinterpreters",
    "sqlite3",     NULL,
};

enum { MOST_OBJECTS = 256, MOST_CALLBACKS = 1 << 16, MOST_LIBRARIES = 256, CODES = 1 << 10, DEEPEST = 32 };

/* What the type of an object says about it; bits. */
enum { KNOWN = 1, ASK = 2, WEAK = 4, CAPSULE = 8, MODULE = 16, CONTAINER = 32, COLLECTED = 64 };

typedef struct {
    PyTypeObject *type;
    int kind;
    traverseproc traverse;
} Slot;

typedef struct {
    Slot *slots; /* open addressing; `mask` + 1 is a power of two */
    size_t mask, used;
    PyObject *objects;   /* list: with a finaliser, or careful */
    PyObject *callbacks; /* dict; functions of one text count once if they close over nothing */
    PyObject *libraries; /* set of file names (str) of foreign native code that cleans up */
    void *codes[CODES];          /* code that was looked at; open addressing, never more than half full */
    int code_count;
    void *bases[MOST_LIBRARIES]; /* load addresses of libraries that were looked at */
    int base_count;
    uintptr_t python_start, python_end; /* where CPython's own code lies */
    void *own_base;
    destructor python_class_dealloc; /* that of every class made by a `class` statement */
    PyTypeObject *weak, *function;
    const char *stdlib; /* the folder of the standard library's extension modules, with its slash */
    size_t stdlib_length;
    PyObject *ignored; /* tuple */
    PyObject *name;    /* "__module__" */
    int is_deep; /* also what the collector does not list */
    int depth;
} Survey;

static int failed(void)
{
    return -1; /* an exception is set */
}

/* Each object once: one that is not listed by the collector may be met on many ways. */
static int ask_object(Survey *survey, PyObject *object)
{
    Py_ssize_t count = PyList_Size(survey->objects);
    for (Py_ssize_t i = 0; i < count; i++)
        if (PyList_GetItem(survey->objects, i) == object)
            return 0;
    if (count == MOST_OBJECTS) {
        PyErr_SetString(PyExc_OverflowError, "too many objects with a finaliser");
        return failed();
    }
    return PyList_Append(survey->objects, object);
}

static int is_pythons(const Survey *survey, void *code)
{
    return (uintptr_t)code >= survey->python_start && (uintptr_t)code < survey->python_end;
}

/* Whether this code was looked at before; if not, it counts as looked at from now on. dladdr searches a whole
 * symbol table each time, and thousands of types share a few dozen functions. */
static int is_seen(Survey *survey, void *code)
{
    size_t at = ((uintptr_t)code >> 4) * 0x9E3779B1u & (CODES - 1);
    while (survey->codes[at] != NULL) {
        if (survey->codes[at] == code)
            return 1;
        at = (at + 1) & (CODES - 1);
    }
    if (survey->code_count < CODES / 2) {
        survey->codes[at] = code;
        survey->code_count++;
    }
    return 0;
}

/* Note whose code it is that cleans up, unless it is CPython's. */
static int ask_code(Survey *survey, void *code)
{
    Dl_info found;
    if (code == NULL || is_pythons(survey, code) || is_seen(survey, code))
        return 0;
    if (dladdr(code, &found) == 0 || found.dli_fname == NULL) {
        PyErr_SetString(PyExc_LookupError, "native code of no library");
        return failed();
    }
    if (found.dli_fbase == survey->own_base)
        return 0;
    for (int i = 0; i < survey->base_count; i++)
        if (survey->bases[i] == found.dli_fbase)
            return 0;
    if (survey->base_count == MOST_LIBRARIES) {
        PyErr_SetString(PyExc_OverflowError, "too many libraries");
        return failed();
    }
    survey->bases[survey->base_count++] = found.dli_fbase;
    if (strncmp(found.dli_fname, survey->stdlib, survey->stdlib_length) == 0)
        return 0;
    PyObject *file = PyUnicode_DecodeFSDefault(found.dli_fname);
    int answer = file == NULL ? failed() : PySet_Add(survey->libraries, file);
    Py_XDECREF(file);
    return answer;
}

static int is_careful(Survey *survey, PyTypeObject *type)
{
    PyObject *module = PyObject_GetAttr((PyObject *)type, survey->name);
    int answer = 0;
    if (module == NULL) {
        PyErr_Clear();
        return 1;
    }
    if (PyUnicode_Check(module))
        for (int i = 0; CAREFUL[i] != NULL && !answer; i++)
            answer = PyUnicode_CompareWithASCIIString(module, CAREFUL[i]) == 0;
    Py_DECREF(module);
    return answer;
}

/* What a type says about its objects; negative with an exception set. */
static int classify(Survey *survey, PyTypeObject *type)
{
    int kind = KNOWN;
    if (PyType_GetFlags(type) & Py_TPFLAGS_HAVE_GC)
        kind |= COLLECTED;
    if (PyType_IsSubtype(type, survey->weak))
        kind |= WEAK;
    if (type == &PyCapsule_Type)
        kind |= CAPSULE;
    if (PyType_IsSubtype(type, &PyModule_Type))
        kind |= MODULE;
    if (type == &PyTuple_Type || type == &PyDict_Type)
        kind |= CONTAINER;
    if (PyType_GetSlot(type, Py_tp_finalize) != NULL || PyType_GetSlot(type, Py_tp_del) != NULL)
        kind |= ASK;
    PyTypeObject *base = type;
    destructor dealloc = (destructor)PyType_GetSlot(base, Py_tp_dealloc);
    while (dealloc == survey->python_class_dealloc && base != NULL) {
        base = (PyTypeObject *)PyType_GetSlot(base, Py_tp_base);
        dealloc = base == NULL ? NULL : (destructor)PyType_GetSlot(base, Py_tp_dealloc);
    }
    if (base != NULL && is_careful(survey, base))
        kind |= ASK;
    return ask_code(survey, (void *)(uintptr_t)dealloc) < 0 ? -1 : kind;
}

static int grow(Survey *survey)
{
    size_t size = (survey->mask + 1) * 2;
    Slot *slots = PyMem_Calloc(size, sizeof(Slot));
    if (slots == NULL) {
        PyErr_NoMemory();
        return failed();
    }
    for (size_t i = 0; i <= survey->mask; i++) {
        if (survey->slots[i].type == NULL)
            continue;
        size_t at = ((uintptr_t)survey->slots[i].type >> 4) * 0x9E3779B1u & (size - 1);
        while (slots[at].type != NULL)
            at = (at + 1) & (size - 1);
        slots[at] = survey->slots[i];
    }
    PyMem_Free(survey->slots);
    survey->slots = slots;
    survey->mask = size - 1;
    return 0;
}

/* The slot of a type, made at first sight; NULL with an exception set. */
static Slot *kind_of(Survey *survey, PyTypeObject *type)
{
    size_t at = ((uintptr_t)type >> 4) * 0x9E3779B1u & survey->mask;
    while (survey->slots[at].type != NULL) {
        if (survey->slots[at].type == type)
            return &survey->slots[at];
        at = (at + 1) & survey->mask;
    }
    int kind = classify(survey, type);
    if (kind < 0 || (survey->used * 2 > survey->mask && grow(survey) < 0))
        return NULL;
    at = ((uintptr_t)type >> 4) * 0x9E3779B1u & survey->mask;
    while (survey->slots[at].type != NULL)
        at = (at + 1) & survey->mask;
    survey->slots[at].type = type;
    survey->slots[at].kind = kind;
    survey->slots[at].traverse = (traverseproc)PyType_GetSlot(type, Py_tp_traverse);
    survey->used++;
    return &survey->slots[at];
}

/* CPython's own C callbacks of weak references: they tidy a set of classes, and a thread's local data. */
static int is_tidying(PyObject *function)
{
    PyObject *name = PyObject_GetAttrString(function, "__name__");
    int answer = name != NULL && PyUnicode_Check(name) &&
                 (PyUnicode_CompareWithASCIIString(name, "_destroy") == 0 ||
                  PyUnicode_CompareWithASCIIString(name, "_localdummy_destroyed") == 0 ||
                  PyUnicode_CompareWithASCIIString(name, "clear_locals") == 0);
    PyErr_Clear();
    Py_XDECREF(name);
    return answer;
}

static int ask_callback(Survey *survey, PyObject *callback)
{
    void *what = callback;
    if (Py_TYPE(callback) == survey->function) {
        PyObject *code = PyObject_GetAttrString(callback, "__code__");
        PyObject *closure = PyObject_GetAttrString(callback, "__closure__");
        if (closure == Py_None && code != NULL)
            what = code; /* the function keeps it */
        Py_XDECREF(code);
        Py_XDECREF(closure);
        if (code == NULL || closure == NULL)
            return failed();
    } else if (PyCFunction_Check(callback)) {
        void *code = (void *)(uintptr_t)PyCFunction_GetFunction(callback);
        if (!is_pythons(survey, code))
            return ask_code(survey, code);
        if (is_tidying(callback))
            return 0;
    }
    if (PyDict_Size(survey->callbacks) == MOST_CALLBACKS) {
        PyErr_SetString(PyExc_OverflowError, "too many callbacks");
        return failed();
    }
    PyObject *key = PyLong_FromVoidPtr(what);
    int answer = key == NULL ? failed() : PyDict_SetItem(survey->callbacks, key, callback);
    Py_XDECREF(key);
    return answer;
}

/* The callback of an exact weak reference is the one thing that it refers to: no attribute is looked up. */
static int visit_callback(PyObject *callback, void *survey)
{
    return ask_callback(survey, callback);
}

static int look_at_weak(Survey *survey, PyObject *weak, Slot *slot)
{
    if (Py_TYPE(weak) == survey->weak)
        return slot->traverse(weak, visit_callback, survey);
    PyObject *callback = PyObject_GetAttrString(weak, "__callback__");
    int answer = callback == NULL ? failed() : callback == Py_None ? 0 : ask_callback(survey, callback);
    Py_XDECREF(callback);
    return answer;
}

/* What this one object would do when destroyed. */
static int look(Survey *survey, PyObject *object, Slot *slot)
{
    if (slot->kind & ASK) {
        int is_ignored = 0;
        for (Py_ssize_t i = 0; i < PyTuple_Size(survey->ignored) && !is_ignored; i++)
            is_ignored = PyTuple_GetItem(survey->ignored, i) == object;
        if (!is_ignored && ask_object(survey, object) < 0)
            return failed();
    }
    if (slot->kind & WEAK && look_at_weak(survey, object, slot) < 0)
        return failed();
    if (slot->kind & CAPSULE) {
        PyCapsule_Destructor destroy = PyCapsule_GetDestructor(object);
        if (destroy == NULL)
            PyErr_Clear();
        return ask_code(survey, (void *)(uintptr_t)destroy);
    }
    if (slot->kind & MODULE) {
        PyModuleDef *definition = PyModule_GetDef(object);
        if (definition == NULL)
            PyErr_Clear();
        else
            return ask_code(survey, (void *)(uintptr_t)definition->m_free);
    }
    return 0;
}

/* What an object refers to and the collector does not list: numbers, texts, native objects, settled tuples. */
static int visit(PyObject *object, void *argument)
{
    Survey *survey = argument;
    Slot *slot = kind_of(survey, Py_TYPE(object));
    if (slot == NULL)
        return failed();
    if (slot->kind == KNOWN || (slot->kind & COLLECTED && PyObject_GC_IsTracked(object)))
        return 0;
    if (look(survey, object, slot) < 0)
        return failed();
    if (!(slot->kind & CONTAINER))
        return 0;
    if (survey->depth == DEEPEST) {
        PyErr_SetString(PyExc_RecursionError, "too deep");
        return failed();
    }
    traverseproc traverse = slot->traverse; /* the slots may move */
    survey->depth++;
    int answer = traverse(object, visit, survey);
    survey->depth--;
    return answer;
}

/* One object of those that the collector lists; 0 to stop, with an exception set. */
static int survey_one(PyObject *object, void *argument)
{
    Survey *survey = argument;
    Slot *slot = kind_of(survey, Py_TYPE(object));
    if (slot == NULL)
        return 0;
    if (slot->kind == (KNOWN | COLLECTED) && !survey->is_deep)
        return 1;
    traverseproc traverse = survey->is_deep ? slot->traverse : NULL; /* the slots may move */
    if (look(survey, object, slot) < 0 || (traverse != NULL && traverse(object, visit, survey) != 0)) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "a traversal ended early");
        return 0;
    }
    return 1;
}

/* From 3.12 on; looked up when needed, since the stable ABI does not promise it. Objects may be made and freed
 * meanwhile, and a list of all would be the most memory that many a program ever has. */
typedef void (*VisitObjects)(int (*)(PyObject *, void *), void *);

static int survey_all(Survey *survey, PyObject *get_objects)
{
    VisitObjects visit_objects = (VisitObjects)(uintptr_t)dlsym(RTLD_DEFAULT, "PyUnstable_GC_VisitObjects");
    if (visit_objects != NULL) {
        visit_objects(survey_one, survey);
    } else {
        PyObject *list = PyObject_CallNoArgs(get_objects);
        if (list != NULL && !PyList_Check(list))
            PyErr_SetString(PyExc_TypeError, "no list of objects");
        for (Py_ssize_t i = 0; !PyErr_Occurred() && i < PyList_Size(list); i++)
            if (!survey_one(PyList_GetItem(list, i), survey))
                break;
        Py_XDECREF(list);
    }
    return PyErr_Occurred() ? failed() : 0;
}

/* Called for each loaded library, until it is the one with CPython's code in it. */
static int find_python(struct dl_phdr_info *library, size_t size, void *argument)
{
    Survey *survey = argument;
    uintptr_t known = (uintptr_t)PyObject_GetAttr;
    (void)size;
    for (int i = 0; i < library->dlpi_phnum; i++) {
        uintptr_t start = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
        uintptr_t end = start + library->dlpi_phdr[i].p_memsz;
        if (library->dlpi_phdr[i].p_type == PT_LOAD && known >= start && known < end) {
            survey->python_start = start;
            survey->python_end = end;
            return 1;
        }
    }
    return 0;
}

static int prepare(Survey *survey)
{
    Dl_info own;
    dl_iterate_phdr(find_python, survey);
    survey->own_base = dladdr((void *)(uintptr_t)prepare, &own) ? own.dli_fbase : NULL;
    survey->mask = (1 << 10) - 1;
    survey->slots = PyMem_Calloc(survey->mask + 1, sizeof(Slot));
    survey->objects = PyList_New(0);
    survey->callbacks = PyDict_New();
    survey->libraries = PySet_New(NULL);
    survey->name = PyUnicode_FromString("__module__");
    if (survey->slots == NULL)
        PyErr_NoMemory();
    if (survey->python_end == 0)
        PyErr_SetString(PyExc_LookupError, "CPython cannot be found");
    return PyErr_Occurred() ? failed() : 0;
}

PyObject *velo_look_at_remains(PyObject *self, PyObject *arguments)
{
    (void)self;
    Survey survey = {0};
    PyObject *answer = NULL, *get_objects;
    PyTypeObject *python_class;
    Py_ssize_t length;
    if (!PyArg_ParseTuple(arguments, "O!O!O!y#O!Op", &PyType_Type, &python_class, &PyType_Type, &survey.weak,
                          &PyType_Type, &survey.function, &survey.stdlib, &length, &PyTuple_Type, &survey.ignored,
                          &get_objects, &survey.is_deep))
        return NULL;
    if (PyInterpreterState_GetID(PyInterpreterState_Get()) != 0) {
        /* Its memory has to be given back: the process goes on. */
        PyErr_SetString(PyExc_RuntimeError, "not the main interpreter");
        return NULL;
    }
    survey.stdlib_length = (size_t)length;
    survey.python_class_dealloc = (destructor)PyType_GetSlot(python_class, Py_tp_dealloc);
    if (prepare(&survey) < 0 || survey_all(&survey, get_objects) < 0)
        goto done;
    PyObject *callbacks = PyDict_Values(survey.callbacks);
    if (callbacks != NULL)
        answer = PyTuple_Pack(3, survey.objects, callbacks, survey.libraries);
    Py_XDECREF(callbacks);

done:
    PyMem_Free(survey.slots);
    Py_XDECREF(survey.objects);
    Py_XDECREF(survey.callbacks);
    Py_XDECREF(survey.libraries);
    Py_XDECREF(survey.name);
    return answer;
}
