/* Fused float32 codec of pdadmm.quantize: the same bits as the plain torch path in scale.py, packing.py, noise.py.

   encode: a sweep that finds the range (1 bit: two more, for mean and mean deviation), then one sweep that subtracts
   the reference, quantizes, packs and updates the reference. decode: one sweep. Single thread, no state.
   Build with -ffp-contract=off and without -ffast-math: a fused multiply-add would round differently. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cpu.h"
#define INLINE static inline __attribute__((always_inline))
#define NO_CARRIED_DEPENDENCE _Pragma("GCC ivdep")

enum { DONE, NOT_FINITE, UNUSUAL }; /* UNUSUAL: overflow is near, or no memory; torch takes over */
enum { FIXED, MESSAGE, COLUMN };
enum {
  BLOCK = 2048, /* elements quantized into a buffer, then packed: both stay in the first-level cache */
  ROWS = 128,   /* as in scale.py: rows summed one after another before joining the running total */
  WIDTH = 512   /* tables of fewer pairs are repeated to at least this width, so that loops stay long */
};

EXPORT int pdadmm_codec_interface(void) { return 1; }

/* ---- the range, and for 1 bit the sums ---------------------------------------------------------------------- */

INLINE void widen(float d, float *low, float *high, uint32_t *size) {
  uint32_t bits;
  memcpy(&bits, &d, 4);
  bits &= 0x7fffffffu; /* the order of |d| is that of its bits; NaN and infinity come last */
  *low = d < *low ? d : *low;
  *high = d > *high ? d : *high;
  *size = bits > *size ? bits : *size;
}

/* Minimum and maximum at each of `period` positions of the flat difference; returns whether all is finite. */
INLINE int range_sweep(const float *x, const float *r, int64_t count, int64_t period, float *low, float *high) {
  uint32_t size = 0;
  int64_t at = 0, p = period;
  for (; at + 4 * p <= count; at += 4 * p) { /* four rows at a time: the tables are read and written less often */
    const float *a = x + at, *b = r ? r + at : 0;
    NO_CARRIED_DEPENDENCE
    for (int64_t i = 0; i < p; i++) {
      float l = low[i], h = high[i];
      uint32_t s = 0;
      widen(r ? a[i] - b[i] : a[i], &l, &h, &s);
      widen(r ? a[i + p] - b[i + p] : a[i + p], &l, &h, &s);
      widen(r ? a[i + 2 * p] - b[i + 2 * p] : a[i + 2 * p], &l, &h, &s);
      widen(r ? a[i + 3 * p] - b[i + 3 * p] : a[i + 3 * p], &l, &h, &s);
      size = size > s ? size : s;
      low[i] = l;
      high[i] = h;
    }
  }
  for (; at < count; at += p) {
    int64_t length = count - at < p ? count - at : p;
    const float *a = x + at, *b = r ? r + at : 0;
    NO_CARRIED_DEPENDENCE
    for (int64_t i = 0; i < length; i++) widen(r ? a[i] - b[i] : a[i], low + i, high + i, &size);
  }
  return size < 0x7f800000u;
}

CLONES static int range_plain(const float *x, int64_t count, int64_t period, float *low, float *high) {
  return range_sweep(x, 0, count, period, low, high);
}

CLONES static int range_difference(const float *x, const float *r, int64_t count, int64_t period, float *low,
                                   float *high) {
  return range_sweep(x, r, count, period, low, high);
}

INLINE void add_row(const float *x, const float *r, const double *centre, double *sum, int64_t columns) {
  NO_CARRIED_DEPENDENCE
  for (int64_t i = 0; i < columns; i++) {
    double d = r ? x[i] - r[i] : x[i];
    sum[i] += centre ? fabs(d - centre[i]) : d;
  }
}

