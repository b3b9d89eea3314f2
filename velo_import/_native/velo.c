/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The `velo` command: `velo run -- PROGRAM` in about a millisecond, everything else by the Python command line.
 *
 * A Python start costs ten milliseconds before the program's own begins, so the common case is decided here:
 * no options, no configuration file that could say something, a store that this installation has prepared.
 * Wherever there is the least doubt, launch/execute.py decides, which is the reference: `hand_over` runs the
 * script `velo-py` that stands beside this program. tests/test_launcher.py puts both through the same cases.
 *
 * What a store knows of us is `run/launch`, written by launch/injection.py after it has prepared the store:
 * fields separated by NUL, see `read_note`. It is believed only if nobody else could have written it and if it
 * names this very file and the learner that is there now.
 *
 * One thing only this program can do: have the kernel read what the start will need before the interpreter is
 * there (`read_ahead`). The hook does it for programs that were started in another way (hook/ahead.py).
 */
#define _GNU_SOURCE
#include "siphash.h"
#include "stamps.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { MOST_NOTE = 16384, MOST_PROJECT_FILE = 1 << 20, MOST_WORDS = 16384, MOST_AHEAD = 1 << 20 };
enum { STEP = 1 << 17 }; /* the kernel reads no more for one request than its disk's limit, 128 KiB at least */
static const unsigned long long MOST_BYTES = 256ULL << 20;

/* The path of this program, links resolved; NULL where /proc does not tell. */
static const char *own_path(char *path, size_t size)
{
    ssize_t length = readlink("/proc/self/exe", path, size - 1);
    if (length <= 0 || (size_t)length >= size - 1)
        return NULL;
    path[length] = '\0';
    return path;
}

/* Whether this script's first line names a Python, which is copied out: it is then run with -E, so that a
 * user's PYTHONPATH and what stands on it speak in the user's program only. */
static int python_of(const char *script, char *python, size_t size)
{
    int file = open(script, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 0;
    ssize_t length = read(file, python, size - 1);
    close(file);
    if (length < 4 || memcmp(python, "#!/", 3) != 0)
        return 0;
    python[length] = '\0';
    char *end = strpbrk(python, " \t\r\n");
    if (end == NULL || *end != '\n')
        return 0;
    *end = '\0';
    memmove(python, python + 2, (size_t)(end - python) - 1);
    const char *name = strrchr(python, '/');
    return name != NULL && strncmp(name + 1, "python", 6) == 0;
}

static int hand_over(int count, char **arguments)
{
    char own[PATH_MAX], script[PATH_MAX + 8], python[PATH_MAX];
    if (own_path(own, sizeof(own)) == NULL) /* a bare chroot: by the name that we were called by, along PATH */
        snprintf(own, sizeof(own), "%s", count > 0 ? arguments[0] : "velo");
    snprintf(script, sizeof(script), "%s-py", own);
    char **given = calloc((size_t)count + 3, sizeof(char *));
    if (given == NULL)
        return 1;
    int at = 0;
    const char *program = script;
    if (strchr(own, '/') != NULL && python_of(script, python, sizeof(python))) {
        program = given[at++] = python;
        given[at++] = (char *)"-E";
    }
    given[at++] = script;
    for (int i = 1; i < count; i++)
        given[at++] = arguments[i];
    execvp(program, given);
    fprintf(stderr, "error: cannot run %s: %s\nhint: install Velo again\n", script, strerror(errno));
    return 1;
}

static const char *value_of(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && *value != '\0' ? value : NULL;
}

static int is_switched_on(const char *name)
{
    const char *value = value_of(name);
    return value != NULL && strcmp(value, "0") != 0;
}

/* Whether a path is absolute and in the form that os.path.abspath would give it. */
static int is_plain(const char *path)
{
    if (path[0] != '/' || path[1] == '\0')
        return 0;
    for (const char *at = path; *at != '\0'; at++) {
        if (*at != '/')
            continue;
        if (at[1] == '/' || at[1] == '\0')
            return 0;
        if (at[1] == '.' && (at[2] == '/' || at[2] == '\0' || (at[2] == '.' && (at[3] == '/' || at[3] == '\0'))))
            return 0;
    }
    return 1;
}

/* The folder of a kind of the user's files: the variable's if it is absolute, else `below` in the home folder. */
static int user_folder(char *path, size_t size, const char *variable, const char *below)
{
    const char *named = value_of(variable);
    const char *home = value_of("HOME");
    int length = -1;
    if (named != NULL && named[0] == '/')
        length = snprintf(path, size, "%s", named);
    else if (home != NULL)
        length = snprintf(path, size, "%s/%s", home, below);
    return length > 0 && (size_t)length < size && is_plain(path);
}

static int is_file(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 && S_ISREG(status.st_mode);
}

static int holds(const char *text, ssize_t length, const char *word)
{
    return memmem(text, (size_t)length, word, strlen(word)) != NULL;
}

/* Whether a pyproject.toml can hold a [tool.velo] table, as config/paths.py judges it; or cannot be read here. */
static int may_name_us(const char *path)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (file < 0)
        return 1;
    int answer = 1;
    char *text = NULL;
    if (fstat(file, &status) == 0 && status.st_size < MOST_PROJECT_FILE && (text = malloc((size_t)status.st_size + 1))) {
        ssize_t length = read(file, text, (size_t)status.st_size + 1);
        if (length == status.st_size)
            answer = holds(text, length, "tool.velo") || (holds(text, length, "[tool]") && holds(text, length, "velo"));
    }
    free(text);
    close(file);
    return answer;
}

