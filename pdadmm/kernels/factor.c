/* Inverses of and solves with small symmetric positive definite matrices, where LAPACK's own overhead is most of the
   work: the systems of the p- and W-updates of narrow layers. One thread.

   The factor is U, upper triangular with A = U^T U, so that all inner loops run along rows. All work is one step, four
   rows less a combination of four others (`combine`), on copies whose rows are padded to whole vectors: what lies
   between the diagonal and the vector's edge is computed along and never used. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "cpu.h"

enum { ROWS = 4, VECTOR = 64 };

EXPORT int pdadmm_factor_interface(void) { return 1; }

static inline int64_t up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

#define INLINE static inline __attribute__((always_inline))

#define DEFINE_FACTOR(REAL, SUFFIX, SQRT, LARGEST)                                                                \
  typedef REAL vector_##SUFFIX __attribute__((vector_size(VECTOR), aligned(sizeof(REAL)), may_alias));            \
  enum { WIDE_##SUFFIX = VECTOR / sizeof(REAL) };                                                                 \
                                                                                                                  \
  /* Y[s] -= sum over t of C(t, s) X[t], columns [from, to), whole vectors; Y, X: ROWS rows of `ld`.              \
     C(t, s) is C[t * along + s * across]. */                                                                     \
  INLINE void combine_##SUFFIX(REAL *Y, const REAL *C, int64_t along, int64_t across, const REAL *X, int64_t ld,  \
                               int64_t from, int64_t to) {                                                        \
    REAL c[ROWS][ROWS];                                                                                           \
    for (int t = 0; t < ROWS; t++)                                                                                \
      for (int s = 0; s < ROWS; s++) c[t][s] = C[t * along + s * across];                                         \
    for (int64_t j = from; j < to; j += WIDE_##SUFFIX) {                                                          \
      vector_##SUFFIX x[ROWS];                                                                                    \
      for (int t = 0; t < ROWS; t++) x[t] = *(const vector_##SUFFIX *)(X + t * ld + j);                           \
      for (int s = 0; s < ROWS; s++) {                                                                            \
        vector_##SUFFIX *y = (vector_##SUFFIX *)(Y + s * ld + j);                                                 \
        *y -= (c[0][s] * x[0] + c[1][s] * x[1]) + (c[2][s] * x[2] + c[3][s] * x[3]);                              \
      }                                                                                                           \
    }                                                                                                             \
  }                                                                                                               \
  INLINE void subtract_##SUFFIX(REAL *y, REAL c, const REAL *x, int64_t from, int64_t to) {                       \
    for (int64_t j = from; j < to; j += WIDE_##SUFFIX)                                                            \
      *(vector_##SUFFIX *)(y + j) -= c * *(const vector_##SUFFIX *)(x + j);                                       \
  }                                                                                                               \
  INLINE void scale_##SUFFIX(REAL *y, REAL c, int64_t from, int64_t to) {                                         \
    for (int64_t j = from; j < to; j += WIDE_##SUFFIX) *(vector_##SUFFIX *)(y + j) *= c;                          \
  }                                                                                                               \
                                                                                                                  \
  /* U <- the factor of scale A + shift I, its diagonal continued by ones to whole blocks of rows; whether it exists */\
  INLINE int factor_##SUFFIX(const REAL *A, int64_t n, REAL scale, REAL shift, REAL *U, int64_t rows, int64_t ld) {\
    memset(U, 0, (size_t)(rows * ld) * sizeof(REAL));                                                             \
    for (int64_t i = 0; i < n; i++) {                                                                             \
      for (int64_t j = i; j < n; j++) U[i * ld + j] = scale * A[i * n + j];                                       \
      U[i * ld + i] += shift;                                                                                     \
    }                                                                                                             \
    for (int64_t i = n; i < rows; i++) U[i * ld + i] = 1;                                                         \
    for (int64_t k = 0; k < rows; k += ROWS) {                                                                    \
      const int64_t from = k / WIDE_##SUFFIX * WIDE_##SUFFIX;                                                     \
      for (int64_t i = k; i < k + ROWS; i++) {                                                                    \
        REAL *row = U + i * ld;                                                                                   \
        for (int64_t t = k; t < i; t++) subtract_##SUFFIX(row, U[t * ld + i], U + t * ld, from, ld);              \
        if (!(row[i] > 0 && row[i] <= LARGEST)) return 0;                                                         \
        scale_##SUFFIX(row, 1 / SQRT(row[i]), from, ld);                                                          \
      }                                                                                                           \
      for (int64_t i = k + ROWS; i < rows; i += ROWS)                                                             \
        combine_##SUFFIX(U + i * ld, U + k * ld + i, ld, 1, U + k * ld, ld, i / WIDE_##SUFFIX * WIDE_##SUFFIX, ld);\
    }                                                                                                             \
    return 1;                                                                                                     \
  }                                                                                                               \
                                                                                                                  \
  /* X <- U^-T X. Where X began as I it is lower triangular, and only columns up to the diagonal are touched. */  \
  INLINE void forward_##SUFFIX(const REAL *U, int64_t rows, int64_t ld, REAL *X, int64_t ldx, int lower) {        \
    for (int64_t i = 0; i < rows; i += ROWS) {                                                                    \
      const int64_t to = lower ? up(i + ROWS, WIDE_##SUFFIX) : ldx;                                               \
      for (int64_t k = 0; k < i; k += ROWS)                                                                       \
        combine_##SUFFIX(X + i * ldx, U + k * ld + i, ld, 1, X + k * ldx, ldx, 0,                                 \
                         lower ? up(k + ROWS, WIDE_##SUFFIX) : ldx);                                              \
      for (int64_t s = i; s < i + ROWS; s++) {                                                                    \
        for (int64_t t = i; t < s; t++) subtract_##SUFFIX(X + s * ldx, U[t * ld + s], X + t * ldx, 0, to);        \
        scale_##SUFFIX(X + s * ldx, 1 / U[s * ld + s], 0, to);                                                    \
      }                                                                                                           \
    }                                                                                                             \
  }                                                                                                               \
  /* X <- U^-1 X */                                                                                               \
  INLINE void backward_##SUFFIX(const REAL *U, int64_t rows, int64_t ld, REAL *X, int64_t ldx) {                  \
    for (int64_t i = rows - ROWS; i >= 0; i -= ROWS) {                                                            \
      for (int64_t k = i + ROWS; k < rows; k += ROWS)                                                             \
        combine_##SUFFIX(X + i * ldx, U + i * ld + k, 1, ld, X + k * ldx, ldx, 0, ldx);                           \
      for (int64_t s = i + ROWS - 1; s >= i; s--) {                                                               \
        for (int64_t t = s + 1; t < i + ROWS; t++) subtract_##SUFFIX(X + s * ldx, U[s * ld + t], X + t * ldx, 0, ldx);\
        scale_##SUFFIX(X + s * ldx, 1 / U[s * ld + s], 0, ldx);                                                   \
      }                                                                                                           \
    }                                                                                                             \
  }                                                                                                               \
                                                                                                                  \
  /* out <- (scale A + shift I)^-1 (n, n); `work` has 2 up(n, ROWS) up(n, vector) values. Whether there is one. */\
  CLONES EXPORT int pdadmm_inverse_##SUFFIX(const REAL *A, int64_t n, double scale, double shift, REAL *out,      \
                                            REAL *work) {                                                         \
    const int64_t rows = up(n, ROWS), ld = up(n, WIDE_##SUFFIX);                                                  \
    REAL *U = work, *T = work + rows * ld;                                                                        \
    if (!factor_##SUFFIX(A, n, (REAL)scale, (REAL)shift, U, rows, ld)) return 0;                                  \
    memset(T, 0, (size_t)(rows * ld) * sizeof(REAL));                                                             \
    for (int64_t i = 0; i < rows; i++) T[i * ld + i] = -1;                                                        \
    forward_##SUFFIX(U, rows, ld, T, ld, 1);                                                                      \
    memset(U, 0, (size_t)(rows * ld) * sizeof(REAL));                                                             \
    for (int64_t i = 0; i < rows; i += ROWS) /* A^-1 = T^T T, its lower triangle, in U's place */                 \
      for (int64_t k = i; k < rows; k += ROWS)                                                                    \
        combine_##SUFFIX(U + i * ld, T + k * ld + i, ld, 1, T + k * ld, ld, 0, up(i + ROWS, WIDE_##SUFFIX));      \
    for (int64_t i = 0; i < n; i++)                                                                               \
      for (int64_t j = 0; j <= i; j++) out[i * n + j] = out[j * n + i] = -U[i * ld + j];                          \
    return 1;                                                                                                     \
  }                                                                                                               \
                                                                                                                  \
  /* X <- B A^-1; A (n, n), B and X (m, n), which may be one; `work` has up(n, ROWS) (up(n, vector) +             \
     up(m, vector)) values. Whether A has a factor. */                                                            \
  CLONES EXPORT int pdadmm_solve_##SUFFIX(const REAL *A, const REAL *B, int64_t n, int64_t m, REAL *X, REAL *work) {\
    const int64_t rows = up(n, ROWS), ld = up(n, WIDE_##SUFFIX), ldx = up(m, WIDE_##SUFFIX);                      \
    REAL *U = work, *F = work + rows * ld;                                                                        \
    if (!factor_##SUFFIX(A, n, 1, 0, U, rows, ld)) return 0;                                                      \
    memset(F, 0, (size_t)(rows * ldx) * sizeof(REAL));                                                            \
    for (int64_t i = 0; i < m; i++)                                                                               \
      for (int64_t j = 0; j < n; j++) F[j * ldx + i] = B[i * n + j];                                              \
    forward_##SUFFIX(U, rows, ld, F, ldx, 0);                                                                     \
    backward_##SUFFIX(U, rows, ld, F, ldx);                                                                       \
    for (int64_t i = 0; i < m; i++)                                                                               \
      for (int64_t j = 0; j < n; j++) X[i * n + j] = F[j * ldx + i];                                              \
    return 1;                                                                                                     \
  }

DEFINE_FACTOR(float, float32, sqrtf, FLT_MAX)
DEFINE_FACTOR(double, float64, sqrt, DBL_MAX)
