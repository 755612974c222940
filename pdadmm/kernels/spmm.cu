// Y = diag(left) A diag(right) X for CSR A: the hops S X of the augmentation; reference: pdadmm/augment/product.py.
//
// L lanes work on one row of A, each holding W neighbouring columns of Y, so that a row of X is read as whole lines;
// 32 / L edges go side by side. Rows longer than `limit` are cut into segments of at most that many edges, whose sums
// are added in order afterwards: no warp waits for a hub, and the result is the same in every run.
#include "common.h"

template <int W> __device__ __forceinline__ void get(const float *from, float (&to)[W]) {
  auto pack = load<W>(from);
#pragma unroll
  for (int i = 0; i < W; i++) to[i] = pack[i];
}

template <int W> __device__ __forceinline__ void get(const unsigned short *from, float (&to)[W]) {
  auto pack = load<W>(from);
#pragma unroll
  for (int i = 0; i < W; i++) to[i] = from_half(pack[i]);
}

// One access for four numbers: left to itself, the compiler makes four of it here.
template <int W> __device__ __forceinline__ void set(float *to, const Pack<float, W> &from) {
  if constexpr (W == 4) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = __float_as_uint(from[i]);
    store_words(to, words);
  } else {
    store<W>(to, from);
  }
}

template <int W> __device__ __forceinline__ void set(unsigned short *to, const Pack<float, W> &from) {
  if constexpr (W == 4) {
    unsigned words[2];
#pragma unroll
    for (int i = 0; i < 2; i++) words[i] = to_half(from[2 * i]) | (unsigned)to_half(from[2 * i + 1]) << 16;
    store_words(to, words);
  } else {
    to[0] = to_half(from[0]);
  }
}

constexpr int AHEAD = 8; // gathers in flight per lane

// sum over edges [begin, end) of weight * X[column], by the whole warp; all lanes of a column hold it afterwards.
// Loads are unconditional, so that AHEAD of them are on their way: past its last edge a row reads that edge again and
// weights it 0, and lanes past the last column read the first ones, for nothing.
template <typename X, int W, int L>
__device__ __forceinline__ void gather(Pack<float, W> &sum, const int *columns, const float *values, const float *right,
                                       const X *x, index_t begin, index_t end, index_t at, index_t width) {
  constexpr int SIDE = 32 / L; // edges side by side
  int lane = threadIdx.x % 32, side = lane / L;
  unsigned stride = (unsigned)width;
  x += at < width ? at : 0;
#pragma unroll
  for (int i = 0; i < W; i++) sum[i] = 0.0f;
#pragma unroll 1
  for (index_t start = begin; start < end; start += 32) {
    int count = end - start < 32 ? (int)(end - start) : 32, column = 0;
    float weight = 0.0f;
    if (lane < count) {
      column = columns[start + lane];
      weight = values ? values[start + lane] : 1.0f;
      if (right) weight *= right[column];
    }
#pragma unroll 1
    for (int edge = 0; edge < count; edge += SIDE * AHEAD) {
      float rows[AHEAD][W], weights[AHEAD];
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        int from = edge + k * SIDE + side, present = from < count ? from : count - 1;
        unsigned target = (unsigned)__shfl_sync(WARP, column, present);
        weights[k] = __shfl_sync(WARP, weight, present);
        weights[k] = from < count ? weights[k] : 0.0f;
        get<W>(x + (unsigned long long)target * stride, rows[k]);
      }
#pragma unroll
      for (int k = 0; k < AHEAD; k++)
#pragma unroll
        for (int i = 0; i < W; i++) sum[i] = fmaf(weights[k], rows[k][i], sum[i]);
    }
  }
#pragma unroll
  for (int i = 0; i < W; i++)
#pragma unroll
    for (int d = 16; d >= L; d /= 2) sum[i] += __shfl_xor_sync(WARP, sum[i], d);
}

