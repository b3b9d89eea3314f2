// SPDX-License-Identifier: Apache-2.0
/*
 * slowfs: a folder seen through a network file system's eyes. Read-only; every request that the kernel cannot answer from
 * what it remembers waits a fixed time before it is passed on to the real folder.
 *
 *   slowfs --source=FOLDER --delay-us=1000 MOUNTPOINT -f -o ro,attr_timeout=3,entry_timeout=3
 *
 * Reading order: `struct request_log`, then the operations, then main. At the end (and on SIGUSR1) one line per kind of
 * request goes to stderr, so that a benchmark can print counts, which do not vary, beside times, which do.
 *
 * Two things are done on purpose. Inode numbers are those of the source (use_ino): a network file system's are stable, and
 * an accelerator that compares them must not see a new number after each mount. A file's pages stay cached between opens
 * (keep_cache), as NFS does while the modification time stands still.
 */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum kind { GETATTR, READLINK, OPEN, READ, OPENDIR, READDIR, KINDS };
static const char *const kind_names[KINDS] = {"getattr", "readlink", "open", "read", "opendir", "readdir"};

struct request_log {
    atomic_long count[KINDS];
};
static struct request_log requests;

static struct options {
    const char *source;
    long delay_us;
} options;
static int source_fd = -1;

static void request(enum kind kind)
{
    struct timespec left = {options.delay_us / 1000000, options.delay_us % 1000000 * 1000};

    atomic_fetch_add(&requests.count[kind], 1);
    while (options.delay_us && nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
}

/* FUSE paths begin with a slash; the *at calls want them relative to the source. */
static const char *relative(const char *path) { return path[1] ? path + 1 : "."; }

static int slow_getattr(const char *path, struct stat *out, struct fuse_file_info *file)
{
    int result;

    request(GETATTR);
    result = file ? fstat((int)file->fh, out) : fstatat(source_fd, relative(path), out, AT_SYMLINK_NOFOLLOW);
    return result == -1 ? -errno : 0;
}

static int slow_readlink(const char *path, char *out, size_t size)
{
    ssize_t length;

    request(READLINK);
    length = readlinkat(source_fd, relative(path), out, size - 1);
    if (length == -1)
        return -errno;
    out[length] = '\0';
    return 0;
}

static int slow_open(const char *path, struct fuse_file_info *file)
{
    int fd;

    request(OPEN);
    if ((file->flags & O_ACCMODE) != O_RDONLY)
        return -EROFS;
    fd = openat(source_fd, relative(path), O_RDONLY | O_CLOEXEC);
    if (fd == -1)
        return -errno;
    file->fh = (uint64_t)fd;
    file->keep_cache = 1;
    return 0;
}

static int slow_read(const char *path, char *out, size_t size, off_t offset, struct fuse_file_info *file)
{
    ssize_t length;

    (void)path;
    request(READ);
    length = pread((int)file->fh, out, size, offset);
    return length == -1 ? -errno : (int)length;
}

static int slow_release(const char *path, struct fuse_file_info *file)
{
    (void)path; /* closing is not waited for by the program, so it costs it nothing */
    close((int)file->fh);
    return 0;
}

static int slow_opendir(const char *path, struct fuse_file_info *file)
{
    int fd;
    DIR *folder;

    request(OPENDIR);
    fd = openat(source_fd, relative(path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd == -1)
        return -errno;
    folder = fdopendir(fd);
    if (!folder) {
        close(fd);
        return -ENOMEM;
    }
    file->fh = (uint64_t)(uintptr_t)folder;
    return 0;
}

/* The whole folder in one reply list; libfuse cuts it into requests as large as the kernel asks for. */
static int slow_readdir(const char *path, void *buffer, fuse_fill_dir_t fill, off_t offset,
                        struct fuse_file_info *file, enum fuse_readdir_flags flags)
{
    DIR *folder = (DIR *)(uintptr_t)file->fh;
    struct dirent *entry;

    (void)path, (void)offset, (void)flags;
    request(READDIR);
    rewinddir(folder);
    while ((entry = readdir(folder))) {
        struct stat known = {.st_ino = entry->d_ino, .st_mode = (mode_t)entry->d_type << 12};
        if (fill(buffer, entry->d_name, &known, 0, 0))
            break;
    }
    return 0;
}

static int slow_releasedir(const char *path, struct fuse_file_info *file)
{
    (void)path;
    closedir((DIR *)(uintptr_t)file->fh);
    return 0;
}

static void *slow_init(struct fuse_conn_info *connection, struct fuse_config *config)
{
    (void)connection;
    config->use_ino = 1;
    config->nullpath_ok = 0;
    return NULL;
}

/* Runs in a signal handler too: only snprintf of integers and write. */
static void report(int signal_number)
{
    char line[256];
    size_t used = 0;
    int kind;

    (void)signal_number;
    for (kind = 0; kind < KINDS; kind++)
        used += (size_t)snprintf(line + used, sizeof line - used, "%s=%ld%s", kind_names[kind],
                                 atomic_load(&requests.count[kind]), kind + 1 < KINDS ? " " : "\n");
    if (write(STDERR_FILENO, line, used) == -1) {
        /* nobody is listening */
    }
}

static const struct fuse_operations operations = {
    .init = slow_init,
    .getattr = slow_getattr,
    .readlink = slow_readlink,
    .open = slow_open,
    .read = slow_read,
    .release = slow_release,
    .opendir = slow_opendir,
    .readdir = slow_readdir,
    .releasedir = slow_releasedir,
};

static const struct fuse_opt option_table[] = {
    {"--source=%s", offsetof(struct options, source), 0},
    {"--delay-us=%ld", offsetof(struct options, delay_us), 0},
    FUSE_OPT_END,
};

int main(int argc, char **argv)
{
    struct fuse_args arguments = FUSE_ARGS_INIT(argc, argv);
    int status = 2;

    if (fuse_opt_parse(&arguments, &options, option_table, NULL) == -1)
        goto done;
    if (!options.source || options.delay_us < 0) {
        fprintf(stderr, "usage: slowfs --source=FOLDER --delay-us=N MOUNTPOINT [fuse options]\n");
        goto done;
    }
    source_fd = open(options.source, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (source_fd == -1) {
        fprintf(stderr, "slowfs: %s: %s\n", options.source, strerror(errno));
        goto done;
    }
    signal(SIGUSR1, report);
    status = fuse_main(arguments.argc, arguments.argv, &operations, NULL);
    report(0);
done:
    if (source_fd != -1)
        close(source_fd);
    fuse_opt_free_args(&arguments);
    return status;
}
