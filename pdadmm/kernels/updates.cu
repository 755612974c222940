// The element-wise subproblems of pdADMM-G, each in one pass; references: pdadmm/admm/activations.py and updates.py.
#include "common.h"

// Calls body(offset, Width) once per thread: W numbers each, the thread at the end takes what is left one by one.
template <int W, typename Body> __device__ __forceinline__ void sweep(index_t count, Body body) {
  index_t at = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) * W;
  if (at + W <= count) {
    body(at, Width<W>());
  } else {
#pragma unroll 1
    for (; at < count; at++) body(at, Width<1>());
  }
}

// The comparisons below are written so that NaN passes through, as it does in torch's clamp.
template <typename T> __device__ __forceinline__ T objective(T z, T s, T a, T q, T z_old, T prox) {
  T linear = z - a, active = q - s * z, moved = z - z_old;
  return linear * linear + active * active + prox * (moved * moved);
}

// argmin_z (z-a)^2 + (q-f(z))^2 + prox (z-z_old)^2; the divisors are 2 + prox and 1 + slope^2 + prox.
template <typename T>
__device__ __forceinline__ T minimise(T a, T q, T z_old, T prox, T slope, T divide_up, T divide_down) {
  T negative = (a + slope * q + prox * z_old) / divide_down;
  if (slope == (T)1) return negative;
  T positive = (a + q + prox * z_old) / divide_up;
  positive = positive < (T)0 ? (T)0 : positive;
  negative = negative > (T)0 ? (T)0 : negative;
  bool up = objective(positive, (T)1, a, q, z_old, prox) < objective(negative, slope, a, q, z_old, prox);
  return up ? positive : negative;
}

// z <- argmin, r <- z - a; all of `count` numbers.
template <typename T, int W>
__device__ void update_z(T *z, T *r, const T *a, const T *q, index_t count, double prox, double slope) {
  T up = (T)(2.0 + prox), down = (T)(1.0 + slope * slope + prox);
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto z_ = load<N>(z + at), a_ = load<N>(a + at), q_ = load<N>(q + at);
    Pack<T, N> r_;
#pragma unroll
    for (int i = 0; i < N; i++) {
      z_[i] = minimise(a_[i], q_[i], z_[i], (T)prox, (T)slope, up, down);
      r_[i] = z_[i] - a_[i];
    }
    store<N>(z + at, z_);
    store<N>(r + at, r_);
  });
}

// q <- (rho p + u + nu f(z)) / (rho + nu), u <- u + rho (p - q).
template <typename T, int W>
__device__ void update_q_u(T *q, T *u, const T *p, const T *z, index_t count, double nu, double rho, double slope) {
  T total = (T)(rho + nu);
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto u_ = load<N>(u + at), p_ = load<N>(p + at), z_ = load<N>(z + at);
    Pack<T, N> q_;
#pragma unroll
    for (int i = 0; i < N; i++) {
      q_[i] = (p_[i] * (T)rho + u_[i] + (T)nu * activate(z_[i], (T)slope)) / total;
      u_[i] = u_[i] + (T)rho * (p_[i] - q_[i]);
    }
    store<N>(q + at, q_);
    store<N>(u + at, u_);
  });
}

// u <- u + rho (p - q), where q is as transmitted.
template <typename T, int W> __device__ void update_u(T *u, const T *p, const T *q, index_t count, double rho) {
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto u_ = load<N>(u + at), p_ = load<N>(p + at), q_ = load<N>(q + at);
#pragma unroll
    for (int i = 0; i < N; i++) u_[i] = u_[i] + (T)rho * (p_[i] - q_[i]);
    store<N>(u + at, u_);
  });
}

// right <- right + rho q - u: the part of the exact p-update that needs q.
template <typename T, int W>
__device__ void assemble_p(T *right, const T *q, const T *u, index_t count, double rho) {
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto right_ = load<N>(right + at), q_ = load<N>(q + at), u_ = load<N>(u + at);
#pragma unroll
    for (int i = 0; i < N; i++) right_[i] = right_[i] + (T)rho * q_[i] - u_[i];
    store<N>(right + at, right_);
  });
}

// x + beta (x - last), rounded after each operation as in plain torch.
template <typename T> __device__ __forceinline__ T beyond(T x, T last, T beta) { return (x - last) * beta + x; }

// x <- x + beta (x - last), last <- the old x.
template <typename T, int W> __device__ void extrapolate(T *x, T *last, index_t count, double beta) {
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto x_ = load<N>(x + at), last_ = load<N>(last + at);
    store<N>(last + at, x_);
#pragma unroll
    for (int i = 0; i < N; i++) x_[i] = beyond(x_[i], last_[i], (T)beta);
    store<N>(x + at, x_);
  });
}

