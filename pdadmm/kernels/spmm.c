/* out = S X for a sparse S (CSR) and a dense X: the product of pdadmm.augment.

   A row's sums stay in registers, for up to 128 columns where these are many and wide, while the rows of X that come
   next are fetched. Each number adds up its row's terms in stored order, multiplied and rounded before they are added,
   as scipy does: the bits are the same, whatever the columns beside it and the width of the registers. */

#include <stdint.h>

#include "cpu.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define X86 1
#endif

enum { LINE = 64 };

EXPORT int pdadmm_spmm_interface(void) { return 2; }

/* Columns [0, LINES * 64 bytes) of one row of out: x and y are at the first of these columns. */
#define DEFINE_BLOCK(REAL, VECTOR, NAME, LINES)                                                                   \
  static inline __attribute__((always_inline)) void NAME##_lines_##LINES(                                         \
      const REAL *values, const int32_t *columns, int64_t count, int64_t fetchable, const REAL *x, int64_t w,     \
      REAL *y) {                                                                                                  \
    enum { VECTORS = LINES * LINE / sizeof(VECTOR) };                                                             \
    const int64_t ahead = 8 + 32 / LINES;                                                                         \
    const int astride = ((uintptr_t)x | (uintptr_t)(w * sizeof(REAL))) % LINE != 0; /* one line more a row */     \
    VECTOR sum[VECTORS] = {{0}};                                                                                  \
    for (int64_t k = 0; k < count; k++) {                                                                         \
      const REAL *row = x + columns[k] * w, value = values[k];                                                    \
      if (k + ahead < fetchable) {                                                                                \
        const char *next = (const char *)(x + columns[k + ahead] * w);                                            \
        for (int v = 0; v < LINES; v++) __builtin_prefetch(next + LINE * v, 0, 3);                                \
        if (astride) __builtin_prefetch(next + LINE * LINES - 1, 0, 3);                                           \
      }                                                                                                           \
      for (int v = 0; v < VECTORS; v++) sum[v] += value * ((const VECTOR *)row)[v];                               \
    }                                                                                                             \
    for (int v = 0; v < VECTORS; v++) ((VECTOR *)y)[v] = sum[v];                                                  \
  }

/* Rows [first, last) of out by registers of BYTES, MOST lines of columns at a time. `values`, `columns` and `offsets` are
   the arrays of S; w is the width of X and out. */
#define DEFINE_ROWS(REAL, NAME, BYTES, MOST, TARGET)                                                              \
  typedef REAL NAME##_vector __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));               \
  DEFINE_BLOCK(REAL, NAME##_vector, NAME, 8)                                                                      \
  DEFINE_BLOCK(REAL, NAME##_vector, NAME, 4)                                                                      \
  DEFINE_BLOCK(REAL, NAME##_vector, NAME, 2)                                                                      \
  DEFINE_BLOCK(REAL, NAME##_vector, NAME, 1)                                                                      \
  TARGET static void NAME(const REAL *values, const int32_t *columns, const int64_t *offsets, int64_t first,      \
                          int64_t last, int64_t w, const REAL *x, REAL *out) {                                    \
    const int64_t lane = LINE / (int64_t)sizeof(REAL), end = offsets[last];                                       \
    for (int64_t i = first; i < last; i++) {                                                                      \
      const int64_t start = offsets[i], count = offsets[i + 1] - start, rest = end - start;                       \
      const REAL *v = values + start;                                                                             \
      const int32_t *c = columns + start;                                                                         \
      REAL *y = out + i * w;                                                                                      \
      int64_t j = 0;                                                                                              \
      for (; MOST >= 8 && j + 8 * lane <= w; j += 8 * lane) NAME##_lines_8(v, c, count, rest, x + j, w, y + j);   \
      for (; MOST >= 4 && j + 4 * lane <= w; j += 4 * lane) NAME##_lines_4(v, c, count, rest, x + j, w, y + j);   \
      for (; j + 2 * lane <= w; j += 2 * lane) NAME##_lines_2(v, c, count, rest, x + j, w, y + j);                \
      if (j + lane <= w) NAME##_lines_1(v, c, count, rest, x + j, w, y + j), j += lane;                           \
      if (j < w && w >= lane) { /* the last columns again, a whole line of them: the same bits */                 \
        NAME##_lines_1(v, c, count, rest, x + w - lane, w, y + w - lane);                                         \
      } else if (j < w) {                                                                                         \
        REAL sum[LINE / sizeof(REAL)] = {0};                                                                      \
        for (int64_t k = 0; k < count; k++)                                                                       \
          for (int64_t t = 0; t < w; t++) sum[t] += v[k] * x[c[k] * w + t];                                       \
        for (int64_t t = 0; t < w; t++) y[t] = sum[t];                                                            \
      }                                                                                                           \
    }                                                                                                             \
  }

DEFINE_ROWS(float, narrow_float32, 16, 2, )
DEFINE_ROWS(double, narrow_float64, 16, 2, )
#ifdef X86
DEFINE_ROWS(float, avx2_float32, 32, 4, __attribute__((target("avx2"))))
DEFINE_ROWS(double, avx2_float64, 32, 4, __attribute__((target("avx2"))))
DEFINE_ROWS(float, avx512_float32, 64, 8, __attribute__((target("avx512f"))))
DEFINE_ROWS(double, avx512_float64, 64, 8, __attribute__((target("avx512f"))))
#endif

static int widest = 2; /* registers: 0 of 16 bytes, 1 of 32, 2 of 64 */

/* The widest registers that are used: what the processor has, and no more than `most`. The tests try all of them. */
EXPORT int pdadmm_spmm_registers(int most) {
#ifdef X86
  const int there = __builtin_cpu_supports("avx512f") ? 2 : __builtin_cpu_supports("avx2") ? 1 : 0;
#else
  const int there = 0;
#endif
  return widest = most < there ? most : there;
}

#ifdef X86
#define WIDER(TYPE)                                                                                               \
  if (registers == 2) {                                                                                           \
    avx512_##TYPE(values, columns, offsets, first, last, w, x, out);                                              \
    return;                                                                                                       \
  }                                                                                                               \
  if (registers == 1) {                                                                                           \
    avx2_##TYPE(values, columns, offsets, first, last, w, x, out);                                                \
    return;                                                                                                       \
  }
#else
#define WIDER(TYPE)
#endif

#define DEFINE_SPMM(REAL, TYPE)                                                                                   \
  EXPORT void pdadmm_spmm_##TYPE(const REAL *values, const int32_t *columns, const int64_t *offsets,              \
                                 int64_t first, int64_t last, int64_t w, const REAL *x, REAL *out) {              \
    const int registers = pdadmm_spmm_registers(widest);                                                          \
    (void)registers;                                                                                              \
    WIDER(TYPE)                                                                                                   \
    narrow_##TYPE(values, columns, offsets, first, last, w, x, out);                                              \
  }

DEFINE_SPMM(float, float32)
DEFINE_SPMM(double, float64)