/* Column sums of d, or of |d - centre|, in the order that scale.py fixes. */
CLONES static void column_sums(const float *x, const float *r, const double *centre, double *total, double *block,
                               int64_t rows, int64_t columns) {
  memset(total, 0, columns * sizeof(double));
  for (int64_t start = 0; start < rows; start += ROWS) {
    int64_t end = start + ROWS < rows ? start + ROWS : rows;
    memset(block, 0, columns * sizeof(double));
    for (int64_t row = start; row < end; row++)
      add_row(x + row * columns, r ? r + row * columns : 0, centre, block, columns);
    for (int64_t i = 0; i < columns; i++) total[i] += block[i];
  }
}

static void average(double *total, int64_t rows, int64_t columns, int kind) {
  if (kind == COLUMN) {
    for (int64_t i = 0; i < columns; i++) total[i] /= (double)rows;
    return;
  }
  double joined = 0.0;
  for (int64_t i = 0; i < columns; i++) joined += total[i];
  joined /= (double)(rows * columns);
  for (int64_t i = 0; i < columns; i++) total[i] = joined;
}

/* ---- choosing (lo, step) ------------------------------------------------------------------------------------- */

INLINE int near_overflow(float lo, float step, int levels) { /* true for NaN as well */
  return !(fabsf(lo) < FLT_MAX / 4) || !(step * (float)(levels - 1) < FLT_MAX / 4);
}

/* From low, high (and for two levels mean, deviation) to lo, step, in place. Returns a status. */
static int choose(float *lo, float *step, const double *mean, const double *deviation, int64_t pairs, int levels) {
  for (int64_t i = 0; i < pairs; i++) {
    float low = lo[i] + 0.0f, high = step[i] + 0.0f, s; /* + 0.0f: -0.0 becomes 0.0 */
    if (levels == 2) {
      lo[i] = (high > low ? (float)(mean[i] - deviation[i]) : low) + 0.0f;
      s = (float)(2.0 * deviation[i]);
    } else {
      lo[i] = low;
      s = (float)(((double)high - (double)low) / (double)(levels - 1));
    }
    if (s < FLT_MIN) s = nextafterf(s, INFINITY); /* subnormal: round up, so that the grid reaches max */
    step[i] = high > low ? s : 0.0f;
    if (near_overflow(lo[i], step[i], levels)) return UNUSUAL;
  }
  return DONE;
}

static int fit(const float *x, const float *r, int64_t rows, int64_t columns, int levels, int kind, int64_t period,
               float *lo, float *step) {
  int64_t count = rows * columns, pairs = kind == COLUMN ? columns : 1;
  for (int64_t i = 0; i < period; i++) lo[i] = INFINITY, step[i] = -INFINITY;
  if (!(r ? range_difference(x, r, count, period, lo, step) : range_plain(x, count, period, lo, step)))
    return NOT_FINITE;
  if (kind == FIXED) return DONE;
  for (int64_t i = pairs, j = 0; i < period; i++, j = j + 1 < pairs ? j + 1 : 0) {
    lo[j] = lo[i] < lo[j] ? lo[i] : lo[j];
    step[j] = step[i] > step[j] ? step[i] : step[j];
  }
  if (levels > 2) return choose(lo, step, 0, 0, pairs, levels);
  double *mean = malloc(3 * columns * sizeof(double));
  if (!mean) return UNUSUAL;
  column_sums(x, r, 0, mean, mean + 2 * columns, rows, columns);
  average(mean, rows, columns, kind);
  column_sums(x, r, mean, mean + columns, mean + 2 * columns, rows, columns);
  average(mean + columns, rows, columns, kind);
  int status = choose(lo, step, mean, mean + columns, pairs, levels);
  free(mean);
  return status;
}

static int64_t table_width(int64_t columns, int kind) {
  if (kind != COLUMN) return WIDTH;
  return columns * ((WIDTH + columns - 1) / columns);
}

/* Repeat the first pairs of the two tables (at least one) over their width. */
static void repeat(float *table, int64_t pairs, int64_t width) {
  int64_t filled = pairs ? pairs : 1;
  for (int64_t i = filled; i < width; i++) table[i] = table[i - filled];
  for (int64_t i = width + filled; i < 2 * width; i++) table[i] = table[i - filled];
}

