/* Rows of the graph operator S = D^-left (A + I) D^-right from a value-free A: pdadmm.disk.operator.

   The value of an entry is left[i] right[j], a product of doubles rounded once, as propagation_matrix has it. */

#include <stddef.h>
#include <stdint.h>

#include "cpu.h"

EXPORT int pdadmm_operator_interface(void) { return 1; }

/* Rows [first, last): `columns` begins with the first of their entries; `left` and `right` may be NULL, for ones. Writes
   offsets [last - first + 1], columns and values with the diagonal in its place. Returns the number of entries, or -1
   where a column is outside 0 .. nodes - 1. */
#define DEFINE_ROWS(REAL, NAME)                                                                                     \
  EXPORT int64_t NAME(const int64_t *indptr, const int32_t *columns, int64_t first, int64_t last, int64_t nodes,    \
                      const double *left, const double *right, int32_t *offsets, int32_t *into, REAL *values) {     \
    int64_t n = 0, k = 0;                                                                                           \
    offsets[0] = 0;                                                                                                 \
    for (int64_t i = first; i < last; i++) {                                                                        \
      const double l = left != NULL ? left[i] : 1.0;                                                                \
      const int64_t end = indptr[i + 1] - indptr[first];                                                            \
      int diagonal = 0;                                                                                             \
      for (;;) {                                                                                                    \
        int64_t j;                                                                                                  \
        if (k < end && (diagonal || columns[k] < i)) {                                                              \
          j = columns[k++];                                                                                         \
          if (j < 0 || j >= nodes) return -1;                                                                       \
        } else if (!diagonal) {                                                                                     \
          j = i;                                                                                                    \
          diagonal = 1;                                                                                             \
        } else {                                                                                                    \
          break;                                                                                                    \
        }                                                                                                           \
        into[n] = (int32_t)j;                                                                                       \
        values[n++] = (REAL)(l * (right != NULL ? right[j] : 1.0));                                                 \
      }                                                                                                             \
      offsets[i - first + 1] = (int32_t)n;                                                                          \
    }                                                                                                               \
    return n;                                                                                                       \
  }

DEFINE_ROWS(float, pdadmm_operator_rows_float32)
DEFINE_ROWS(double, pdadmm_operator_rows_float64)