/* Whether no configuration file can have a say in the current folder. */
static int is_unconfigured(void)
{
    char path[PATH_MAX + 32];
    if (!user_folder(path, PATH_MAX, "XDG_CONFIG_HOME", ".config"))
        return 0;
    strcat(path, "/velo/config.toml");
    if (is_file(path))
        return 0;
    if (getcwd(path, PATH_MAX) == NULL || path[0] != '/')
        return 0;
    size_t length = strcmp(path, "/") == 0 ? 0 : strlen(path);
    for (;;) {
        strcpy(path + length, "/velo.toml");
        if (is_file(path))
            return 0;
        strcpy(path + length, "/pyproject.toml");
        if (is_file(path) && may_name_us(path))
            return 0;
        if (length == 0)
            return 1;
        while (path[--length] != '/') /* on to the parent */
            ;
    }
}

/* Whether `field` is the stamp of this file: mtime in ns, inode and size as decimal numbers. */
static int has_stamp(const char *path, const char *field)
{
    struct stat status;
    char stamp[96];
    if (stat(path, &status) != 0)
        return 0;
    snprintf(stamp, sizeof(stamp), "%lld %llu %lld",
             nanoseconds(MTIME(status)),
             (unsigned long long)status.st_ino, (long long)status.st_size);
    return strcmp(stamp, field) == 0;
}

/* The folder to inject, out of `run/launch`, in `note`; NULL unless the note is ours and still true. Fields:
 * "velo-launch 1", path and stamp of this program, stamp of `run/learner`, the folder. */
static const char *read_note(const char *home, char *note)
{
    char path[PATH_MAX + 16], own[PATH_MAX];
    struct stat status;
    snprintf(path, sizeof(path), "%s/run/launch", home);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0)
        return NULL;
    ssize_t length = -1;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == geteuid() && !(status.st_mode & 022))
        length = read(file, note, MOST_NOTE - 1);
    close(file);
    if (length <= 0)
        return NULL;
    note[length] = '\0';
    const char *fields[5];
    const char *at = note;
    for (int i = 0; i < 5; i++) {
        if (at >= note + length)
            return NULL;
        fields[i] = at;
        at += strlen(at) + 1;
    }
    snprintf(path, sizeof(path), "%s/run/learner", home);
    if (strcmp(fields[0], "velo-launch 1") != 0 || own_path(own, sizeof(own)) == NULL || strcmp(fields[1], own) != 0 ||
        !has_stamp(own, fields[2]) || !has_stamp(path, fields[3]))
        return NULL;
    snprintf(path, sizeof(path), "%s/sitecustomize.py", fields[4]);
    return is_plain(fields[4]) && strchr(fields[4], ':') == NULL && is_file(path) ? fields[4] : NULL;
}

/* PYTHONPATH with the folder first, once; everything else as the user wrote it (launch/environment.py). */
static char *python_path(const char *existing, const char *folder)
{
    size_t length = strlen(folder);
    char *path = malloc(length + (existing ? strlen(existing) : 0) + 2);
    if (path == NULL)
        return NULL;
    char *end = stpcpy(path, folder);
    while (existing != NULL) {
        const char *colon = strchrnul(existing, ':');
        size_t entry = (size_t)(colon - existing);
        if (entry != length || memcmp(existing, folder, length) != 0) {
            *end++ = ':';
            end = mempcpy(end, existing, entry);
        }
        existing = *colon ? colon + 1 : NULL;
    }
    *end = '\0';
    return path;
}

/* What Node loads first, beside the folder to inject (launch/injection.py); 0 where it is missing. */
static int preload_file(const char *folder, char *path, size_t size)
{
    const char *slash = strrchr(folder, '/');
    int length = snprintf(path, size, "%.*s/_node/index.cjs", (int)(slash - folder), folder);
    return length > 0 && (size_t)length < size && is_file(path);
}

