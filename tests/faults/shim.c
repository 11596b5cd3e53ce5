/* Faults at the n-th I/O call under one folder, for LD_PRELOAD.
 *
 * Counts the calls whose path (or whose descriptor's path) begins with a prefix and whose kind is in a mask; at the
 * n-th one (sticky: from there on) does what was asked. Native writers (safetensors' in Rust, torch's in C++) are
 * caught as Python's own are: all of them go through these functions of libc.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, RENAME = 32, MKDIR = 64, REMOVE = 128,
       CHMOD = 256, TRUNCATE = 512, LISTDIR = 1024, CLOSE = 2048, MAP = 4096 };
enum { COUNT, FAIL, SHORT, LOSE, KILL, SIGNAL };

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define TRACE (1 << 20)

static char prefix[PATH_MAX];
static size_t prefix_length;
static int armed, mask, action, number, sticky, taken;
static long at, count;
static char trace[TRACE];
static size_t traced;

void fault_arm(const char *folder, int mask_, int action_, long at_, int number_, int sticky_) {
    armed = 0;
    snprintf(prefix, sizeof prefix, "%s", folder);
    prefix_length = strlen(prefix);
    mask = mask_, action = action_, at = at_, number = number_, sticky = sticky_, count = 0, traced = 0, trace[0] = 0;
    armed = prefix_length > 0;
}

long fault_disarm(void) { armed = 0; return count; }

const char *fault_trace(void) { return trace; }

static long variable(const char *name) { const char *value = getenv(name); return value ? atol(value) : 0; }

__attribute__((constructor)) static void from_environment(void) {
    const char *folder = getenv("FAULT_FOLDER");
    if (folder)
        fault_arm(folder, variable("FAULT_MASK"), variable("FAULT_ACTION"), variable("FAULT_AT"),
                  variable("FAULT_NUMBER"), variable("FAULT_STICKY"));
}

static const char *name_of(int kind) {
    switch (kind) {
    case OPEN: return "open"; case CREATE: return "create"; case READ: return "read"; case WRITE: return "write";
    case SYNC: return "sync"; case RENAME: return "rename"; case MKDIR: return "mkdir"; case REMOVE: return "remove";
    case CHMOD: return "chmod"; case TRUNCATE: return "truncate"; case LISTDIR: return "listdir";
    case CLOSE: return "close"; default: return "map";
    }
}

/* What to do at this call: 0 nothing, else the action. */
static int due(int kind, const char *path) {
    if (!armed || !(mask & kind) || strncmp(path, prefix, prefix_length)) return 0;
    while (__sync_lock_test_and_set(&taken, 1)) sched_yield(); /* a run and its writer: one after the other */
    long now = ++count;
    if (traced + strlen(path) + 16 < TRACE)
        traced += snprintf(trace + traced, TRACE - traced, "%s %s\n", name_of(kind), path + prefix_length);
    __sync_lock_release(&taken);
    if (action == COUNT || !at || !(sticky ? now >= at : now == at)) return 0;
    if (action == KILL) { kill(getpid(), SIGKILL); pause(); }
    if (action == SIGNAL) { if (now <= at + sticky) kill(getpid(), number); return 0; } /* sticky: how many more times */
    return action;
}

static int fails(int kind, const char *path) {
    if (due(kind, path) != FAIL) return 0;
    errno = number;
    return 1;
}

static const char *of_descriptor(int fd, char *out) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, out, PATH_MAX - 1);
    out[length > 0 ? length : 0] = 0;
    return out;
}

static const char *absolute(int folder, const char *path, char *out) {
    if (!armed || path[0] == '/') return path;
    if (folder == AT_FDCWD) { if (!getcwd(out, PATH_MAX)) out[0] = 0; }
    else of_descriptor(folder, out);
    size_t length = strlen(out);
    snprintf(out + length, PATH_MAX - length, "/%s", path);
    return out;
}

#define ON_PATH(kind, folder, path, result) \
    do { char room[2 * PATH_MAX]; if (armed && fails(kind, absolute(folder, path, room))) return result; } while (0)
#define ON_DESCRIPTOR(kind, fd, result) \
    do { char room[2 * PATH_MAX]; if (armed && fails(kind, of_descriptor(fd, room))) return result; } while (0)

static int opens(int flags) { return flags & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC) ? CREATE : OPEN; }

#define MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); }