// used <- q + beta (q - last), last <- q; q stays.
template <typename T, int W>
__device__ void extrapolate_q(T *used, const T *q, T *last, index_t count, double beta) {
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto q_ = load<N>(q + at), last_ = load<N>(last + at);
    store<N>(last + at, q_);
#pragma unroll
    for (int i = 0; i < N; i++) q_[i] = beyond(q_[i], last_[i], (T)beta);
    store<N>(used + at, q_);
  });
}

// As extrapolate, of z; r = z - a moves along.
template <typename T, int W> __device__ void extrapolate_z(T *z, T *last, T *r, index_t count, double beta) {
  sweep<W>(count, [=](index_t at, auto width) {
    constexpr int N = decltype(width)::value;
    auto z_ = load<N>(z + at), last_ = load<N>(last + at), r_ = load<N>(r + at);
    store<N>(last + at, z_);
#pragma unroll
    for (int i = 0; i < N; i++) {
      T moved = beyond(z_[i], last_[i], (T)beta);
      r_[i] = r_[i] - z_[i] + moved;
      z_[i] = moved;
    }
    store<N>(z + at, z_);
    store<N>(r + at, r_);
  });
}

#define ELEMENTWISE(T, W)                                                                                        \
  KERNEL(update_z_##T##_##W, T *z, T *r, const T *a, const T *q, index_t count, double prox, double slope) {     \
    update_z<T, W>(z, r, a, q, count, prox, slope);                                                              \
  }                                                                                                              \
  KERNEL(update_q_u_##T##_##W, T *q, T *u, const T *p, const T *z, index_t count, double nu, double rho,         \
         double slope) {                                                                                         \
    update_q_u<T, W>(q, u, p, z, count, nu, rho, slope);                                                         \
  }                                                                                                              \
  KERNEL(update_u_##T##_##W, T *u, const T *p, const T *q, index_t count, double rho) {                          \
    update_u<T, W>(u, p, q, count, rho);                                                                         \
  }                                                                                                              \
  KERNEL(assemble_p_##T##_##W, T *right, const T *q, const T *u, index_t count, double rho) {                    \
    assemble_p<T, W>(right, q, u, count, rho);                                                                   \
  }                                                                                                              \
  KERNEL(extrapolate_##T##_##W, T *x, T *last, index_t count, double beta) {                                     \
    extrapolate<T, W>(x, last, count, beta);                                                                     \
  }                                                                                                              \
  KERNEL(extrapolate_q_##T##_##W, T *used, const T *q, T *last, index_t count, double beta) {                    \
    extrapolate_q<T, W>(used, q, last, count, beta);                                                             \
  }                                                                                                              \
  KERNEL(extrapolate_z_##T##_##W, T *z, T *last, T *r, index_t count, double beta) {                             \
    extrapolate_z<T, W>(z, last, r, count, beta);                                                                \
  }
ELEMENTWISE(float, 4)
ELEMENTWISE(float, 1)
ELEMENTWISE(double, 2)
ELEMENTWISE(double, 1)

// ---- p <- p - g / tau, r <- r + gW / tau, tau = rho + nu |gW_i|^2 / |g_i|^2 per row i --------------------------

// Adds x and y over the L threads of a row: a warp, or the whole block of 256.
template <int L, typename T> __device__ __forceinline__ void row_sums(T &x, T &y) {
  x = group_sum<32>(x);
  y = group_sum<32>(y);
  if (L == 32) return;
  __shared__ T parts[2][8];
  int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) parts[0][warp] = x, parts[1][warp] = y;
  __syncthreads();
  x = y = (T)0;
  for (int i = 0; i < 8; i++) x += parts[0][i], y += parts[1][i];
}

template <typename T> __device__ __forceinline__ T curvature(T gW_squared, T g_squared, double nu, double rho) {
  T floored = g_squared < Real<T>::tiny() ? Real<T>::tiny() : g_squared;
  return (T)rho + (T)nu * gW_squared / floored;
}

template <int W, int L, int K, typename T>
__device__ __forceinline__ void fetch(Pack<T, W> (&to)[K], const T *row, index_t width, int lane, bool inside) {
#pragma unroll
  for (int k = 0; k < K; k++) {
    index_t at = (index_t)(k * L + lane) * W;
    if (inside && at < width) {
      to[k] = load<W>(row + at);
    } else {
#pragma unroll
      for (int i = 0; i < W; i++) to[k][i] = (T)0;
    }
  }
}

