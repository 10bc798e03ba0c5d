// Preloaded into a process: logs its file operations below one folder, and lets the k-th fail.
//
// ZO_FILES_ROOT: the folder. zo_files_log(path) begins a log, or goes on with it, and zo_files_arm(k, error, lasting,
// reads) begins a countdown; both begin to count operations anew. Operations that go to the kernel without libc are not seen; an opened file is
// logged with its inode, which shows how it got its name.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>
#include <stdlib.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

enum { FILES = 4096 };
static char ours[FILES];  // by descriptor
static int log_descriptor = -1;
static long count, fail_at = -1;
static int fail_with, fail_on, fail_reads;

struct record {
    char kind;
    int32_t descriptor, flags, path_bytes, other_bytes;
    int64_t offset, data_bytes, inode;
} __attribute__((packed));

void zo_files_log(const char* path) {
    if (log_descriptor >= 0) syscall(SYS_close, log_descriptor);
    log_descriptor = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    count = 0;
}

void zo_files_arm(long at, int error, int lasting, int reads) {
    fail_at = at;
    fail_with = error;
    fail_on = lasting;
    fail_reads = reads;
    count = 0;
}

long zo_files_count(void) { return count; }

static int is_below(const char* path) {
    const char* root = getenv("ZO_FILES_ROOT");
    return root && strncmp(path, root, strlen(root)) == 0;
}

static int is_ours(int descriptor) { return descriptor >= 0 && descriptor < FILES && ours[descriptor]; }

// Whether the operation that is about to happen has to fail.
static int fails(int is_read) {
    if (is_read && !fail_reads) return 0;
    long number = count++;
    if (fail_at < 0 || (fail_on ? number < fail_at : number != fail_at)) return 0;
    errno = fail_with;
    return 1;
}

static void put(const void* data, size_t bytes) {
    while (bytes) {
        long written = syscall(SYS_write, log_descriptor, data, bytes);
        if (written <= 0) _exit(99);
        data = (const char*)data + written;
        bytes -= (size_t)written;
    }
}

static void note(char kind, int descriptor, int flags, const char* path, const char* other, int64_t offset,
                 const void* data, int64_t bytes, int64_t inode) {
    if (log_descriptor < 0) return;
    int error = errno;
    struct record r = {kind, descriptor, flags, path ? (int32_t)strlen(path) : 0, other ? (int32_t)strlen(other) : 0,
                       offset, data ? bytes : 0, inode};
    if (!data) r.offset = kind == 't' ? bytes : offset;
    put(&r, sizeof r);
    if (path) put(path, strlen(path));
    if (other) put(other, strlen(other));
    if (data) put(data, (size_t)bytes);
    errno = error;
}

static int opened(int descriptor, const char* path, int flags) {
    if (descriptor < 0 || descriptor >= FILES) return descriptor;
    ours[descriptor] = (char)is_below(path);
    if (ours[descriptor]) {
        struct stat about;
        int error = errno;
        int64_t inode = fstat(descriptor, &about) == 0 ? (int64_t)about.st_ino : 0;
        errno = error;
        note('o', descriptor, flags, path, NULL, 0, NULL, 0, inode);
    }
    return descriptor;
}