/* Whether one of the words between spaces is this option: what is injected twice is injected once. */
static int has_option(const char *existing, const char *option)
{
    size_t length = strlen(option);
    for (const char *at = existing; (at = strstr(at, option)) != NULL; at++)
        if ((at == existing || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0'))
            return 1;
    return 0;
}

/* NODE_OPTIONS with our preload before all that the user has there, in Node's own quoting: spaces separate words, and
 * a backslash is one except within quotes (launch/environment.py). */
static char *node_options(const char *existing, const char *preload)
{
    const char *quote = strpbrk(preload, " \"") != NULL ? "\"" : "";
    char *options = malloc(2 * strlen(preload) + (existing ? strlen(existing) : 0) + 32);
    if (options == NULL)
        return NULL;
    char *end = stpcpy(stpcpy(options, quote), "--require=");
    for (; *preload != '\0'; preload++) {
        if (*quote != '\0' && (*preload == '"' || *preload == '\\'))
            *end++ = '\\';
        *end++ = *preload;
    }
    end = stpcpy(end, quote);
    if (existing != NULL && has_option(existing, options))
        strcpy(options, existing);
    else if (existing != NULL)
        stpcpy(stpcpy(end, " "), existing);
    return options;
}

/* The program as the kernel will find it, for a name without a slash along PATH; 0 if it is nowhere. */
static int find_program(const char *name, char *path, size_t size)
{
    if (strchr(name, '/') != NULL)
        return snprintf(path, size, "%s", name) < (int)size;
    for (const char *at = value_of("PATH"); at != NULL;) {
        const char *colon = strchrnul(at, ':');
        int length = snprintf(path, size, "%.*s/%s", (int)(colon - at), at, name);
        if (colon > at && length < (int)size && access(path, X_OK) == 0 && is_file(path))
            return 1;
        at = *colon ? colon + 1 : NULL;
    }
    return 0;
}

/* Note that an environment is in use, at most once an hour: `run/<name>.used` (launch/injection.py, which says
 * why; FORMAT.md, section 6). What does not work out costs nobody anything. */
static void mark_used(const char *home, const char *program)
{
    char path[PATH_MAX], mark[PATH_MAX + 64], name[41];
    struct stat status;
    char *folder, *slash;
    if (is_switched_on("VELO_READONLY") || !find_program(program, path, sizeof(path)))
        return;
    for (int i = 0; i < 2; i++) { /* PREFIX/bin/python */
        if ((slash = strrchr(path, '/')) == NULL)
            return;
        *slash = '\0';
    }
    folder = (slash = strrchr(path, '/')) != NULL ? slash + 1 : path;
    size_t length = 0;
    for (; *folder != '\0' && length < sizeof(name) - 1; folder++)
        if ((*folder >= '0' && *folder <= '9') || (*folder >= 'A' && *folder <= 'Z') ||
            (*folder >= 'a' && *folder <= 'z') || strchr("._-", *folder) != NULL)
            name[length++] = *folder;
    name[length] = '\0';
    snprintf(mark, sizeof(mark), "%s/run/%s.used", home, name);
    if (stat(mark, &status) == 0 && time(NULL) - status.st_mtime < 3600)
        return;
    int file = open(mark, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file >= 0) {
        futimens(file, NULL);
        close(file);
    }
}

/* The name of this program's note (ingest/startup.py): a hash of the interpreter and all words up to the first that
 * is no option, with the current folder unless that one is an absolute path, or given to -c or -m. */
static int mark_of(char **command, char *mark)
{
    static char text[PATH_MAX + MOST_WORDS];
    size_t words = 1;
    while (command[words] != NULL && command[words++][0] == '-')
        ;
    text[0] = '\0';
    int is_path = words < 2 || (strcmp(command[words - 2], "-c") != 0 && strcmp(command[words - 2], "-m") != 0);
    if (is_path && command[words - 1][0] != '/' && (getcwd(text, PATH_MAX) == NULL || text[0] != '/'))
        return 0;
    size_t end = strlen(text);
    for (size_t i = 0; i < words; i++) {
        size_t length = strlen(command[i]);
        if (length >= sizeof(text) - end - 1)
            return 0;
        memcpy(text + end + 1, command[i], length + 1);
        end += length + 1;
    }
    uint64_t hash = velo_siphash(text, end);
    for (int i = 0; i < 8; i++)
        sprintf(mark + 2 * i, "%02x", (unsigned)(hash >> 8 * i & 0xff));
    return 1;
}

/* Whether the first page of a file is in memory. */
static int is_resident(int file)
{
    unsigned char answer = 1;
    void *page = mmap(NULL, 1, PROT_READ, MAP_SHARED, file, 0);
    if (page != MAP_FAILED) {
        if (mincore(page, 1, &answer) != 0)
            answer = 1;
        munmap(page, 1);
    }
    return answer & 1;
}

/* Have the kernel read the ranges "offset length offset length ..." of a file. */
static void ask(const char *path, const char *ranges, unsigned long long *rest)
{
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0)
        return;
    for (;;) {
        char *end;
        unsigned long long offset = strtoull(ranges, &end, 10);
        unsigned long long length = *end == ' ' ? strtoull(end, (char **)&ranges, 10) : 0;
        if (length == 0 || length > *rest || offset > LLONG_MAX / 2)
            break;
        *rest -= length;
        for (unsigned long long at = 0; at < length; at += STEP)
            posix_fadvise(file, (off_t)(offset + at), (off_t)(length - at < STEP ? length - at : STEP),
                          POSIX_FADV_WILLNEED);
    }
    close(file);
}

/* Have the kernel read what the last start of this program read, as `run/ahead/` tells, without waiting for it. Each
 * start reads its note together with all that it names: while the note is in memory, so is the rest. */
static void read_ahead(const char *home, char **command)
{
    char path[PATH_MAX + 32], mark[17], *note = NULL;
    struct stat status;
    if (!mark_of(command, mark))
        return;
    snprintf(path, sizeof(path), "%s/run/ahead/%s", home, mark);
    int file = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (file < 0)
        return;
    if (!is_resident(file) && fstat(file, &status) == 0 && status.st_size < MOST_AHEAD &&
        (note = malloc((size_t)status.st_size + 2)) != NULL) {
        ssize_t length = read(file, note, (size_t)status.st_size);
        length = length < 0 ? 0 : length;
        note[length] = note[length + 1] = '\0'; /* a path that was cut has no ranges */
        unsigned long long rest = MOST_BYTES;
        const char *at = note + strlen(note) + 1;
        if (strcmp(note, "velo-ahead 1") == 0)
            while (at < note + length) {
                const char *ranges = at + strlen(at) + 1;
                ask(at, ranges, &rest);
                at = ranges + strlen(ranges) + 1;
            }
    }
    free(note);
    close(file);
}

/* Whether an entry of the environment is one of these variables. */
static int is_among(const char *entry, const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(names[i]);
        if (strncmp(entry, names[i], length) == 0 && entry[length] == '=')
            return 1;
    }
    return 0;
}

