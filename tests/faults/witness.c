/* Loaded with LD_PRELOAD: sees what a program does to the files below one folder, and can make it fail.
 *
 * WITNESS_FOLDER  the folder; everything elsewhere passes untouched
 * WITNESS_LOG     gets every change and every flush with its data, in the order in which they happened
 *                 (tests/faults/forgetful_disk.py reads it)
 * WITNESS_FAULTS  a file that may be changed at any time, with what shall go wrong: `struct faults`
 *
 * A call and its record are one under a lock, so the log is a true history. The index of SQLite's journal (-shm) is
 * shared memory that is made anew after a power cut: it is left out.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CREATE = 1, WRITE, TRUNCATE, SYNC, SYNC_FAILED, RENAME, UNLINK, SYNC_FOLDER, MARK, LINK, GROW, SEEN };
enum { FDS = 65536 };

struct record {
    uint32_t op, length;
    uint64_t file, offset;
};
struct faults {
    int32_t sync_errno;  /* of every flush */
    int32_t write_errno; /* of every write; EROFS: of whatever changes a name or a length, too */
    int32_t sync_ms;     /* that every flush takes */
    int32_t syncs_left;  /* flushes that still succeed before the first of these takes effect */
    int32_t read_errno;  /* of every read that touches these bytes of this file, whatever its name */
    int32_t room_errno;  /* of whatever grows by more than there is room for */
    uint64_t read_file, read_from, read_to;
    int64_t room; /* bytes, for everything below the folder */
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[4096];
static size_t folder_length;
static int log_fd = -1;
static volatile struct faults *faults;
static struct { uint64_t file; char *folder; } open_files[FDS];

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

__attribute__((constructor)) static void start(void) {
    const char *value = getenv("WITNESS_FOLDER");
    if (!value || !realpath(value, folder)) return;
    folder_length = strlen(folder);
    if ((value = getenv("WITNESS_LOG")))
        log_fd = (int)syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if ((value = getenv("WITNESS_FAULTS"))) {
        int fd = (int)syscall(SYS_openat, AT_FDCWD, value, O_RDWR | O_CLOEXEC, 0);
        if (fd >= 0) {
            void *map = mmap(0, sizeof *faults, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            if (map != MAP_FAILED) faults = map;
            syscall(SYS_close, fd);
        }
    }
}

static void put(uint32_t op, uint64_t file, uint64_t offset, const void *data, size_t length) {
    if (log_fd < 0) return;
    struct record record = {op, (uint32_t)length, file, offset};
    char *whole = malloc(sizeof record + length);
    memcpy(whole, &record, sizeof record);
    memcpy(whole + sizeof record, data, length);
    for (size_t done = 0; done < sizeof record + length;) {
        ssize_t n = syscall(SYS_write, log_fd, whole + done, sizeof record + length - done);
        if (n <= 0) abort(); /* a history with a hole would prove nothing */
        done += (size_t)n;
    }
    free(whole);
}

static int below(const char *path, char *full) {
    if (!folder_length || !path) return 0;
    char parent[4096];
    const char *slash = strrchr(path, '/');
    if (!slash) {
        if (!getcwd(parent, sizeof parent)) return 0;
        snprintf(full, 8192, "%s/%s", parent, path);
    } else {
        char start[4096];
        snprintf(start, sizeof start, "%.*s", (int)(slash - path), path);
        if (!realpath(*start ? start : "/", parent)) return 0;
        snprintf(full, 8192, "%s/%s", parent, slash + 1);
    }
    size_t length = strlen(full);
    if (length > 4 && !strcmp(full + length - 4, "-shm")) return 0;
    return !strncmp(full, folder, folder_length) && (full[folder_length] == '/' || !full[folder_length]);
}

static int is_read_only(void) { return faults && faults->write_errno == EROFS; }

static int refuse(int number) {
    errno = number;
    return -1;
}

/* Takes room, or gives it back: 0, or the error. */
static int grow_by(int64_t bytes) {
    if (!faults || !faults->room_errno || !bytes) return 0;
    if (__sync_sub_and_fetch(&faults->room, bytes) >= 0 || bytes < 0) return 0;
    __sync_add_and_fetch(&faults->room, bytes);
    return faults->room_errno;
}

static int64_t length_of(int fd) {
    struct stat now;
    return fstat(fd, &now) ? 0 : now.st_size;
}

static int64_t length_of_last(const char *path) {
    struct stat now;
    return !lstat(path, &now) && S_ISREG(now.st_mode) && now.st_nlink == 1 ? now.st_size : 0;
}

void witness_mark(const char *text) {
    pthread_mutex_lock(&lock);
    put(MARK, 0, 0, text, strlen(text));
    pthread_mutex_unlock(&lock);
}

static int open_below(const char *path, int flags, mode_t mode) {
    char full[8192];
    if (!below(path, full)) return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat before, now;
    int was_there = !stat(full, &before);
    if (is_read_only() && ((flags & O_ACCMODE) != O_RDONLY || (flags & O_TRUNC) || (!was_there && flags & O_CREAT))) {
        pthread_mutex_unlock(&lock);
        return refuse(EROFS);
    }
    if (was_there && (flags & O_TRUNC)) grow_by(-(int64_t)before.st_size);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    int failure = errno;
    if (fd >= 0 && fd < FDS && !fstat(fd, &now)) {
        free(open_files[fd].folder);
        open_files[fd].folder = S_ISDIR(now.st_mode) ? strdup(full) : 0;
        open_files[fd].file = S_ISREG(now.st_mode) ? now.st_ino : 0;
        if (S_ISREG(now.st_mode)) {
            put(was_there ? SEEN : CREATE, now.st_ino, 0, full, strlen(full));
            if (was_there && (flags & O_TRUNC)) put(TRUNCATE, now.st_ino, 0, "", 0);
        }
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return fd;
}

#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            mode = (mode_t)va_arg(rest, int); \
            va_end(rest); \
        } \
        return open_below(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)
int __open_2(const char *path, int flags) { return open_below(path, flags, 0); }
int __open64_2(const char *path, int flags) { return open_below(path, flags, 0); }

int close(int fd) {
    if (fd >= 0 && fd < FDS && (open_files[fd].file || open_files[fd].folder)) {
        pthread_mutex_lock(&lock);
        free(open_files[fd].folder);
        open_files[fd].folder = 0;
        open_files[fd].file = 0;
        pthread_mutex_unlock(&lock);
    }
    return (int)syscall(SYS_close, fd);
}

static int is_ours(int fd) { return fd >= 0 && fd < FDS && open_files[fd].file; }

static ssize_t write_below(int fd, const void *data, size_t length, off_t offset, int at) {
    if (!is_ours(fd)) return at ? syscall(SYS_pwrite64, fd, data, length, offset) : syscall(SYS_write, fd, data, length);
    if (faults && faults->write_errno) {
        errno = faults->write_errno;
        return -1;
    }
    pthread_mutex_lock(&lock);
    if (!at) offset = (off_t)syscall(SYS_lseek, fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
    int64_t more = offset + (int64_t)length - length_of(fd);
    int no_room = grow_by(more > 0 ? more : 0);
    if (no_room) {
        pthread_mutex_unlock(&lock);
        return refuse(no_room);
    }
    ssize_t n = at ? syscall(SYS_pwrite64, fd, data, length, offset) : syscall(SYS_write, fd, data, length);
    int failure = errno;
    if (n > 0) put(WRITE, open_files[fd].file, (uint64_t)offset, data, (size_t)n);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return n;
}
ssize_t write(int fd, const void *data, size_t length) { return write_below(fd, data, length, 0, 0); }
ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return write_below(fd, data, length, at, 1); }
ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) { return write_below(fd, data, length, at, 1); }

