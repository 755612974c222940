// The (lo, step) of a message: the range of what is sent, for two levels its mean and mean deviation, the choice; and
// reading them from the head of a message that came. codec.h tells how these follow one another.
#include "codec.h"

constexpr int ROWS = 128; // as in scale.py: rows summed one after another before joining the running total

// ---- the range: order-preserving keys, so that minima over blocks are integer minima in any order --------------

template <typename T> __device__ typename Exact<T>::Key key_of(T x) {
  typedef typename Exact<T>::Key Key;
  Key bits = Exact<T>::bits(x), sign = (Key)1 << Exact<T>::SIGN;
  return bits & sign ? ~bits : bits | sign;
}

template <typename T> __device__ T number_of(typename Exact<T>::Key key) {
  typedef typename Exact<T>::Key Key;
  Key sign = (Key)1 << Exact<T>::SIGN;
  return Exact<T>::number(key & sign ? key & ~sign : ~key);
}

// keys: low[pairs], ~high[pairs], ~bits of the largest |d|; all ones at the start, taken down by minima.
template <typename T> struct Keys {
  typedef typename Exact<T>::Key Key;
  Key *keys;
  index_t pairs;
  __device__ T low(index_t i) const { return Exact<T>::add(number_of<T>(keys[i]), (T)0); } // -0 becomes 0
  __device__ T high(index_t i) const { return Exact<T>::add(number_of<T>(~keys[pairs + i]), (T)0); }
  __device__ Key size() const { return ~keys[2 * pairs]; }
  __device__ bool finite() const { return size() < Exact<T>::INFINITE; }
};

template <typename T, int W>
__device__ void range(const T *x, const T *reference, typename Exact<T>::Key *keys, index_t count, index_t lanes,
                      index_t columns, index_t pairs) {
  typedef typename Exact<T>::Key Key;
  __shared__ T lows[4][256], highs[4][256];
  __shared__ Key sizes[256];
  Place place(lanes);
  index_t super_rows = (count + 4 * lanes - 1) / (4 * lanes);
  T low[4], high[4];
  Key size = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) low[i] = Real<T>::max(), high[i] = -Real<T>::max();
  for (index_t row = (index_t)blockIdx.x * place.rows + place.row; row < super_rows && place.lane < lanes;
       row += (index_t)gridDim.x * place.rows) {
    index_t at = (row * lanes + place.lane) * 4, left = count - at;
    auto d = fetch<T, W>(x, at, left);
    if (reference) {
      auto base = fetch<T, W>(reference, at, left);
#pragma unroll
      for (int i = 0; i < 4; i++) d[i] = Exact<T>::sub(d[i], base[i]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (i >= left) continue;
      Key bits = Exact<T>::bits(d[i]) & ~((Key)1 << Exact<T>::SIGN); // NaN and infinity come last
      low[i] = d[i] < low[i] ? d[i] : low[i];
      high[i] = d[i] > high[i] ? d[i] : high[i];
      size = bits > size ? bits : size;
    }
  }
  int t = threadIdx.x, width = blockDim.x / place.rows;
#pragma unroll
  for (int i = 0; i < 4; i++) lows[i][t] = low[i], highs[i][t] = high[i];
  sizes[t] = size;
  for (int rows = place.rows; rows > 1; rows = (rows + 1) / 2) { // the upper half of the rows joins the lower one
    __syncthreads();
    int other = t + (rows + 1) / 2 * width;
    if (place.row + (rows + 1) / 2 < rows) {
      for (int i = 0; i < 4; i++) {
        lows[i][t] = lows[i][other] < lows[i][t] ? lows[i][other] : lows[i][t];
        highs[i][t] = highs[i][other] > highs[i][t] ? highs[i][other] : highs[i][t];
      }
      sizes[t] = sizes[other] > sizes[t] ? sizes[other] : sizes[t];
    }
  }
  if (place.row || place.lane >= lanes) return;
  for (int i = 0; i < 4; i++) {
    if (pairs == 0 || place.lane * 4 + i >= count) break;
    index_t column = (place.lane * 4 + i) % columns;
    atomicMin(keys + column, key_of(lows[i][t]));
    atomicMin(keys + pairs + column, (Key)~key_of(highs[i][t]));
  }
  atomicMin(keys + 2 * pairs, (Key)~sizes[t]);
}