int open(const char *path, int flags, ...) {
    REAL(open); MODE(flags); ON_PATH(opens(flags), AT_FDCWD, path, -1); return real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
    REAL(open64); MODE(flags); ON_PATH(opens(flags), AT_FDCWD, path, -1); return real(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
    REAL(openat); MODE(flags); ON_PATH(opens(flags), folder, path, -1); return real(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
    REAL(openat64); MODE(flags); ON_PATH(opens(flags), folder, path, -1); return real(folder, path, flags, mode);
}
FILE *fopen(const char *path, const char *how) {
    REAL(fopen); ON_PATH(strpbrk(how, "wa+") ? CREATE : OPEN, AT_FDCWD, path, NULL); return real(path, how);
}
FILE *fopen64(const char *path, const char *how) {
    REAL(fopen64); ON_PATH(strpbrk(how, "wa+") ? CREATE : OPEN, AT_FDCWD, path, NULL); return real(path, how);
}
DIR *opendir(const char *path) { REAL(opendir); ON_PATH(LISTDIR, AT_FDCWD, path, NULL); return real(path); }
DIR *fdopendir(int fd) { REAL(fdopendir); ON_DESCRIPTOR(LISTDIR, fd, NULL); return real(fd); }

/* Writes may also be short, or be told of as done and lost: zeros reach the file instead. */
#define WRITES(call_short, call_lost) \
    if (armed) { \
        char room[2 * PATH_MAX]; \
        int what = due(WRITE, of_descriptor(fd, room)); \
        if (what == FAIL) { errno = number; return -1; } \
        if (what == SHORT && size > 1) return call_short; \
        if (what == LOSE) { void *zeros = calloc(1, size ? size : 1); ssize_t done = call_lost; free(zeros); return done; } \
    }

ssize_t write(int fd, const void *from, size_t size) {
    REAL(write); WRITES(real(fd, from, (size + 1) / 2), real(fd, zeros, size)); return real(fd, from, size);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t where) {
    REAL(pwrite); WRITES(real(fd, from, (size + 1) / 2, where), real(fd, zeros, size, where));
    return real(fd, from, size, where);
}
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t where) {
    REAL(pwrite64); WRITES(real(fd, from, (size + 1) / 2, where), real(fd, zeros, size, where));
    return real(fd, from, size, where);
}
ssize_t writev(int fd, const struct iovec *parts, int many) {
    __typeof__(&write) one = (__typeof__(&write))dlsym(RTLD_NEXT, "write");
    size_t size = many > 0 ? parts[0].iov_len : 0;
    REAL(writev); WRITES(one(fd, parts[0].iov_base, (size + 1) / 2), one(fd, zeros, size));
    return real(fd, parts, many);
}
ssize_t read(int fd, void *to, size_t size) { REAL(read); ON_DESCRIPTOR(READ, fd, -1); return real(fd, to, size); }
ssize_t pread64(int fd, void *to, size_t size, off64_t where) {
    REAL(pread64); ON_DESCRIPTOR(READ, fd, -1); return real(fd, to, size, where);
}
int fsync(int fd) { REAL(fsync); ON_DESCRIPTOR(SYNC, fd, -1); return real(fd); }
int fdatasync(int fd) { REAL(fdatasync); ON_DESCRIPTOR(SYNC, fd, -1); return real(fd); }
int rename(const char *from, const char *to) { REAL(rename); ON_PATH(RENAME, AT_FDCWD, from, -1); return real(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    REAL(renameat); ON_PATH(RENAME, a, from, -1); return real(a, from, b, to);
}
int mkdir(const char *path, mode_t mode) { REAL(mkdir); ON_PATH(MKDIR, AT_FDCWD, path, -1); return real(path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat); ON_PATH(MKDIR, folder, path, -1); return real(folder, path, mode);
}
int unlink(const char *path) { REAL(unlink); ON_PATH(REMOVE, AT_FDCWD, path, -1); return real(path); }
int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat); ON_PATH(REMOVE, folder, path, -1); return real(folder, path, flags);
}
int rmdir(const char *path) { REAL(rmdir); ON_PATH(REMOVE, AT_FDCWD, path, -1); return real(path); }
int chmod(const char *path, mode_t mode) { REAL(chmod); ON_PATH(CHMOD, AT_FDCWD, path, -1); return real(path, mode); }
int fchmod(int fd, mode_t mode) { REAL(fchmod); ON_DESCRIPTOR(CHMOD, fd, -1); return real(fd, mode); }
int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REAL(fchmodat); ON_PATH(CHMOD, folder, path, -1); return real(folder, path, mode, flags);
}
int truncate64(const char *path, off64_t size) {
    REAL(truncate64); ON_PATH(TRUNCATE, AT_FDCWD, path, -1); return real(path, size);
}
int ftruncate64(int fd, off64_t size) { REAL(ftruncate64); ON_DESCRIPTOR(TRUNCATE, fd, -1); return real(fd, size); }
int ftruncate(int fd, off_t size) { REAL(ftruncate); ON_DESCRIPTOR(TRUNCATE, fd, -1); return real(fd, size); }
int close(int fd) { /* as the kernel does: of a file that was written; the descriptor is gone, whatever is said */
    REAL(close);
    char room[2 * PATH_MAX];
    if (armed && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY && fails(CLOSE, of_descriptor(fd, room))) { real(fd); errno = number; return -1; }
    return real(fd);
}
void *mmap64(void *where, size_t size, int protection, int flags, int fd, off64_t from) {
    REAL(mmap64);
    if (fd >= 0) ON_DESCRIPTOR(MAP, fd, MAP_FAILED);
    return real(where, size, protection, flags, fd, from);
}