// L threads per row, each holding K packs of every array in registers; widths are multiples of W, at most L K W.
template <typename T, int W, int L, int K>
__device__ void step_p(T *p, T *r, const T *g, const T *gW, index_t V, index_t m, index_t n, double nu, double rho) {
  index_t row = (index_t)blockIdx.x * (256 / L) + threadIdx.x / L;
  int lane = threadIdx.x % L;
  bool inside = row < V;
  Pack<T, W> g_[K], gW_[K], p_[K], r_[K];
  fetch<W, L, K>(g_, g + row * m, m, lane, inside);
  fetch<W, L, K>(gW_, gW + row * n, n, lane, inside);
  fetch<W, L, K>(p_, p + row * m, m, lane, inside);
  fetch<W, L, K>(r_, r + row * n, n, lane, inside);
  T g_squared = (T)0, gW_squared = (T)0;
#pragma unroll
  for (int k = 0; k < K; k++)
#pragma unroll
    for (int i = 0; i < W; i++) {
      g_squared += g_[k][i] * g_[k][i];
      gW_squared += gW_[k][i] * gW_[k][i];
    }
  row_sums<L>(g_squared, gW_squared);
  T tau = curvature(gW_squared, g_squared, nu, rho);
#pragma unroll
  for (int k = 0; k < K; k++) {
    index_t at = (index_t)(k * L + lane) * W;
#pragma unroll
    for (int i = 0; i < W; i++) {
      p_[k][i] = p_[k][i] - g_[k][i] / tau;
      r_[k][i] = r_[k][i] + gW_[k][i] / tau;
    }
    if (inside && at < m) store<W>(p + row * m + at, p_[k]);
    if (inside && at < n) store<W>(r + row * n + at, r_[k]);
  }
}

// One block per row of any width: g and gW are read twice, the second time mostly from cache.
template <typename T, int W>
__device__ void step_p_wide(T *p, T *r, const T *g, const T *gW, index_t m, index_t n, double nu, double rho) {
  index_t row = blockIdx.x, stride = 256 * W, first = (index_t)threadIdx.x * W;
  T g_squared = (T)0, gW_squared = (T)0;
  for (index_t at = first; at < m; at += stride) {
    auto g_ = load<W>(g + row * m + at);
    for (int i = 0; i < W; i++) g_squared += g_[i] * g_[i];
  }
  for (index_t at = first; at < n; at += stride) {
    auto gW_ = load<W>(gW + row * n + at);
    for (int i = 0; i < W; i++) gW_squared += gW_[i] * gW_[i];
  }
  row_sums<256>(g_squared, gW_squared);
  T tau = curvature(gW_squared, g_squared, nu, rho);
  for (index_t at = first; at < m; at += stride) {
    auto p_ = load<W>(p + row * m + at), g_ = load<W>(g + row * m + at);
    for (int i = 0; i < W; i++) p_[i] = p_[i] - g_[i] / tau;
    store<W>(p + row * m + at, p_);
  }
  for (index_t at = first; at < n; at += stride) {
    auto r_ = load<W>(r + row * n + at), gW_ = load<W>(gW + row * n + at);
    for (int i = 0; i < W; i++) r_[i] = r_[i] + gW_[i] / tau;
    store<W>(r + row * n + at, r_);
  }
}

#define STEP(T, W, L, K)                                                                                         \
  KERNEL(step_p_##T##_##W##_##L##_##K, T *p, T *r, const T *g, const T *gW, index_t V, index_t m, index_t n,     \
         double nu, double rho) {                                                                                \
    step_p<T, W, L, K>(p, r, g, gW, V, m, n, nu, rho);                                                           \
  }
#define STEPS(T, W)                                                                                              \
  STEP(T, W, 32, 1)                                                                                              \
  STEP(T, W, 32, 2)                                                                                              \
  STEP(T, W, 32, 4)                                                                                              \
  STEP(T, W, 256, 2)                                                                                             \
  STEP(T, W, 256, 4)                                                                                             \
  KERNEL(step_p_##T##_##W##_wide, T *p, T *r, const T *g, const T *gW, index_t V, index_t m, index_t n,          \
         double nu, double rho) {                                                                                \
    step_p_wide<T, W>(p, r, g, gW, m, n, nu, rho);                                                               \
  }
STEPS(float, 4)
STEPS(float, 1)
STEPS(double, 2)
STEPS(double, 1)