#define READ(name, number, arguments, offset, ...) \
    ssize_t name arguments { \
        if (is_ours(fd) && faults && faults->read_errno && open_files[fd].file == faults->read_file) { \
            uint64_t from = (uint64_t)(offset); \
            if (from < faults->read_to && from + length > faults->read_from) return refuse(faults->read_errno); \
        } \
        return syscall(number, __VA_ARGS__); \
    }
READ(read, SYS_read, (int fd, void *data, size_t length), syscall(SYS_lseek, fd, 0, SEEK_CUR), fd, data, length)
READ(pread, SYS_pread64, (int fd, void *data, size_t length, off_t at), at, fd, data, length, at)
READ(pread64, SYS_pread64, (int fd, void *data, size_t length, off64_t at), at, fd, data, length, at)

static int truncate_below(int fd, off_t size) {
    if (!is_ours(fd)) return (int)syscall(SYS_ftruncate, fd, size);
    if (is_read_only()) return refuse(EROFS);
    pthread_mutex_lock(&lock);
    int64_t less = length_of(fd) - size;
    grow_by(less > 0 ? -less : 0);
    int result = (int)syscall(SYS_ftruncate, fd, size), failure = errno;
    if (!result) put(TRUNCATE, open_files[fd].file, (uint64_t)size, "", 0);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}
static int truncate_named(const char *path, off_t size) {
    char full[8192];
    if (!below(path, full)) return (int)syscall(SYS_truncate, path, size);
    if (is_read_only()) return refuse(EROFS);
    pthread_mutex_lock(&lock);
    struct stat before = {0};
    stat(full, &before);
    int result = (int)syscall(SYS_truncate, path, size), failure = errno;
    if (!result && before.st_size > size) grow_by(size - before.st_size);
    if (!result) put(TRUNCATE, before.st_ino, (uint64_t)size, "", 0);
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}
int truncate(const char *path, off_t size) { return truncate_named(path, size); }
int truncate64(const char *path, off64_t size) { return truncate_named(path, size); }
int ftruncate(int fd, off_t size) { return truncate_below(fd, size); }
int ftruncate64(int fd, off64_t size) { return truncate_below(fd, size); }

