// SPDX-License-Identifier: Apache-2.0
/* What the crash tests preload between a program and its disk: it counts, records and spoils file operations.

   Nothing happens before `arm`, and then only to what lies below one folder. Every operation there has a class;
   those of the armed classes are counted from 1, and at the armed number the power is cut, the process is
   killed, or the operation fails. The surprise: a write that is cut, killed or fails is done by half first when
   the seed is odd, because that is what disks do.

   Reading order: the plan, `arm`, `strike`, the record, the wrappers, `cut_power`. System calls are made
   directly, in their `at` forms, which every architecture has. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define WRAPPER __attribute__((visibility("default")))

/* faults.py and replay.py have the same numbers. */
enum { CREATE = 1, WRITE = 2, FLUSH = 4, NAME = 8, MODE = 16 };
enum { NOTHING, CUT, KILL, FAIL };
enum { OP_CREATE, OP_WRITE, OP_WRITE_THROUGH, OP_TRUNCATE, OP_FLUSH, OP_FLUSH_FAILED, OP_RENAME, OP_MKDIR,
       OP_UNLINK, OP_RMDIR, OP_MODE, OP_SAID, OP_EXCHANGE, OP_LINK };

static struct {
    char root[PATH_MAX];
    size_t root_length;
    int classes, action, error, sticky, record, said;
    long at, count;
    unsigned seed;
} plan;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

int cut_power(const char *root, unsigned seed);

/* `record`: a descriptor for the record of all operations, or -1. `said`: the descriptor on which the program
   makes promises; they take their place in the record. */
WRAPPER void arm(const char *root, int classes, int action, long at, int error, int sticky, unsigned seed,
                 int record, int said) {
    plan.classes = classes;
    plan.action = action;
    plan.at = at;
    plan.error = error;
    plan.sticky = sticky;
    plan.seed = seed;
    plan.record = record;
    plan.said = said;
    plan.count = 0;
    snprintf(plan.root, sizeof plan.root, "%s", root);
    plan.root_length = strlen(plan.root);
}

WRAPPER long operations(void) { return plan.count; }

/* -- which operations ------------------------------------------------------------------------------------- */

static int is_below(const char *path) {
    return plan.root_length && !strncmp(path, plan.root, plan.root_length) &&
           (path[plan.root_length] == '/' || !path[plan.root_length]);
}

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

/* The absolute path, and whether it is ours. */
static int resolve(int folder, const char *name, char *path) {
    if (!plan.root_length)
        return 0;
    if (*name == '/') {
        snprintf(path, PATH_MAX, "%s", name);
        return is_below(path);
    }
    if (folder == AT_FDCWD) {
        if (syscall(SYS_getcwd, path, PATH_MAX) < 0)
            return 0;
    } else if (!path_of(folder, path)) {
        return 0;
    }
    size_t length = strlen(path);
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return is_below(path);
}

static int is_ours(int descriptor, char *path) {
    return plan.root_length && path_of(descriptor, path) && is_below(path);
}

/* -- what happens to them --------------------------------------------------------------------------------- */