// One warp per row; rows longer than `limit` are left to the segments.
template <typename X, typename Y, typename I, int W, int L>
__device__ void rows(const I *pointers, const int *columns, const float *values, const float *left, const float *right,
                     const X *x, Y *y, index_t count, index_t width, index_t limit) {
  index_t row = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (row >= count) return; // whole warps
  index_t begin = (index_t)pointers[row], end = (index_t)pointers[row + 1];
  if (end - begin > limit) return;
  int lane = threadIdx.x % 32;
  index_t at = ((index_t)blockIdx.y * L + lane % L) * W;
  Pack<float, W> sum;
  gather<X, W, L>(sum, columns, values, right, x, begin, end, at, width);
  if (lane >= L || at >= width) return;
  float scale = left ? left[row] : 1.0f;
#pragma unroll
  for (int i = 0; i < W; i++) sum[i] *= scale;
  set<W>(y + row * width + at, sum);
}

// One warp per segment [begins[s], ends[s]) of a long row, its sum to partial[s].
template <typename X, int W, int L>
__device__ void segments(const index_t *begins, const index_t *ends, const int *columns, const float *values,
                         const float *right, const X *x, float *partial, index_t count, index_t width) {
  index_t segment = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (segment >= count) return;
  int lane = threadIdx.x % 32;
  index_t at = ((index_t)blockIdx.y * L + lane % L) * W;
  Pack<float, W> sum;
  gather<X, W, L>(sum, columns, values, right, x, begins[segment], ends[segment], at, width);
  if (lane < L && at < width) set<W>(partial + segment * width + at, sum);
}

// The segments first[i] .. first[i + 1] of long row i, in order; one thread per column.
template <typename Y>
__device__ void join(const index_t *long_rows, const index_t *first, const float *left, const float *partial, Y *y,
                     index_t count, index_t width) {
  index_t t = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= count * width) return;
  index_t i = t / width, column = t % width, row = long_rows[i];
  Pack<float, 1> sum = {0.0f};
#pragma unroll 4
  for (index_t segment = first[i]; segment < first[i + 1]; segment++) sum[0] += partial[segment * width + column];
  if (left) sum[0] *= left[row];
  set<1>(y + row * width + column, sum);
}

typedef unsigned short half_t;
typedef int int32;
typedef long long int64;

#define ROWS(X, Y, I, W, L)                                                                                      \
  KERNEL(spmm_rows_##X##_##Y##_##I##_##W##_##L, const I *pointers, const int *columns, const float *values,      \
         const float *left, const float *right, const X *x, Y *y, index_t count, index_t width, index_t limit) { \
    rows<X, Y, I, W, L>(pointers, columns, values, left, right, x, y, count, width, limit);                      \
  }
#define SEGMENTS(X, W, L)                                                                                        \
  KERNEL(spmm_segments_##X##_##W##_##L, const index_t *begins, const index_t *ends, const int *columns,          \
         const float *values, const float *right, const X *x, float *partial, index_t count, index_t width) {    \
    segments<X, W, L>(begins, ends, columns, values, right, x, partial, count, width);                           \
  }
#define SHAPES(W, L)                                                                                             \
  SEGMENTS(float, W, L)                                                                                          \
  SEGMENTS(half_t, W, L)                                                                                         \
  ROWS(float, float, int32, W, L)                                                                                \
  ROWS(float, float, int64, W, L)                                                                                \
  ROWS(half_t, float, int32, W, L)                                                                               \
  ROWS(half_t, float, int64, W, L)                                                                               \
  ROWS(half_t, half_t, int32, W, L)                                                                              \
  ROWS(half_t, half_t, int64, W, L)
#define JOIN(Y)                                                                                                  \
  KERNEL(spmm_join_##Y, const index_t *long_rows, const index_t *first, const float *left, const float *partial, \
         Y *y, index_t count, index_t width) {                                                                   \
    join<Y>(long_rows, first, left, partial, y, count, width);                                                   \
  }
SHAPES(4, 32)
SHAPES(4, 16)
SHAPES(4, 8)
SHAPES(1, 32)
JOIN(float)
JOIN(half_t)