static int grow_below(int fd, off_t offset, off_t length) {
    pthread_mutex_lock(&lock);
    int64_t more = is_ours(fd) ? offset + length - length_of(fd) : 0;
    int result = is_ours(fd) && is_read_only() ? EROFS : grow_by(more > 0 ? more : 0);
    if (!result) result = syscall(SYS_fallocate, fd, 0, offset, length) ? errno : 0;
    if (!result && is_ours(fd)) put(GROW, open_files[fd].file, (uint64_t)(offset + length), "", 0);
    pthread_mutex_unlock(&lock);
    return result;
}
int posix_fallocate(int fd, off_t offset, off_t length) { return grow_below(fd, offset, length); }
int posix_fallocate64(int fd, off64_t offset, off64_t length) { return grow_below(fd, offset, length); }

static int sync_below(int fd, long number) {
    if (fd < 0 || fd >= FDS || !(open_files[fd].file || open_files[fd].folder)) return (int)syscall(number, fd);
    if (faults && faults->sync_ms) {
        struct timespec pause = {faults->sync_ms / 1000, faults->sync_ms % 1000 * 1000000L};
        nanosleep(&pause, 0);
    }
    pthread_mutex_lock(&lock);
    int result = 0, failure = 0;
    if (faults && faults->sync_errno && faults->syncs_left-- <= 0) {
        faults->syncs_left = 0;
        result = -1;
        failure = faults->sync_errno;
        if (open_files[fd].file) put(SYNC_FAILED, open_files[fd].file, 0, "", 0);
    } else if (open_files[fd].file) {
        put(SYNC, open_files[fd].file, 0, "", 0); /* the true flush costs time and would prove nothing here */
        if (log_fd < 0) result = (int)syscall(number, fd), failure = errno;
    } else {
        put(SYNC_FOLDER, 0, 0, open_files[fd].folder, strlen(open_files[fd].folder));
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}
int fsync(int fd) { return sync_below(fd, SYS_fsync); }
int fdatasync(int fd) { return sync_below(fd, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    char full[8192 * 2], target[8192];
    REAL(int, "rename", const char *, const char *);
    if (!below(from, full) || !below(to, target)) return real(from, to);
    if (is_read_only()) return refuse(EROFS);
    pthread_mutex_lock(&lock);
    int64_t replaced = length_of_last(target);
    int result = real(from, to), failure = errno;
    if (!result) {
        grow_by(-replaced);
        size_t length = strlen(full) + 1;
        strcpy(full + length, target);
        put(RENAME, 0, 0, full, length + strlen(target));
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}

int link(const char *from, const char *to) {
    char full[8192 * 2], target[8192];
    REAL(int, "link", const char *, const char *);
    if (!below(from, full) || !below(to, target)) return real(from, to);
    pthread_mutex_lock(&lock);
    int result = real(from, to), failure = errno;
    if (!result) {
        size_t length = strlen(full) + 1;
        strcpy(full + length, target);
        put(LINK, 0, 0, full, length + strlen(target));
    }
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}

int unlink(const char *path) {
    char full[8192];
    REAL(int, "unlink", const char *);
    if (!below(path, full)) return real(path);
    if (is_read_only()) return refuse(EROFS);
    pthread_mutex_lock(&lock);
    int64_t length = length_of_last(full);
    int result = real(path), failure = errno;
    if (!result) grow_by(-length);
    if (!result) put(UNLINK, 0, 0, full, strlen(full));
    pthread_mutex_unlock(&lock);
    errno = failure;
    return result;
}

#define ROOM(name, type, argument, is_below) \
    int name(argument, struct type *found) { \
        REAL(int, #name, argument, struct type *); \
        int result = real(where, found); \
        if (!result && faults && faults->room_errno && is_below) \
            found->f_bfree = found->f_bavail = (uint64_t)faults->room / found->f_frsize; \
        return result; \
    }
static int is_folder_below(const char *path) {
    char full[8192], whole[4096];
    return realpath(path, whole) && below(whole, full);
}
static int is_handle_below(int fd) { return is_ours(fd) || (fd >= 0 && fd < FDS && open_files[fd].folder); }
ROOM(statvfs, statvfs, const char *where, is_folder_below(where))
ROOM(statvfs64, statvfs64, const char *where, is_folder_below(where))
ROOM(fstatvfs, statvfs, int where, is_handle_below(where))
ROOM(fstatvfs64, statvfs64, int where, is_handle_below(where))
