// z_L of pdADMM-G: damped Newton on the softmax cross-entropy, all steps in one launch; reference:
// pdadmm/admm/losses.py, softmax_newton.
#include "common.h"

// logsumexp(x_i) - x_i[y_i] + nu/2 |x_i - a_i|^2 of one node, its classes spread over L lanes.
template <typename T, int L, int K>
__device__ T objective(const T (&x)[K], const T (&a)[K], int target, int lane, index_t C, T nu) {
  T top = -Real<T>::max(), total = (T)0, rest = (T)0;
#pragma unroll
  for (int k = 0; k < K; k++)
    if (k * L + lane < C && x[k] > top) top = x[k];
  top = group_max<L>(top);
#pragma unroll
  for (int k = 0; k < K; k++) {
    if (k * L + lane >= C) continue;
    total += exp(x[k] - top);
    rest += (T)0.5 * nu * ((x[k] - a[k]) * (x[k] - a[k]));
    if (k * L + lane == target) rest -= x[k];
  }
  return top + log(group_sum<L>(total)) + group_sum<L>(rest);
}

// L lanes per node, K classes per lane: class k L + lane. Lanes of a finished node idle until their warp is done.
template <typename T, int L, int K>
__device__ void softmax_newton(T *z, const T *a, const index_t *y, index_t V, index_t C, double nu_, index_t limit) {
  index_t node = ((index_t)blockIdx.x * 256 + threadIdx.x) / L;
  int lane = threadIdx.x % L;
  bool inside = node < V, active = inside;
  T nu = (T)nu_, tolerance = (T)4 * Real<T>::eps();
  int target = inside ? (int)y[node] : -1;
  T z_[K], a_[K], pi[K], step[K];
#pragma unroll
  for (int k = 0; k < K; k++) {
    bool valid = inside && k * L + lane < C;
    z_[k] = valid ? z[node * C + k * L + lane] : -Real<T>::max();
    a_[k] = valid ? a[node * C + k * L + lane] : (T)0;
  }
  for (index_t round = 0; round < limit; round++) {
    T top = z_[0], total = (T)0;
#pragma unroll
    for (int k = 1; k < K; k++) top = z_[k] > top ? z_[k] : top;
    top = group_max<L>(top);
#pragma unroll
    for (int k = 0; k < K; k++) {
      pi[k] = k * L + lane < C ? exp(z_[k] - top) : (T)0;
      total += pi[k];
    }
    total = group_sum<L>(total);
    T worst = (T)0, size = (T)0, odd = (T)0; // odd: 0, or NaN where a slope is not finite, which a maximum would drop
#pragma unroll
    for (int k = 0; k < K; k++) {
      bool valid = k * L + lane < C;
      pi[k] = pi[k] / total;
      step[k] = pi[k] + nu * (z_[k] - a_[k]); // the gradient, for now
      if (k * L + lane == target) step[k] -= (T)1;
      T slope = fabs(step[k]), reach = fabs(z_[k]) + fabs(a_[k]);
      worst = valid && slope > worst ? slope : worst;
      odd += valid ? slope - slope : (T)0;
      size = valid && reach > size ? reach : size;
    }
    worst = group_max<L>(worst) + group_sum<L>(odd);
    size = group_max<L>(size);
    active = active && !(worst <= tolerance * ((T)1 + (nu + (T)0.25) * size)); // NaN stays, and shows
    if (!__any_sync(WARP, active)) break;
    T product = (T)0, shares = (T)0;
#pragma unroll
    for (int k = 0; k < K; k++) {
      bool valid = k * L + lane < C;
      T weight = (T)1 / (pi[k] + nu), share = pi[k] * weight;
      product += valid ? share * step[k] : (T)0;
      shares += valid ? share : (T)0;
    }
    T correction = group_sum<L>(product);
    correction = correction / (nu * group_sum<L>(shares));
    T high = -Real<T>::max(), low = -Real<T>::max(), promised = (T)0; // low: of the negated step
#pragma unroll
    for (int k = 0; k < K; k++) {
      bool valid = k * L + lane < C;
      T weight = (T)1 / (pi[k] + nu), gradient = step[k];
      step[k] = weight * gradient + pi[k] * weight * correction;
      promised += valid ? gradient * step[k] : (T)0;
      high = valid && step[k] > high ? step[k] : high;
      low = valid && -step[k] > low ? -step[k] : low;
    }
    T spread = group_max<L>(high) + group_max<L>(low);
    T damping = spread > (T)1e-6 ? log1p(spread) / spread : (T)1;
    bool far = active && spread > (T)1;
    promised = group_sum<L>(promised);
    if (__any_sync(WARP, far)) { // the damped step is short there: try 1, 1/4, .. of the whole one
      T now = objective<T, L, K>(z_, a_, target, lane, C, nu), least = damping;
      bool open = far;
      for (T share = (T)1; __any_sync(WARP, open && share > least); share = share / (T)4) {
        T moved[K];
#pragma unroll
        for (int k = 0; k < K; k++) moved[k] = z_[k] - share * step[k];
        T gained = now - objective<T, L, K>(moved, a_, target, lane, C, nu);
        if (open && share > least && gained >= (T)0.1 * share * promised) damping = share, open = false;
      }
    }
#pragma unroll
    for (int k = 0; k < K; k++)
      if (active && k * L + lane < C) z_[k] = z_[k] - damping * step[k];
  }
#pragma unroll
  for (int k = 0; k < K; k++)
    if (inside && k * L + lane < C) z[node * C + k * L + lane] = z_[k];
}

#define NEWTON(T, L, K)                                                                                          \
  KERNEL(softmax_newton_##T##_##L##_##K, T *z, const T *a, const index_t *y, index_t V, index_t C, double nu,    \
         index_t limit) {                                                                                        \
    softmax_newton<T, L, K>(z, a, y, V, C, nu, limit);                                                           \
  }
#define NEWTONS(T)                                                                                               \
  NEWTON(T, 8, 1)                                                                                                \
  NEWTON(T, 8, 2)                                                                                                \
  NEWTON(T, 8, 4)                                                                                                \
  NEWTON(T, 32, 2)                                                                                               \
  NEWTON(T, 32, 4)                                                                                               \
  NEWTON(T, 32, 8)                                                                                               \
  NEWTON(T, 32, 16)
NEWTONS(float)
NEWTONS(double)