// Opening to read changes nothing, so it counts as a read.
#define OPEN(name)                                                                       \
    int name(const char* path, int flags, ...) {                                         \
        va_list rest;                                                                    \
        va_start(rest, flags);                                                           \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;          \
        va_end(rest);                                                                    \
        if (is_below(path) && fails(!(flags & (O_CREAT | O_WRONLY | O_RDWR)))) return -1; \
        return opened(NEXT(name)(path, flags, mode), path, flags);                       \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                                               \
    int name(int folder, const char* path, int flags, ...) {                                       \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                              \
        if (is_below(path) && fails(!(flags & (O_CREAT | O_WRONLY | O_RDWR)))) return -1;          \
        return opened(NEXT(name)(folder, path, flags, mode), path, flags);                         \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int descriptor) {
    if (is_ours(descriptor)) {
        ours[descriptor] = 0;
        note('c', descriptor, 0, NULL, NULL, 0, NULL, 0, 0);
    }
    return NEXT(close)(descriptor);
}

ssize_t read(int descriptor, void* data, size_t bytes) {
    if (is_ours(descriptor) && fails(1)) return -1;
    return NEXT(read)(descriptor, data, bytes);
}

#define PREAD(name, offset_type)                                                  \
    ssize_t name(int descriptor, void* data, size_t bytes, offset_type offset) { \
        if (is_ours(descriptor) && fails(1)) return -1;                           \
        return NEXT(name)(descriptor, data, bytes, offset);                       \
    }
PREAD(pread, off_t)
PREAD(pread64, off64_t)

ssize_t write(int descriptor, const void* data, size_t bytes) {
    if (!is_ours(descriptor)) return NEXT(write)(descriptor, data, bytes);
    if (fails(0)) return -1;
    int is_appended = (fcntl(descriptor, F_GETFL) & O_APPEND) != 0;
    off_t at = lseek(descriptor, 0, is_appended ? SEEK_END : SEEK_CUR);
    ssize_t written = NEXT(write)(descriptor, data, bytes);
    if (written > 0) note('w', descriptor, 0, NULL, NULL, at, data, written, 0);
    return written;
}

#define PWRITE(name, offset_type)                                                        \
    ssize_t name(int descriptor, const void* data, size_t bytes, offset_type offset) {  \
        if (is_ours(descriptor) && fails(0)) return -1;                                  \
        ssize_t written = NEXT(name)(descriptor, data, bytes, offset);                   \
        if (is_ours(descriptor) && written > 0) note('w', descriptor, 0, NULL, NULL, offset, data, written, 0); \
        return written;                                                                  \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define FTRUNCATE(name, offset_type)                                                 \
    int name(int descriptor, offset_type length) {                                   \
        if (is_ours(descriptor) && fails(0)) return -1;                              \
        int result = NEXT(name)(descriptor, length);                                 \
        if (is_ours(descriptor) && result == 0) note('t', descriptor, 0, NULL, NULL, 0, NULL, length, 0); \
        return result;                                                               \
    }
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define SYNC(name)                                                                       \
    int name(int descriptor) {                                                           \
        if (is_ours(descriptor) && fails(0)) return -1;                                  \
        int result = NEXT(name)(descriptor);                                             \
        if (is_ours(descriptor) && result == 0) note('s', descriptor, 0, NULL, NULL, 0, NULL, 0, 0); \
        return result;                                                                   \
    }
SYNC(fsync)
SYNC(fdatasync)

int rename(const char* from, const char* to) {
    if (is_below(to) && fails(0)) return -1;
    int result = NEXT(rename)(from, to);
    if (is_below(to) && result == 0) note('r', 0, 0, from, to, 0, NULL, 0, 0);
    return result;
}

int renameat(int a, const char* from, int b, const char* to) {
    if (is_below(to) && fails(0)) return -1;
    int result = NEXT(renameat)(a, from, b, to);
    if (is_below(to) && result == 0) note('r', 0, 0, from, to, 0, NULL, 0, 0);
    return result;
}

#define ON_PATH(name, kind, parameters, arguments)                              \
    int name parameters {                                                       \
        if (is_below(path) && fails(0)) return -1;                              \
        int result = NEXT(name) arguments;                                      \
        if (is_below(path) && result == 0) note(kind, 0, 0, path, NULL, 0, NULL, 0, 0); \
        return result;                                                          \
    }
ON_PATH(unlink, 'u', (const char* path), (path))
ON_PATH(rmdir, 'u', (const char* path), (path))
ON_PATH(mkdir, 'm', (const char* path, mode_t mode), (path, mode))

int unlinkat(int folder, const char* path, int flags) {
    if (is_below(path) && fails(0)) return -1;
    int result = NEXT(unlinkat)(folder, path, flags);
    if (is_below(path) && result == 0) note('u', 0, 0, path, NULL, 0, NULL, 0, 0);
    return result;
}

int fchmod(int descriptor, mode_t mode) {
    if (is_ours(descriptor) && fails(0)) return -1;
    return NEXT(fchmod)(descriptor, mode);
}