// ---- two levels: float64 sums in the order that scale.py fixes --------------------------------------------------

// One thread per column and block of ROWS rows: the sum of d, or of |d - centre|.
template <typename T>
__device__ void sums(const T *x, const T *reference, const double *centre, index_t stride,
                     typename Exact<T>::Key *keys, double *partial, index_t rows, index_t columns, index_t pairs) {
  index_t blocks = (rows + ROWS - 1) / ROWS, t = (index_t)blockIdx.x * 256 + threadIdx.x;
  if (t >= blocks * columns) return;
  index_t block = t / columns, column = t % columns, end = block * ROWS + ROWS < rows ? block * ROWS + ROWS : rows;
  double unit = Exact<T>::unit(Keys<T>{keys, pairs}.size()), middle = centre ? centre[column * stride] : 0.0;
  double sum = 0.0;
#pragma unroll 8
  for (index_t row = block * ROWS; row < end; row++) {
    index_t at = row * columns + column;
    double d = __dmul_rn((double)(reference ? Exact<T>::sub(x[at], reference[at]) : x[at]), unit);
    sum = __dadd_rn(sum, centre ? fabs(__dsub_rn(d, middle)) : d);
  }
  partial[t] = sum;
}

// The blocks of a column one after another, then the mean over its rows.
KERNEL(codec_fold, const double *partial, double *total, index_t blocks, index_t columns, double count) {
  index_t column = (index_t)blockIdx.x * 256 + threadIdx.x;
  if (column >= columns) return;
  double sum = 0.0;
#pragma unroll 8
  for (index_t block = 0; block < blocks; block++) sum = __dadd_rn(sum, partial[block * columns + column]);
  total[column] = __ddiv_rn(sum, count);
}

// One pair per message: the columns from left to right, by one thread.
KERNEL(codec_join, double *total, index_t columns, double count) {
  double sum = 0.0;
#pragma unroll 8
  for (index_t column = 0; column < columns; column++) sum = __dadd_rn(sum, total[column]);
  total[0] = __ddiv_rn(sum, count);
}

// ---- choosing (lo, step) -----------------------------------------------------------------------------------------

__device__ float spacing(float low, float high, double top) {
  return (float)__ddiv_rn(__dsub_rn((double)high, (double)low), top);
}

__device__ double spacing(double low, double high, double top) {
  double half = larger(fabs(low), fabs(high)) >= 0x1p1022 ? 0.5 : 1.0;
  return __ddiv_rn(__ddiv_rn(__dsub_rn(__dmul_rn(high, half), __dmul_rn(low, half)), top), half);
}

// A step that underflowed is rounded up, one whose top point overflows is made smaller.
template <typename T> __device__ T mend(T lo, T step, T low, T high, T top) {
  typedef Exact<T> E;
  if (!(high > low)) return (T)0;
  if (step < Real<T>::tiny()) step = E::number(E::bits(step) + 1);
  T half = halving(lo, step, top);
  T end = E::div(E::add(E::mul(lo, half), E::mul(E::mul(step, half), top)), half);
  if (fabs(end) <= Real<T>::max()) return step;
  T inside = E::div(E::div(E::sub(E::mul(high, half), E::mul(lo, half)), top), half);
  inside = E::mul(inside, (T)1 - (T)4 * Real<T>::eps());
  return step < inside ? step : inside;
}

template <typename T> __device__ T limited(double x) {
  T y = (T)x, top = Real<T>::max();
  return y < -top ? -top : y > top ? top : y;
}

template <typename T> __device__ void write_bytes(unsigned char *to, T value) { // at any address
  typename Exact<T>::Key bits = Exact<T>::bits(value);
  for (int i = 0; i < (int)sizeof(T); i++) to[i] = (unsigned char)(bits >> 8 * i);
}

