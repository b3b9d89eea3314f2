/* SPDX-License-Identifier: Apache-2.0 */
/* Times of a file as Velo writes them everywhere: nanoseconds since 1970, which may be negative. */
#ifndef VELO_STAMPS_H
#define VELO_STAMPS_H

#include <sys/stat.h>
#include <time.h>

#ifdef __APPLE__
#define MTIME(status) ((status).st_mtimespec)
#define CTIME(status) ((status).st_ctimespec)
#else
#define MTIME(status) ((status).st_mtim)
#define CTIME(status) ((status).st_ctim)
#endif

static inline long long nanoseconds(struct timespec when)
{
    return (long long)when.tv_sec * 1000000000LL + when.tv_nsec;
}

#endif