/* Counts one operation; 0 to go on, 1 if it is to fail. `half` does the first half of it. */
static int strike(int class, int descriptor, const void *data, size_t length, off_t offset) {
    if (!(plan.classes & class))
        return 0;
    long count = ++plan.count;
    if (plan.action == NOTHING || count < plan.at || (count > plan.at && !plan.sticky))
        return 0;
    if (class == WRITE && length > 1 && plan.seed & 1) {
        if (offset < 0)
            syscall(SYS_write, descriptor, data, length / 2);
        else
            syscall(SYS_pwrite64, descriptor, data, length / 2, offset);
    }
    if (plan.action == FAIL) {
        errno = plan.error;
        return 1;
    }
    if (plan.action == CUT)
        cut_power(plan.root, plan.seed);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

/* -- the record ------------------------------------------------------------------------------------------- */

struct note {
    uint32_t operation, first, second, mode;
    uint64_t inode, offset, length;
};

static void note(int operation, uint64_t inode, const char *first, const char *second, uint64_t offset,
                 const void *data, uint64_t length, int mode) {
    if (plan.record < 0)
        return;
    struct note head = {operation, strlen(first), strlen(second), mode, inode, offset, length};
    struct iovec parts[] = {{&head, sizeof head},
                            {(void *)first, head.first},
                            {(void *)second, head.second},
                            {(void *)data, data ? length : 0}};
    if (syscall(SYS_writev, plan.record, parts, 4) < 0)
        abort();
}

static uint64_t inode_of(int descriptor) {
    struct stat status;
    return fstat(descriptor, &status) ? 0 : status.st_ino;
}

/* -- wrappers --------------------------------------------------------------------------------------------- */

static int wrapped_open(int folder, const char *name, int flags, int mode) {
    char path[PATH_MAX];
    if (!(flags & (O_CREAT | O_TRUNC)) || !resolve(folder, name, path))
        return syscall(SYS_openat, folder, name, flags, mode);
    pthread_mutex_lock(&lock);
    int was_there = !faccessat(folder, name, F_OK, AT_EACCESS), result = -1;
    if (!strike(was_there ? WRITE : CREATE, -1, NULL, 0, 0)) {
        result = syscall(SYS_openat, folder, name, flags, mode);
        if (result >= 0 && !was_there)
            note(OP_CREATE, inode_of(result), path, "", 0, NULL, 0, mode);
        else if (result >= 0 && flags & O_TRUNC)
            note(OP_TRUNCATE, inode_of(result), "", "", 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

#define OPENS(name)                                                                                          \
    WRAPPER int name(const char *path, int flags, ...) {                                                     \
        va_list rest;                                                                                        \
        va_start(rest, flags);                                                                               \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                    \
        va_end(rest);                                                                                        \
        return wrapped_open(AT_FDCWD, path, flags, mode);                                                    \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                                                       \
    WRAPPER int name(int folder, const char *path, int flags, ...) {                                         \
        va_list rest;                                                                                        \
        va_start(rest, flags);                                                                               \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                    \
        va_end(rest);                                                                                        \
        return wrapped_open(folder, path, flags, mode);                                                      \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

/* `offset` is -1 for a write at the descriptor's own place. */
static ssize_t wrapped_write(int descriptor, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    int says = plan.root_length && descriptor == plan.said;
    if (!says && !is_ours(descriptor, path)) {
        if (offset < 0)
            return syscall(SYS_write, descriptor, data, length);
        return syscall(SYS_pwrite64, descriptor, data, length, offset);
    }
    pthread_mutex_lock(&lock);
    ssize_t result = -1;
    if (says) {
        note(OP_SAID, 0, "", "", 0, data, length, 0);
        result = syscall(SYS_write, descriptor, data, length);
    } else if (!strike(WRITE, descriptor, data, length, offset)) {
        int flags = fcntl(descriptor, F_GETFL);
        off_t place = offset;
        if (offset < 0)
            place = lseek(descriptor, 0, flags & O_APPEND ? SEEK_END : SEEK_CUR);
        result = offset < 0 ? syscall(SYS_write, descriptor, data, length)
                            : syscall(SYS_pwrite64, descriptor, data, length, offset);
        if (result > 0)
            note(flags & O_DSYNC ? OP_WRITE_THROUGH : OP_WRITE, inode_of(descriptor), "", "", place, data,
                 result, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}

WRAPPER ssize_t write(int descriptor, const void *data, size_t length) {
    return wrapped_write(descriptor, data, length, -1);
}
WRAPPER ssize_t pwrite(int descriptor, const void *data, size_t length, off_t offset) {
    return wrapped_write(descriptor, data, length, offset);
}
WRAPPER ssize_t pwrite64(int descriptor, const void *data, size_t length, off_t offset) {
    return wrapped_write(descriptor, data, length, offset);
}

static ssize_t wrapped_writev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    ssize_t total = 0;
    for (int i = 0; i < count; i++) {
        ssize_t done = wrapped_write(descriptor, parts[i].iov_base, parts[i].iov_len,
                                     offset < 0 ? -1 : offset + total);
        if (done < 0)
            return total ? total : done;
        total += done;
        if ((size_t)done < parts[i].iov_len)
            break;
    }
    return total;
}

WRAPPER ssize_t writev(int descriptor, const struct iovec *parts, int count) {
    return wrapped_writev(descriptor, parts, count, -1);
}
WRAPPER ssize_t pwritev(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return wrapped_writev(descriptor, parts, count, offset);
}
WRAPPER ssize_t pwritev64(int descriptor, const struct iovec *parts, int count, off_t offset) {
    return wrapped_writev(descriptor, parts, count, offset);
}

/* In a record every byte has to pass through `write`. */
WRAPPER ssize_t copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset, size_t length,
                                unsigned flags) {
    char path[PATH_MAX];
    if (!is_ours(to, path))
        return syscall(SYS_copy_file_range, from, from_offset, to, to_offset, length, flags);
    ssize_t result = -1;
    pthread_mutex_lock(&lock);
    if (plan.record >= 0)
        errno = EOPNOTSUPP;
    else if (!strike(WRITE, to, NULL, 0, 0))
        result = syscall(SYS_copy_file_range, from, from_offset, to, to_offset, length, flags);
    pthread_mutex_unlock(&lock);
    return result;
}

static int wrapped_truncate(int descriptor, off_t length) {
    char path[PATH_MAX];
    if (!is_ours(descriptor, path))
        return syscall(SYS_ftruncate, descriptor, length);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(WRITE, -1, NULL, 0, 0)) {
        result = syscall(SYS_ftruncate, descriptor, length);
        if (!result)
            note(OP_TRUNCATE, inode_of(descriptor), "", "", length, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int ftruncate(int descriptor, off_t length) { return wrapped_truncate(descriptor, length); }
WRAPPER int ftruncate64(int descriptor, off_t length) { return wrapped_truncate(descriptor, length); }

static int wrapped_flush(int descriptor, long number) {
    char path[PATH_MAX];
    if (!is_ours(descriptor, path))
        return syscall(number, descriptor);
    pthread_mutex_lock(&lock);
    int result = -1, fails = strike(FLUSH, -1, NULL, 0, 0);
    if (!fails)
        result = syscall(number, descriptor);
    if (fails || !result)
        note(fails ? OP_FLUSH_FAILED : OP_FLUSH, inode_of(descriptor), path, "", 0, NULL, 0, 0);
    if (fails)
        errno = plan.error;
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int fsync(int descriptor) { return wrapped_flush(descriptor, SYS_fsync); }
WRAPPER int fdatasync(int descriptor) { return wrapped_flush(descriptor, SYS_fdatasync); }

WRAPPER int renameat2(int from_folder, const char *from, int to_folder, const char *to, unsigned flags) {
    char first[PATH_MAX], second[PATH_MAX];
    if (!resolve(to_folder, to, second))
        return syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
    resolve(from_folder, from, first);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(NAME, -1, NULL, 0, 0)) {
        result = syscall(SYS_renameat2, from_folder, from, to_folder, to, flags);
        if (!result)
            note(flags & RENAME_EXCHANGE ? OP_EXCHANGE : OP_RENAME, 0, first, second, 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    return renameat2(from_folder, from, to_folder, to, 0);
}
WRAPPER int rename(const char *from, const char *to) { return renameat(AT_FDCWD, from, AT_FDCWD, to); }

WRAPPER int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags) {
    char first[PATH_MAX], second[PATH_MAX];
    if (!resolve(to_folder, to, second))
        return syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
    resolve(from_folder, from, first);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(CREATE, -1, NULL, 0, 0)) {
        result = syscall(SYS_linkat, from_folder, from, to_folder, to, flags);
        if (!result)
            note(OP_LINK, 0, first, second, 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int link(const char *from, const char *to) { return linkat(AT_FDCWD, from, AT_FDCWD, to, 0); }

WRAPPER int mkdirat(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    if (!resolve(folder, name, path))
        return syscall(SYS_mkdirat, folder, name, mode);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(CREATE, -1, NULL, 0, 0)) {
        result = syscall(SYS_mkdirat, folder, name, mode);
        if (!result)
            note(OP_MKDIR, 0, path, "", 0, NULL, 0, mode);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

WRAPPER int unlinkat(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    if (!resolve(folder, name, path))
        return syscall(SYS_unlinkat, folder, name, flags);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(NAME, -1, NULL, 0, 0)) {
        result = syscall(SYS_unlinkat, folder, name, flags);
        if (!result)
            note(flags & AT_REMOVEDIR ? OP_RMDIR : OP_UNLINK, 0, path, "", 0, NULL, 0, 0);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
WRAPPER int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

static int wrapped_mode(int folder, const char *name, int descriptor, mode_t mode) {
    char path[PATH_MAX];
    if (name ? !resolve(folder, name, path) : !is_ours(descriptor, path))
        return name ? syscall(SYS_fchmodat, folder, name, mode) : syscall(SYS_fchmod, descriptor, mode);
    pthread_mutex_lock(&lock);
    int result = -1;
    if (!strike(MODE, -1, NULL, 0, 0)) {
        result = name ? syscall(SYS_fchmodat, folder, name, mode) : syscall(SYS_fchmod, descriptor, mode);
        if (!result)
            note(OP_MODE, 0, path, "", 0, NULL, 0, mode);
    }
    pthread_mutex_unlock(&lock);
    return result;
}
WRAPPER int chmod(const char *name, mode_t mode) { return wrapped_mode(AT_FDCWD, name, -1, mode); }
WRAPPER int fchmod(int descriptor, mode_t mode) { return wrapped_mode(-1, NULL, descriptor, mode); }

/* -- the power --------------------------------------------------------------------------------------------- */

static unsigned chance;

static unsigned toss(void) {
    chance = chance * 1103515245u + 12345u;
    return chance >> 16;
}

static int write_back_some(const char *path, const struct stat *status, int type, struct FTW *where) {
    (void)where;
    if (type != FTW_F)
        return 0;
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    for (off_t at = 0; file >= 0 && at < status->st_size; at += 4096)
        if (toss() & 1)
            sync_file_range(file, at, 4096,
                            SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER);
    if (file >= 0)
        close(file);
    return 0;
}

/* Cut the power of the file system at `root`: nothing that is only in memory will ever be written. What the disk
   had taken by then depends on the seed: only what was flushed; a random half of all pages; a commit of the
   journal (names and sizes) without the data that belongs to it; or both. Returns 0, or -1 with errno. */
WRAPPER int cut_power(const char *root, unsigned seed) {
    unsigned how = 2; /* EXT4_GOING_FLAGS_NOLOGFLUSH, and the same on XFS and F2FS */
    chance = seed;
    unsigned disk = toss() % 4;
    if (disk & 1)
        nftw(root, write_back_some, 16, FTW_PHYS | FTW_MOUNT);
    int folder = syscall(SYS_openat, AT_FDCWD, root, O_RDONLY | O_CLOEXEC);
    if (folder < 0)
        return -1;
    if (disk & 2) { /* Flushing a file that nobody wrote to commits the journal of ext4, and no data of others. */
        int file = syscall(SYS_openat, folder, ".journal", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (file >= 0) {
            syscall(SYS_write, file, &seed, sizeof seed);
            syscall(SYS_fsync, file);
            close(file);
        }
    }
    int result = ioctl(folder, _IOR('X', 125, uint32_t), &how);
    close(folder);
    return result;
}
