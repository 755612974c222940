/* Fused element-wise updates of pdadmm.admm: one pass over the data each, where torch needs one for every operation.

   The plain torch forms in pdadmm/admm (activations.py, updates.py, losses.py) are the reference; results agree to
   rounding. Every element depends on its own inputs alone, so a result does not depend on how arrays are cut. */

#include <float.h>
#include <math.h>
#include <stdint.h>

#include "cpu.h"

enum { MAX_CLASSES = 512, MAX_NEWTON_STEPS = 100 };

EXPORT int pdadmm_updates_interface(void) { return 4; }

/* z <- argmin (z-a)^2 + (q-f(z))^2 + prox (z-z_old)^2 and r <- z - a; f has `slope` below 0 and 1 above.
   r may be a itself: no element is read after it was written. */
#define DEFINE_UPDATE_Z(REAL, NAME)                                                                               \
  CLONES static void NAME##_sweep(const REAL *a, const REAL *restrict q, REAL *restrict z, REAL *r, int64_t count,\
                                  REAL prox, REAL slope) {                                                        \
    const REAL up = 1 / (2 + prox), down = 1 / (1 + slope * slope + prox);                                        \
    const int one = slope == 1;                                                                                   \
    _Pragma("GCC ivdep")                                                                                          \
    for (int64_t i = 0; i < count; i++) {                                                                         \
      const REAL ai = a[i], qi = q[i], zi = z[i];                                                                 \
      REAL above = (ai + qi + prox * zi) * up, below = (ai + slope * qi + prox * zi) * down;                      \
      above = above > 0 ? above : 0;                                                                              \
      below = below < 0 ? below : 0;                                                                              \
      const REAL a1 = above - ai, q1 = qi - above, z1 = above - zi;                                               \
      const REAL a2 = below - ai, q2 = qi - slope * below, z2 = below - zi;                                       \
      const REAL cost1 = a1 * a1 + q1 * q1 + prox * (z1 * z1), cost2 = a2 * a2 + q2 * q2 + prox * (z2 * z2);      \
      REAL best = cost1 < cost2 ? above : below;                                                                  \
      best = one ? (ai + qi + prox * zi) * up : best; /* one piece: nothing is clipped */                         \
      best = ai + qi + zi == ai + qi + zi ? best : ai + qi + zi; /* NaN must show */                              \
      z[i] = best;                                                                                                \
      r[i] = best - ai;                                                                                           \
    }                                                                                                             \
  }                                                                                                               \
  EXPORT void NAME(const REAL *a, const REAL *q, REAL *z, REAL *r, int64_t count, double prox, double slope) {    \
    NAME##_sweep(a, q, z, r, count, (REAL)prox, (REAL)slope);                                                     \
  }

DEFINE_UPDATE_Z(float, pdadmm_update_z_float32)
DEFINE_UPDATE_Z(double, pdadmm_update_z_float64)

/* q <- (rho p + u + nu f(z)) / (rho + nu), then u <- u + rho (p - q). */
#define DEFINE_UPDATE_Q_U(REAL, NAME)                                                                             \
  CLONES static void NAME##_sweep(REAL *restrict q, REAL *restrict u, const REAL *restrict p,                     \
                                  const REAL *restrict z, int64_t count, REAL nu, REAL rho, REAL slope) {         \
    const REAL scale = 1 / (rho + nu);                                                                            \
    for (int64_t i = 0; i < count; i++) {                                                                         \
      const REAL f = z[i] >= 0 ? z[i] : slope * z[i];                                                             \
      const REAL value = (rho * p[i] + u[i] + nu * f) * scale;                                                    \
      u[i] += rho * (p[i] - value);                                                                               \
      q[i] = value;                                                                                               \
    }                                                                                                             \
  }                                                                                                               \
  EXPORT void NAME(REAL *q, REAL *u, const REAL *p, const REAL *z, int64_t count, double nu, double rho,          \
                   double slope) {                                                                                \
    NAME##_sweep(q, u, p, z, count, (REAL)nu, (REAL)rho, (REAL)slope);                                            \
  }

DEFINE_UPDATE_Q_U(float, pdadmm_update_q_u_float32)
DEFINE_UPDATE_Q_U(double, pdadmm_update_q_u_float64)