/* ---- codes to bytes and back: lanes of 8 / bits bytes fold into one, which vectorises ------------------------ */

typedef uint16_t __attribute__((may_alias)) lane16;
typedef uint32_t __attribute__((may_alias)) lane32;
typedef uint64_t __attribute__((may_alias)) lane64;

INLINE void pack(const uint8_t *codes, uint8_t *out, int64_t bytes, int bits) {
  if (bits == 4) {
    const lane16 *lane = (const lane16 *)codes;
    for (int64_t i = 0; i < bytes; i++) out[i] = (uint8_t)(lane[i] | lane[i] >> 4);
  } else if (bits == 2) {
    const lane32 *lane = (const lane32 *)codes;
    for (int64_t i = 0; i < bytes; i++) {
      uint32_t w = lane[i] | lane[i] >> 6;
      out[i] = (uint8_t)((w & 0xf) | w >> 12);
    }
  } else {
    const lane64 *lane = (const lane64 *)codes;
    for (int64_t i = 0; i < bytes; i++) {
      uint64_t w = lane[i];
      w |= w >> 7;
      w |= w >> 14;
      w |= w >> 28;
      out[i] = (uint8_t)w;
    }
  }
}

INLINE void unpack(const uint8_t *in, uint8_t *codes, int64_t bytes, int bits) {
  if (bits == 4) {
    lane16 *lane = (lane16 *)codes;
    for (int64_t i = 0; i < bytes; i++) lane[i] = (uint16_t)((in[i] & 0xf) | (in[i] & 0xf0) << 4);
  } else if (bits == 2) {
    lane32 *lane = (lane32 *)codes;
    for (int64_t i = 0; i < bytes; i++) {
      uint32_t w = in[i];
      lane[i] = (w & 3) | (w & 0xc) << 6 | (w & 0x30) << 12 | (w & 0xc0) << 18;
    }
  } else {
    lane64 *lane = (lane64 *)codes;
    for (int64_t i = 0; i < bytes; i++) {
      uint64_t w = in[i];
      w = (w | w << 28) & 0x0000000f0000000full;
      w = (w | w << 14) & 0x0003000300030003ull;
      lane[i] = (w | w << 7) & 0x0101010101010101ull;
    }
  }
}

/* ---- the sweeps ---------------------------------------------------------------------------------------------- */

INLINE uint32_t mix(uint32_t h) { /* as in noise.py */
  h = (h ^ h >> 16) * 0x7feb352du;
  h = (h ^ h >> 15) * 0x846ca68bu;
  return h ^ h >> 16;
}

typedef struct {
  uint32_t first, word0, word1; /* word1 includes the upper half of the index */
} Noise;

/* value may be x or r: each element is read before it is written. A step of 0 gives 0 / 0 = NaN, hence code 0. */
INLINE void quantize(const float *x, const float *r, float *value, void *codes, const float *lo, const float *step,
                     int64_t length, float top, int two_bytes, const Noise *noise) {
  NO_CARRIED_DEPENDENCE
  for (int64_t i = 0; i < length; i++) {
    float base = r ? r[i] : 0.0f;
    float d = r ? x[i] - base : x[i];
    float t = (d - lo[i]) / step[i];
    t = t > 0.0f ? t : 0.0f;
    t = t < top ? t : top;
    float code;
    if (noise) {
      float whole = (float)(int32_t)t;
      uint32_t h = mix(mix((noise->first + (uint32_t)i) ^ noise->word0) + noise->word1);
      code = whole + ((float)(int32_t)(h >> 8) * 0x1p-24f < t - whole ? 1.0f : 0.0f);
    } else {
      code = (t + 0x1p23f) - 0x1p23f; /* rounds half to even, exactly, below 2^22 */
    }
    float product = step[i] * code;
    float point = lo[i] + product;
    value[i] = r ? base + point : point;
    if (two_bytes) ((uint16_t *)codes)[i] = (uint16_t)(int32_t)code;
    else ((uint8_t *)codes)[i] = (uint8_t)(int32_t)code;
  }
}