// scale: lo[pairs], step[pairs] (one pair for fixed grids), and the same bytes at the head of the message.
template <typename T>
__device__ void fit(typename Exact<T>::Key *key_words, const double *mean, const double *deviation, T *scale,
                    unsigned char *packed, int *status, index_t pairs, index_t levels, double fixed_lo,
                    double fixed_step) {
  Keys<T> keys{key_words, pairs};
  index_t i = (index_t)blockIdx.x * 256 + threadIdx.x;
  if (i == 0) *status = keys.finite() ? DONE : NOT_FINITE;
  if (i == 0 && pairs == 0) scale[0] = (T)fixed_lo, scale[1] = (T)fixed_step;
  if (i >= pairs || !keys.finite()) return;
  T low = keys.low(i), high = keys.high(i), lo = low, step;
  if (levels == 2) {
    double unit = Exact<T>::unit(keys.size());
    lo = high > low ? limited<T>(__ddiv_rn(__dsub_rn(mean[i], deviation[i]), unit)) : low;
    lo = Exact<T>::add(lo, (T)0);
    step = limited<T>(__ddiv_rn(__dmul_rn(2.0, deviation[i]), unit));
  } else {
    step = spacing(low, high, (double)(levels - 1));
  }
  step = mend(lo, step, low, high, (T)(levels - 1));
  scale[i] = lo;
  scale[pairs + i] = step;
  if (packed) {
    write_bytes(packed + i * sizeof(T), lo);
    write_bytes(packed + (pairs + i) * sizeof(T), step);
  }
}

// ---- the receiving end -------------------------------------------------------------------------------------------

// One block: the pairs at the head of a message to an aligned table; status says whether they are usable.
template <typename T>
__device__ void header(const unsigned char *packed, T *scale, int *status, index_t pairs, double fixed_lo,
                       double fixed_step) {
  __shared__ int bad;
  if (threadIdx.x == 0) bad = 0;
  __syncthreads();
  for (index_t i = threadIdx.x; i < 2 * pairs; i += blockDim.x) {
    typename Exact<T>::Key bits = 0;
    for (int j = 0; j < (int)sizeof(T); j++) bits |= (typename Exact<T>::Key)packed[i * sizeof(T) + j] << 8 * j;
    T x = Exact<T>::number(bits);
    scale[i] = x;
    if (!(fabs(x) <= Real<T>::max()) || (i >= pairs && !(x >= (T)0))) bad = 1; // all who write, write 1
  }
  if (pairs == 0 && threadIdx.x == 0) scale[0] = (T)fixed_lo, scale[1] = (T)fixed_step;
  __syncthreads();
  if (threadIdx.x == 0) *status = bad ? NOT_FINITE : DONE;
}

#define SCALES(T)                                                                                                \
  KERNEL(codec_sums_##T, const T *x, const T *reference, const double *centre, index_t stride,                   \
         Exact<T>::Key *keys, double *partial, index_t rows, index_t columns, index_t pairs) {                   \
    sums<T>(x, reference, centre, stride, keys, partial, rows, columns, pairs);                                  \
  }                                                                                                              \
  KERNEL(codec_fit_##T, Exact<T>::Key *keys, const double *mean, const double *deviation, T *scale,              \
         unsigned char *packed, int *status, index_t pairs, index_t levels, double lo, double step) {            \
    fit<T>(keys, mean, deviation, scale, packed, status, pairs, levels, lo, step);                               \
  }                                                                                                              \
  KERNEL(codec_header_##T, const unsigned char *packed, T *scale, int *status, index_t pairs, double lo,         \
         double step) {                                                                                          \
    header<T>(packed, scale, status, pairs, lo, step);                                                           \
  }
#define RANGE(T, W)                                                                                              \
  KERNEL(codec_range_##T##_##W, const T *x, const T *reference, Exact<T>::Key *keys, index_t count,              \
         index_t lanes, index_t columns, index_t pairs) {                                                        \
    range<T, W>(x, reference, keys, count, lanes, columns, pairs);                                               \
  }
SCALES(float)
SCALES(double)
RANGE(float, 4)
RANGE(float, 1)
RANGE(double, 2)
RANGE(double, 1)