/* u <- u + rho (p - q), the same bits as above: both ends of a boundary must agree. */
#define DEFINE_UPDATE_U(REAL, NAME)                                                                               \
  CLONES static void NAME##_sweep(REAL *restrict u, const REAL *restrict p, const REAL *restrict q, int64_t count,\
                                  REAL rho) {                                                                     \
    for (int64_t i = 0; i < count; i++) u[i] += rho * (p[i] - q[i]);                                              \
  }                                                                                                               \
  EXPORT void NAME(REAL *u, const REAL *p, const REAL *q, int64_t count, double rho) {                            \
    NAME##_sweep(u, p, q, count, (REAL)rho);                                                                      \
  }

DEFINE_UPDATE_U(float, pdadmm_update_u_float32)
DEFINE_UPDATE_U(double, pdadmm_update_u_float64)

/* right <- right + rho q - u: the right-hand side of the exact p-update from nu (z - b) W. */
#define DEFINE_ASSEMBLE_P(REAL, NAME)                                                                             \
  CLONES static void NAME##_sweep(REAL *restrict right, const REAL *restrict q, const REAL *restrict u,           \
                                  int64_t count, REAL rho) {                                                      \
    for (int64_t i = 0; i < count; i++) right[i] += rho * q[i] - u[i];                                            \
  }                                                                                                               \
  EXPORT void NAME(REAL *right, const REAL *q, const REAL *u, int64_t count, double rho) {                        \
    NAME##_sweep(right, q, u, count, (REAL)rho);                                                                  \
  }

DEFINE_ASSEMBLE_P(float, pdadmm_assemble_p_float32)
DEFINE_ASSEMBLE_P(double, pdadmm_assemble_p_float64)

/* Nesterov extrapolation, rounded after each operation as in plain torch: x <- x + beta (x - last), last <- the old x;
   of q it goes to `used`, and q stays; r = z - a moves along with z. */
#define DEFINE_EXTRAPOLATE(REAL, SUFFIX)                                                                          \
  CLONES static void x_##SUFFIX(REAL *restrict x, REAL *restrict last, int64_t count, REAL beta) {                \
    for (int64_t i = 0; i < count; i++) {                                                                         \
      const REAL old = x[i];                                                                                      \
      x[i] = (old - last[i]) * beta + old;                                                                        \
      last[i] = old;                                                                                              \
    }                                                                                                             \
  }                                                                                                               \
  CLONES static void q_##SUFFIX(REAL *restrict used, const REAL *restrict q, REAL *restrict last, int64_t count,  \
                                REAL beta) {                                                                      \
    for (int64_t i = 0; i < count; i++) {                                                                         \
      used[i] = (q[i] - last[i]) * beta + q[i];                                                                   \
      last[i] = q[i];                                                                                             \
    }                                                                                                             \
  }                                                                                                               \
  CLONES static void z_##SUFFIX(REAL *restrict z, REAL *restrict last, REAL *restrict r, int64_t count,           \
                                REAL beta) {                                                                      \
    for (int64_t i = 0; i < count; i++) {                                                                         \
      const REAL old = z[i], moved = (old - last[i]) * beta + old;                                                \
      r[i] = r[i] - old + moved;                                                                                  \
      z[i] = moved;                                                                                               \
      last[i] = old;                                                                                              \
    }                                                                                                             \
  }                                                                                                               \
  EXPORT void pdadmm_extrapolate_##SUFFIX(REAL *x, REAL *last, int64_t count, double beta) {                      \
    x_##SUFFIX(x, last, count, (REAL)beta);                                                                       \
  }                                                                                                               \
  EXPORT void pdadmm_extrapolate_q_##SUFFIX(REAL *used, const REAL *q, REAL *last, int64_t count, double beta) {  \
    q_##SUFFIX(used, q, last, count, (REAL)beta);                                                                 \
  }                                                                                                               \
  EXPORT void pdadmm_extrapolate_z_##SUFFIX(REAL *z, REAL *last, REAL *r, int64_t count, double beta) {           \
    z_##SUFFIX(z, last, r, count, (REAL)beta);                                                                    \
  }

