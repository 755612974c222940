// The sums of the objective and the residuals, in float64, each array read once; references: pdadmm/admm/layer.py,
// activations.py and acceleration.py. The order in which numbers are added follows from their type and count, not
// from the GPU and not from where an array starts: both sides of a boundary decide by these bits.
#include "common.h"

// Calls add(at, Width) for all numbers, 16 bytes of them at a time, and writes one partial sum of each kind a block,
// those of a kind behind one another. W numbers are read at once: W = 1 where an array does not start at 16 bytes.
// A thread takes AHEAD steps at a time, so that numbers of the next are read before those of the last are added.
template <typename T, int W, int AHEAD, int KINDS, typename Add>
__device__ __forceinline__ void sum(index_t count, double *partial, double (&sums)[KINDS], Add add) {
  constexpr int PACK = 16 / sizeof(T);
  index_t first = (index_t)blockIdx.x * 256 + threadIdx.x, packs = count / PACK, step = (index_t)gridDim.x * 256;
  index_t i = first;
  for (; i + (AHEAD - 1) * step < packs; i += AHEAD * step) {
#pragma unroll
    for (int j = 0; j < AHEAD * PACK; j += W) add((i + j / PACK * step) * PACK + j % PACK, Width<W>());
  }
#pragma unroll 1
  for (; i < packs; i += step) {
#pragma unroll
    for (int j = 0; j < PACK; j += W) add(i * PACK + j, Width<W>());
  }
  index_t rest = packs * PACK + first;
  if (rest < count) add(rest, Width<1>());
  __shared__ double parts[KINDS][8];
#pragma unroll
  for (int k = 0; k < KINDS; k++) {
    sums[k] = group_sum<32>(sums[k]);
    if (threadIdx.x % 32 == 0) parts[k][threadIdx.x / 32] = sums[k];
  }
  __syncthreads();
  if (threadIdx.x >= KINDS) return;
  double total = 0.0;
  for (int i = 0; i < 8; i++) total += parts[threadIdx.x][i];
  partial[(index_t)threadIdx.x * gridDim.x + blockIdx.x] = total;
}

// |x|^2
template <typename T, int W> __device__ void square(const T *x, index_t count, double *partial) {
  double sums[1] = {0.0};
  sum<T, W, 4>(count, partial, sums, [&](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto x_ = load<N>(x + at);
#pragma unroll
    for (int i = 0; i < N; i++) sums[0] += (double)x_[i] * (double)x_[i];
  });
}

// |q - f(z)|^2
template <typename T, int W>
__device__ void distance(const T *q, const T *z, index_t count, double slope, double *partial) {
  double sums[1] = {0.0};
  sum<T, W, 2>(count, partial, sums, [&](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto q_ = load<N>(q + at), z_ = load<N>(z + at);
#pragma unroll
    for (int i = 0; i < N; i++) {
      double gap = (double)q_[i] - (double)activate(z_[i], (T)slope);
      sums[0] += gap * gap;
    }
  });
}

// |p - q|^2, <u, p - q> and |q|^2
template <typename T, int W>
__device__ void link(const T *p, const T *q, const T *u, index_t count, double *partial) {
  double sums[3] = {0.0, 0.0, 0.0};
  sum<T, W, 2>(count, partial, sums, [&](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto p_ = load<N>(p + at), q_ = load<N>(q + at), u_ = load<N>(u + at);
#pragma unroll
    for (int i = 0; i < N; i++) {
      double gap = (double)p_[i] - (double)q_[i];
      sums[0] += gap * gap;
      sums[1] += (double)u_[i] * gap;
      sums[2] += (double)q_[i] * (double)q_[i];
    }
  });
}

// |p - q|^2 + |q - used|^2
template <typename T, int W>
__device__ void movement(const T *p, const T *q, const T *used, index_t count, double *partial) {
  double sums[1] = {0.0};
  sum<T, W, 2>(count, partial, sums, [&](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto p_ = load<N>(p + at), q_ = load<N>(q + at), used_ = load<N>(used + at);
#pragma unroll
    for (int i = 0; i < N; i++) {
      double gap = (double)p_[i] - (double)q_[i], moved = (double)q_[i] - (double)used_[i];
      sums[0] += gap * gap + moved * moved;
    }
  });
}

#define SUMS(T, W)                                                                                               \
  KERNEL(square_##T##_##W, const T *x, index_t count, double *partial) { square<T, W>(x, count, partial); }      \
  KERNEL(distance_##T##_##W, const T *q, const T *z, index_t count, double slope, double *partial) {             \
    distance<T, W>(q, z, count, slope, partial);                                                                 \
  }                                                                                                              \
  KERNEL(link_##T##_##W, const T *p, const T *q, const T *u, index_t count, double *partial) {                   \
    link<T, W>(p, q, u, count, partial);                                                                         \
  }                                                                                                              \
  KERNEL(movement_##T##_##W, const T *p, const T *q, const T *used, index_t count, double *partial) {            \
    movement<T, W>(p, q, used, count, partial);                                                                  \
  }
SUMS(float, 4)
SUMS(float, 1)
SUMS(double, 2)
SUMS(double, 1)

// Adds the partial sums of each kind, a block of 256 threads for each.
KERNEL(sums_fold, const double *partial, double *total, index_t blocks) {
  double x = 0.0;
  for (index_t i = threadIdx.x; i < blocks; i += 256) x += partial[blockIdx.x * blocks + i];
  __shared__ double parts[8];
  x = group_sum<32>(x);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x) return;
  double sum = 0.0;
  for (int i = 0; i < 8; i++) sum += parts[i];
  total[blockIdx.x] = sum;
}
