/* Ranges of rows of a file, read in one rising pass: pdadmm.disk.scattered.

   Each row that lies alone costs a call of the system, and from Python several times that besides. */

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "cpu.h"

#define AHEAD 64 /* spans that the system is told of before they are read: a disk serves many requests at once */
#define TOO_SHORT -1

EXPORT int pdadmm_scattered_interface(void) { return 1; }

typedef struct {
  const int64_t *starts, *stops; /* ranges of rows, rising */
  int64_t count, row_bytes, gap_bytes, room; /* room: rows that the stage has */
} Ranges;

/* The first range behind range a that is not read together with it. */
static int64_t span_end(const Ranges *r, int64_t a) {
  int64_t b = a + 1;
  while (b < r->count && (r->starts[b] - r->stops[b - 1]) * r->row_bytes <= r->gap_bytes &&
         r->stops[b] - r->starts[a] <= r->room)
    b++;
  return b;
}

static int fill(int file, char *into, int64_t bytes, int64_t offset) {
  while (bytes > 0) {
    const ssize_t count = pread(file, into, (size_t)bytes, (off_t)offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno;
    if (count == 0) return TOO_SHORT;
    into += count, offset += count, bytes -= count;
  }
  return 0;
}

/* Fills `out` with the rows of `count` ranges; `first` is the byte of the file's first row. Ranges with gaps of at most
   `gap_bytes` go through `stage`, as many as it has room for. Adds the bytes read to `moved`. Returns 0, an errno, or
   TOO_SHORT where the file ends before. */
EXPORT int pdadmm_read_ranges(int file, int64_t first, int64_t row_bytes, const int64_t *starts, const int64_t *stops,
                              int64_t count, int64_t gap_bytes, char *stage, int64_t stage_bytes, char *out,
                              int64_t *moved) {
  const Ranges ranges = {starts, stops, count, row_bytes, gap_bytes, row_bytes > 0 ? stage_bytes / row_bytes : 0};
  int64_t told = 0;
  for (int64_t a = 0, span = 0, b; a < count; a = b, span++) {
#ifdef POSIX_FADV_WILLNEED
    for (int64_t end, more = span == 0 ? AHEAD : 1; more > 0 && told < count; told = end, more--) {
      end = span_end(&ranges, told);
      posix_fadvise(file, (off_t)(first + starts[told] * row_bytes), (off_t)((stops[end - 1] - starts[told]) * row_bytes),
                    POSIX_FADV_WILLNEED);
    }
#endif
    b = span_end(&ranges, a);
    const int64_t bytes = (stops[b - 1] - starts[a]) * row_bytes;
    char *into = b - a == 1 ? out : stage;
    const int failed = fill(file, into, bytes, first + starts[a] * row_bytes);
    if (failed) return failed;
    *moved += bytes;
    for (int64_t k = a; k < b; k++) {
      const int64_t own = (stops[k] - starts[k]) * row_bytes;
      if (into == stage) memcpy(out, stage + (starts[k] - starts[a]) * row_bytes, (size_t)own);
      out += own;
    }
  }
  return 0;
}