DEFINE_EXTRAPOLATE(float, float32)
DEFINE_EXTRAPOLATE(double, float64)

/* The system A and right-hand side R of the exact W-update from sums over `count` nodes: centred, with the ridge and
   the weight of W_old, which is prox and a share of the rounding of pp's diagonal; `target` may be NULL. */
#define DEFINE_ASSEMBLE_W(REAL, NAME, EPS)                                                                        \
  CLONES EXPORT void NAME(const REAL *restrict pp, const REAL *restrict zp, const REAL *restrict p_sum,           \
                          const REAL *restrict z_sum, const REAL *restrict W_old, const REAL *restrict target,    \
                          int64_t n, int64_t m, double count, double prox, double ridge, double kappa,            \
                          REAL *restrict A, REAL *restrict R) {                                                   \
    const REAL share = (REAL)(1 / count), pull = (REAL)kappa;                                                     \
    REAL trace = 0;                                                                                               \
    for (int64_t i = 0; i < m; i++) trace += pp[i * m + i];                                                       \
    const REAL weight = (REAL)prox + 16 * EPS * (trace + 1);                                                      \
    for (int64_t i = 0; i < m; i++) {                                                                             \
      const REAL mean = p_sum[i] * share;                                                                         \
      for (int64_t j = 0; j < m; j++) A[i * m + j] = pp[i * m + j] - mean * p_sum[j];                             \
      A[i * m + i] += weight + (REAL)ridge;                                                                       \
    }                                                                                                             \
    for (int64_t i = 0; i < n; i++) {                                                                             \
      const REAL mean = z_sum[i] * share;                                                                         \
      const int64_t row = i * m;                                                                                  \
      for (int64_t j = 0; j < m; j++) R[row + j] = zp[row + j] - mean * p_sum[j] + weight * W_old[row + j];       \
      if (target)                                                                                                 \
        for (int64_t j = 0; j < m; j++) R[row + j] += pull * target[row + j];                                     \
    }                                                                                                             \
  }

DEFINE_ASSEMBLE_W(float, pdadmm_assemble_W_float32, FLT_EPSILON)
DEFINE_ASSEMBLE_W(double, pdadmm_assemble_W_float64, DBL_EPSILON)

/* Sums of squares in float64, without a float64 copy of the arrays: what the objective is made of. */
enum { LANES = 16 };