typedef struct {
  const float *x, *reference;
  float *value;
  uint8_t *packed;
  const float *lo, *step;
  int64_t count, period;
  int bits, levels, stochastic;
  uint32_t word0, word1;
  int64_t first;
} Sweep;

INLINE void encode_sweep(const Sweep *s, int has_reference, int two_bytes, int stochastic) {
  _Alignas(64) uint8_t buffer[2 * BLOCK];
  _Alignas(64) float unused[BLOCK];
  float top = (float)(s->levels - 1);
  int64_t column = 0;
  for (int64_t start = 0; start < s->count; start += BLOCK) {
    int64_t size = s->count - start < BLOCK ? s->count - start : BLOCK, length;
    uint8_t *codes = s->bits == 8 && s->packed ? s->packed + start : buffer;
    for (int64_t i = 0; i < size; i += length) {
      int64_t at = start + i;
      uint64_t index = (uint64_t)(s->first + at);
      length = size - i < s->period - column ? size - i : s->period - column;
      if (stochastic && (index & 0xffffffffu) + (uint64_t)length > 0x100000000ull)
        length = (int64_t)(0x100000000ull - (index & 0xffffffffu));
      Noise noise = {(uint32_t)index, s->word0, s->word1 + (uint32_t)(index >> 32) * 0x9e3779b9u};
      quantize(s->x + at, has_reference ? s->reference + at : 0, s->value ? s->value + at : unused,
               codes + i * (1 + two_bytes), s->lo + column, s->step + column, length, top, two_bytes,
               stochastic ? &noise : 0);
      column = column + length < s->period ? column + length : 0;
    }
    if (!s->packed || codes != buffer) continue;
    if (two_bytes) {
      memcpy(s->packed + 2 * start, buffer, 2 * size);
    } else {
      memset(buffer + size, 0, 8);
      pack(buffer, s->packed + start * s->bits / 8, (size * s->bits + 7) / 8, s->bits);
    }
  }
}

#define ENCODE(name, has_reference, two_bytes, stochastic) \
  CLONES static void name(const Sweep *s) { encode_sweep(s, has_reference, two_bytes, stochastic); }
ENCODE(encode_value_8, 0, 0, 0)
ENCODE(encode_value_16, 0, 1, 0)
ENCODE(encode_difference_8, 1, 0, 0)
ENCODE(encode_difference_16, 1, 1, 0)
ENCODE(encode_value_8_stochastic, 0, 0, 1)
ENCODE(encode_value_16_stochastic, 0, 1, 1)
ENCODE(encode_difference_8_stochastic, 1, 0, 1)
ENCODE(encode_difference_16_stochastic, 1, 1, 1)

INLINE void dequantize(float *value, const void *codes, const float *lo, const float *step, int64_t length,
                       int two_bytes, int add) {
  NO_CARRIED_DEPENDENCE
  for (int64_t i = 0; i < length; i++) {
    float code = two_bytes ? (float)((const uint16_t *)codes)[i] : (float)((const uint8_t *)codes)[i];
    float product = step[i] * code;
    float point = lo[i] + product;
    value[i] = add ? value[i] + point : point;
  }
}

INLINE void decode_sweep(const Sweep *s, int two_bytes, int add) {
  _Alignas(64) uint8_t buffer[2 * BLOCK];
  int64_t column = 0;
  for (int64_t start = 0; start < s->count; start += BLOCK) {
    int64_t size = s->count - start < BLOCK ? s->count - start : BLOCK, length;
    int64_t bytes = (size * s->bits + 7) / 8;
    const uint8_t *in = s->packed + start * s->bits / 8, *codes = s->bits == 8 ? in : buffer;
    if (two_bytes) memcpy(buffer, in, bytes);
    else if (s->bits < 8) unpack(in, buffer, bytes, s->bits);
    for (int64_t i = 0; i < size; i += length) {
      length = size - i < s->period - column ? size - i : s->period - column;
      dequantize(s->value + start + i, codes + i * (1 + two_bytes), s->lo + column, s->step + column, length,
                 two_bytes, add);
      column = column + length < s->period ? column + length : 0;
    }
  }
}