/* Become the program if everything about it is plain; return if not, or if that failed. */
static void run(char **command)
{
    static char home[PATH_MAX], note[MOST_NOTE];
    if (is_switched_on("VELO_DISABLE")) {
        execvp(command[0], command);
        return;
    }
    const char *named = value_of("VELO_HOME");
    if (named != NULL) {
        if (strlen(named) >= sizeof(home) || !is_plain(named))
            return;
        strcpy(home, named);
    } else {
        if (!user_folder(home, sizeof(home) - 8, "XDG_CACHE_HOME", ".cache"))
            return;
        strcat(home, "/velo");
    }
    static const char *const paths[] = {"VELO_MANIFEST", "VELO_SHARED"};
    for (size_t i = 0; i < sizeof(paths) / sizeof(*paths); i++)
        if (value_of(paths[i]) != NULL && !is_plain(value_of(paths[i])))
            return;
    const char *folder;
    if (!is_unconfigured() || (folder = read_note(home, note)) == NULL)
        return;
    read_ahead(home, command);
    mark_used(home, command[0]);

    size_t count = 0;
    while (environ[count] != NULL)
        count++;
    static char preload[PATH_MAX + 32];
    const char *const names[] = {"PYTHONPATH", "VELO_HOME", "NODE_OPTIONS"};
    char *values[] = {python_path(value_of("PYTHONPATH"), folder), home, NULL};
    size_t changed = 2;
    if (preload_file(folder, preload, sizeof(preload)))
        values[changed++] = node_options(value_of("NODE_OPTIONS"), preload);
    char **given = calloc(count + changed + 1, sizeof(char *));
    if (given == NULL)
        return;
    size_t at = 0;
    for (size_t i = 0; i < count; i++)
        if (!is_among(environ[i], names, changed))
            given[at++] = environ[i];
    for (size_t i = 0; i < changed; i++)
        if (values[i] == NULL || asprintf(&given[at++], "%s=%s", names[i], values[i]) < 0)
            return;
    execvpe(command[0], command, given); /* returns only if it failed: why is for the reference to say */
}

int main(int count, char **arguments)
{
    if (count > 3 && strcmp(arguments[1], "run") == 0 && strcmp(arguments[2], "--") == 0)
        run(arguments + 3);
    else if (count > 2 && strcmp(arguments[1], "run") == 0 && arguments[2][0] != '-' && arguments[2][0] != '\0')
        run(arguments + 2);
    return hand_over(count, arguments);
}