#define DEFINE_SUMS(REAL, SUFFIX)                                                                                 \
  CLONES static double add_lanes_##SUFFIX(const double *lane) {                                                   \
    double sum = 0;                                                                                               \
    for (int j = 0; j < LANES; j++) sum += lane[j];                                                               \
    return sum;                                                                                                   \
  }                                                                                                               \
  /* |q - f(z)|^2 */                                                                                              \
  CLONES static double distance_##SUFFIX(const REAL *restrict q, const REAL *restrict z, int64_t count,           \
                                         REAL slope) {                                                            \
    double lane[LANES] = {0};                                                                                     \
    int64_t i = 0;                                                                                                \
    for (; i + LANES <= count; i += LANES)                                                                        \
      for (int j = 0; j < LANES; j++) {                                                                           \
        const REAL f = z[i + j] >= 0 ? z[i + j] : slope * z[i + j];                                               \
        const double gap = (double)q[i + j] - (double)f;                                                          \
        lane[j] += gap * gap;                                                                                     \
      }                                                                                                           \
    for (; i < count; i++) {                                                                                      \
      const double gap = (double)q[i] - (double)(z[i] >= 0 ? z[i] : slope * z[i]);                                \
      lane[0] += gap * gap;                                                                                       \
    }                                                                                                             \
    return add_lanes_##SUFFIX(lane);                                                                              \
  }                                                                                                               \
  CLONES static double square_##SUFFIX(const REAL *restrict x, int64_t count) {                                   \
    double lane[LANES] = {0};                                                                                     \
    int64_t i = 0;                                                                                                \
    for (; i + LANES <= count; i += LANES)                                                                        \
      for (int j = 0; j < LANES; j++) lane[j] += (double)x[i + j] * (double)x[i + j];                             \
    for (; i < count; i++) lane[0] += (double)x[i] * (double)x[i];                                                \
    return add_lanes_##SUFFIX(lane);                                                                              \
  }                                                                                                               \
  /* |p - q|^2, <u, p - q>, |q|^2 */                                                                              \
  CLONES static void link_##SUFFIX(const REAL *restrict p, const REAL *restrict q, const REAL *restrict u,        \
                                   int64_t count, double *sums) {                                                 \
    double gaps[LANES] = {0}, duals[LANES] = {0}, squares[LANES] = {0};                                           \
    int64_t i = 0;                                                                                                \
    for (; i + LANES <= count; i += LANES)                                                                        \
      for (int j = 0; j < LANES; j++) {                                                                           \
        const double gap = (double)p[i + j] - (double)q[i + j];                                                   \
        gaps[j] += gap * gap;                                                                                     \
        duals[j] += (double)u[i + j] * gap;                                                                       \
        squares[j] += (double)q[i + j] * (double)q[i + j];                                                        \
      }                                                                                                           \
    for (; i < count; i++) {                                                                                      \
      const double gap = (double)p[i] - (double)q[i];                                                             \
      gaps[0] += gap * gap;                                                                                       \
      duals[0] += (double)u[i] * gap;                                                                             \
      squares[0] += (double)q[i] * (double)q[i];                                                                  \
    }                                                                                                             \
    sums[0] = add_lanes_##SUFFIX(gaps), sums[1] = add_lanes_##SUFFIX(duals), sums[2] = add_lanes_##SUFFIX(squares); \
  }                                                                                                               \
  /* |p - q|^2 + |q - used|^2 */                                                                                  \
  CLONES static double movement_##SUFFIX(const REAL *restrict p, const REAL *restrict q,                          \
                                        const REAL *restrict used, int64_t count) {                               \
    double lane[LANES] = {0};                                                                                     \
    int64_t i = 0;                                                                                                \
    for (; i + LANES <= count; i += LANES)                                                                        \
      for (int j = 0; j < LANES; j++) {                                                                           \
        const double gap = (double)p[i + j] - (double)q[i + j], moved = (double)q[i + j] - (double)used[i + j];   \
        lane[j] += gap * gap + moved * moved;                                                                     \
      }                                                                                                           \
    for (; i < count; i++) {                                                                                      \
      const double gap = (double)p[i] - (double)q[i], moved = (double)q[i] - (double)used[i];                     \
      lane[0] += gap * gap + moved * moved;                                                                       \
    }                                                                                                             \
    return add_lanes_##SUFFIX(lane);                                                                              \
  }                                                                                                               \
  EXPORT void pdadmm_distance_##SUFFIX(const REAL *q, const REAL *z, int64_t count, double slope, double *sums) { \
    sums[0] = distance_##SUFFIX(q, z, count, (REAL)slope);                                                        \
  }                                                                                                               \
  EXPORT void pdadmm_square_##SUFFIX(const REAL *x, int64_t count, double *sums) {                                \
    sums[0] = square_##SUFFIX(x, count);                                                                          \
  }                                                                                                               \
  EXPORT void pdadmm_movement_##SUFFIX(const REAL *p, const REAL *q, const REAL *used, int64_t count,             \
                                      double *sums) {                                                             \
    sums[0] = movement_##SUFFIX(p, q, used, count);                                                               \
  }                                                                                                               \
  EXPORT void pdadmm_link_##SUFFIX(const REAL *p, const REAL *q, const REAL *u, int64_t count, double *sums) {    \
    link_##SUFFIX(p, q, u, count, sums);                                                                          \
  }

DEFINE_SUMS(float, float32)
DEFINE_SUMS(double, float64)

/* Damped Newton steps on logsumexp(z) - z[y] + nu/2 |z - a|^2 for each node, as softmax_newton of losses.py.
   Returns 0, or 1 where there are more classes than the tables hold. */