CLONES static void decode_set_8(const Sweep *s) { decode_sweep(s, 0, 0); }
CLONES static void decode_set_16(const Sweep *s) { decode_sweep(s, 1, 0); }
CLONES static void decode_add_8(const Sweep *s) { decode_sweep(s, 0, 1); }
CLONES static void decode_add_16(const Sweep *s) { decode_sweep(s, 1, 1); }

/* ---- the two entry points ------------------------------------------------------------------------------------ */

/* x, reference (or NULL), value (or NULL; may be reference or x): rows * columns floats. packed (or NULL): header and
   codes. Nothing is written unless the status is DONE. */
EXPORT int pdadmm_encode(const float *x, const float *reference, float *value, uint8_t *packed, int64_t rows,
                         int64_t columns, int bits, int levels, int kind, float lo, float step, int stochastic,
                         uint32_t word0, uint32_t word1, int64_t first) {
  static void (*const sweeps[])(const Sweep *) = {
      encode_value_8, encode_value_16, encode_difference_8, encode_difference_16,
      encode_value_8_stochastic, encode_value_16_stochastic, encode_difference_8_stochastic,
      encode_difference_16_stochastic,
  };
  int64_t width = table_width(columns, kind), pairs = kind == COLUMN ? columns : kind == MESSAGE;
  float *table = malloc(2 * width * sizeof(float));
  if (!table) return UNUSUAL;
  int status = fit(x, reference, rows, columns, levels, kind, width, table, table + width);
  if (status == DONE) {
    if (kind == FIXED) table[0] = lo, table[width] = step;
    if (packed) {
      memcpy(packed, table, pairs * sizeof(float));
      memcpy(packed + pairs * sizeof(float), table + width, pairs * sizeof(float));
      packed += 2 * pairs * sizeof(float);
    }
    repeat(table, pairs, width);
    Sweep sweep = {x, reference, value, packed, table, table + width, rows * columns, width, bits, levels, stochastic,
                   word0, word1, first};
    sweeps[(stochastic ? 4 : 0) + (reference ? 2 : 0) + (bits == 16)](&sweep);
  }
  free(table);
  return status;
}

EXPORT int pdadmm_decode(const uint8_t *packed, float *value, int add, int64_t rows, int64_t columns, int bits,
                         int levels, int kind, float lo, float step) {
  static void (*const sweeps[])(const Sweep *) = {decode_set_8, decode_set_16, decode_add_8, decode_add_16};
  int64_t width = table_width(columns, kind), pairs = kind == COLUMN ? columns : kind == MESSAGE;
  float *table = malloc(2 * width * sizeof(float));
  if (!table) return UNUSUAL;
  int status = DONE;
  if (kind == FIXED) {
    table[0] = lo, table[width] = step;
  } else {
    memcpy(table, packed, pairs * sizeof(float));
    memcpy(table + width, packed + pairs * sizeof(float), pairs * sizeof(float));
    packed += 2 * pairs * sizeof(float);
    for (int64_t i = 0; i < pairs; i++)
      if (near_overflow(table[i], table[width + i], levels) || !(table[width + i] >= 0.0f)) status = UNUSUAL;
  }
  if (status == DONE) {
    repeat(table, pairs, width);
    Sweep sweep = {.value = value, .packed = (uint8_t *)packed, .lo = table, .step = table + width,
                   .count = rows * columns, .period = width, .bits = bits};
    sweeps[(add ? 2 : 0) + (bits == 16)](&sweep);
  }
  free(table);
  return status;
}