#define DEFINE_NEWTON(REAL, NAME, EXP, LOG, LOG1P, EPS)                                                           \
  static REAL NAME##_objective(const REAL *z, const REAL *step, REAL t, const REAL *a, int64_t y, REAL nu,        \
                               int classes) {                                                                     \
    REAL top = -INFINITY, sum = 0, distance = 0;                                                                  \
    for (int c = 0; c < classes; c++) top = z[c] - t * step[c] > top ? z[c] - t * step[c] : top;                  \
    for (int c = 0; c < classes; c++) {                                                                           \
      const REAL value = z[c] - t * step[c];                                                                      \
      sum += EXP(value - top);                                                                                    \
      distance += (value - a[c]) * (value - a[c]);                                                                \
    }                                                                                                             \
    return top + LOG(sum) - (z[y] - t * step[y]) + (REAL)0.5 * nu * distance;                                     \
  }                                                                                                               \
  static void NAME##_node(const REAL *a, int64_t y, REAL nu, REAL *z, int classes, REAL *pi, REAL *step) {        \
    for (int iteration = 0; iteration < MAX_NEWTON_STEPS; iteration++) {                                          \
      REAL top = z[0], sum = 0, largest = 0, size = 0, share = 0, pull = 0, distance = 0, promised = 0, all = 0;  \
      for (int c = 1; c < classes; c++) top = z[c] > top ? z[c] : top;                                            \
      for (int c = 0; c < classes; c++) sum += pi[c] = EXP(z[c] - top);                                           \
      for (int c = 0; c < classes; c++) {                                                                         \
        pi[c] /= sum;                                                                                             \
        const REAL gap = z[c] - a[c], g = pi[c] + nu * gap - (c == y), weight = 1 / (pi[c] + nu);                 \
        const REAL extent = (z[c] < 0 ? -z[c] : z[c]) + (a[c] < 0 ? -a[c] : a[c]);                                \
        largest = (g < 0 ? -g : g) > largest ? (g < 0 ? -g : g) : largest;                                        \
        size = extent > size ? extent : size;                                                                     \
        distance += gap * gap;                                                                                    \
        all += g;                                                                                                 \
        step[c] = weight * g;                                                                                     \
        share += pi[c] * weight;                                                                                  \
        pull += pi[c] * step[c];                                                                                  \
      }                                                                                                           \
      if (all != all) { /* NaN must show */                                                                       \
        for (int c = 0; c < classes; c++) z[c] = all;                                                             \
        return;                                                                                                   \
      }                                                                                                           \
      if (largest <= 4 * EPS * (1 + (nu + (REAL)0.25) * size)) return;                                            \
      const REAL correction = pull / (nu * share);                                                                \
      REAL high = -INFINITY, low = INFINITY;                                                                      \
      for (int c = 0; c < classes; c++) {                                                                         \
        step[c] += pi[c] / (pi[c] + nu) * correction;                                                             \
        promised += (pi[c] + nu * (z[c] - a[c]) - (c == y)) * step[c];                                            \
        high = step[c] > high ? step[c] : high;                                                                   \
        low = step[c] < low ? step[c] : low;                                                                      \
      }                                                                                                           \
      const REAL spread = high - low;                                                                             \
      REAL damping = spread > (REAL)1e-6 ? LOG1P(spread) / spread : 1;                                            \
      if (spread > 1) {                                                                                           \
        const REAL now = top + LOG(sum) - z[y] + (REAL)0.5 * nu * distance;                                       \
        for (REAL t = 1; t > damping; t /= 4)                                                                     \
          if (now - NAME##_objective(z, step, t, a, y, nu, classes) >= (REAL)0.1 * t * promised) damping = t;     \
      }                                                                                                           \
      for (int c = 0; c < classes; c++) z[c] -= damping * step[c];                                                \
    }                                                                                                             \
  }                                                                                                               \
  EXPORT int NAME(const REAL *a, const int64_t *y, double nu, REAL *z, int64_t nodes, int64_t classes) {          \
    REAL pi[MAX_CLASSES], step[MAX_CLASSES];                                                                      \
    if (classes > MAX_CLASSES) return 1;                                                                          \
    for (int64_t i = 0; i < nodes; i++)                                                                           \
      NAME##_node(a + i * classes, y[i], (REAL)nu, z + i * classes, (int)classes, pi, step);                      \
    return 0;                                                                                                     \
  }

DEFINE_NEWTON(float, pdadmm_newton_float32, expf, logf, log1pf, FLT_EPSILON)
DEFINE_NEWTON(double, pdadmm_newton_float64, exp, log, log1p, DBL_EPSILON)
