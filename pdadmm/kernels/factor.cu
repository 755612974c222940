// A^-1 and B A^-1 for many small symmetric positive definite A, the systems of the p- and W-updates; reference:
// spd_inverse and spd_solve of pdadmm/admm/updates.py in plain torch.
//
// A block holds one matrix in shared memory: its lower triangle in tiles of 16 x 16, continued by the identity to
// whole tiles. A = L L^T is found tile column by tile column, with two barriers for each: the first warp has the next
// diagonal tile ready while the others still take the last column off the rest. A pivot that is not positive becomes
// NaN, which then reaches every number of this matrix and of no other. All sums have an order given by m alone. Their
// multiply-adds are fused by name, since the sources are compiled without contraction.
#include "common.h"

// X x Y numbers of a tile are one thread's; STRIDE numbers lie from tile to tile, so that neighbours differ in bank.
enum { TILE = 16, STRIDE = TILE * TILE + TILE, X = 8, Y = 4, THREADS = 256, PARTS = TILE * TILE / (X * Y) };

// Tile (i, j), j <= i, of A's `count` rows of tiles; rows from `count` on are whole, and lie behind the triangle.
template <typename T> struct Tiles {
  T *memory;
  int count;
  __device__ __forceinline__ T *operator()(int i, int j) const {
    int before = i < count ? i * (i + 1) / 2 : count * (count + 1) / 2 + (i - count) * count;
    return memory + (before + j) * STRIDE;
  }
};

// The row of the p-th tile of a triangle; the root is exact where it is a whole number.
__device__ __forceinline__ int row_of(int p) { return (int)((sqrt(8.0f * (float)p + 1.0f) - 1.0f) * 0.5f); }

template <int N, typename T> __device__ __forceinline__ void read(T (&to)[N], const T *from) {
  constexpr int W = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += W) {
    auto pack = load<W>(from + i);
#pragma unroll
    for (int e = 0; e < W; e++) to[i + e] = pack[e];
  }
}

template <int N, typename T> __device__ __forceinline__ void write(T *to, const T (&from)[N]) {
  constexpr int W = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < N; i += W) {
    Pack<T, W> pack;
#pragma unroll
    for (int e = 0; e < W; e++) pack[e] = from[i + e];
    store<W>(to + i, pack);
  }
}

// Tile (i, j) <- scale A + shift I at [x TILE + y] with x in block j, y in block i: only A's upper triangle is read.
template <typename T>
__device__ __forceinline__ void read_matrix(const Tiles<T> &tiles, const T *A, int m, T scale, T shift) {
  int x = threadIdx.x / TILE, y = threadIdx.x % TILE;
  for (int i = 0; i < tiles.count; i++)
#pragma unroll 8
    for (int j = 0; j <= i; j++) {
      int row = j * TILE + x, column = i * TILE + y;
      int low = row < column ? row : column, high = row < column ? column : row;
      T value = high < m ? scale * A[(index_t)low * m + high] : (T)0;
      if (low == high) value = high < m ? value + shift : (T)1;
      tiles(i, j)[x * TILE + y] = value;
    }
}

// By one warp: tile <- L with tile - V^T V = L L^T, no V for 0; L's mirror image too, and 1 / L_rr on the diagonal.
// A lane has half of a row. Square roots come last: until then a column is L's times its pivot's root.
template <typename T> __device__ __forceinline__ void factor(T *tile, const T *V) {
  constexpr int HALF = TILE / 2;
  const T none = sqrt((T)-1);
  int lane = threadIdx.x % 32, r = lane % TILE, from = lane / TILE * HALF;
  T a[HALF], pivot = none;
  read(a, tile + r * TILE + from);
  if (V) {
#pragma unroll
    for (int t = 0; t < TILE; t++) {
      T v[HALF], own = V[t * TILE + r];
      read(v, V + t * TILE + from);
#pragma unroll
      for (int c = 0; c < HALF; c++) a[c] = fma(-own, v[c], a[c]);
    }
  }
#pragma unroll
  for (int j = 0; j < TILE; j++) {
    T column = a[j % HALF];
    int holders = j / HALF * TILE;
    T d = __shfl_sync(WARP, column, holders + j), own = __shfl_sync(WARP, column, holders + r);
    d = d > (T)0 && d <= Real<T>::max() ? d : none;
    pivot = r == j ? d : pivot;
    T ratio = own / d;
#pragma unroll
    for (int c = 0; c < HALF; c++) {
      if (HALF + c <= j) continue; // for both halves of the warp
      T other = __shfl_sync(WARP, column, holders + from + c);
      if (from + c > j) a[c] = fma(-ratio, other, a[c]);
    }
  }
  T root = (T)1 / sqrt(pivot);
#pragma unroll
  for (int c = 0; c < HALF; c++) {
    T scale = __shfl_sync(WARP, root, from + c);
    if (from + c < r) tile[r * TILE + from + c] = tile[(from + c) * TILE + r] = a[c] * scale;
    if (from + c == r) tile[r * TILE + r] = root;
  }
}

// x <- L^-1 x, L as factor() leaves it
template <typename T> __device__ __forceinline__ void forward(T (&x)[TILE], const T *L) {
#pragma unroll
  for (int t = 0; t < TILE; t++) {
    T row[TILE];
    read(row, L + t * TILE);
    x[t] *= row[t];
#pragma unroll
    for (int c = t + 1; c < TILE; c++) x[c] = fma(-x[t], row[c], x[c]);
  }
}

// x <- L^-T x
template <typename T> __device__ __forceinline__ void backward(T (&x)[TILE], const T *L) {
#pragma unroll
  for (int c = TILE - 1; c >= 0; c--) {
    T row[TILE];
    read(row, L + c * TILE);
    x[c] *= row[c];
#pragma unroll
    for (int t = 0; t < c; t++) x[t] = fma(-x[c], row[t], x[t]);
  }
}

// A thread's vector of a tile: one of its columns.
template <typename T> __device__ __forceinline__ void get(T (&x)[TILE], const T *column) {
#pragma unroll
  for (int t = 0; t < TILE; t++) x[t] = column[t * TILE];
}

template <typename T> __device__ __forceinline__ void put(T *column, const T (&x)[TILE]) {
#pragma unroll
  for (int t = 0; t < TILE; t++) column[t * TILE] = x[t];
}

// sum[i][j] = sum over t of U(t, x + i) V(t, y + j), of two tiles; U(t, x) is U[x TILE + t] where it lies ACROSS.
template <bool ACROSS, typename T>
__device__ __forceinline__ void multiply(T (&sum)[X][Y], const T *U, int x, const T *V, int y) {
  constexpr int W = 16 / sizeof(T);
#pragma unroll
  for (int i = 0; i < X; i++)
#pragma unroll
    for (int j = 0; j < Y; j++) sum[i][j] = (T)0;
#pragma unroll
  for (int t = 0; t < TILE; t += W) {
    T u[W][X], v[W][Y];
    if constexpr (ACROSS) {
#pragma unroll
      for (int i = 0; i < X; i++) {
        auto pack = load<W>(U + (x + i) * TILE + t);
#pragma unroll
        for (int s = 0; s < W; s++) u[s][i] = pack[s];
      }
    }
#pragma unroll
    for (int s = 0; s < W; s++) {
      if constexpr (!ACROSS) read(u[s], U + (t + s) * TILE + x);
      read(v[s], V + (t + s) * TILE + y);
#pragma unroll
      for (int i = 0; i < X; i++)
#pragma unroll
        for (int j = 0; j < Y; j++) sum[i][j] = fma(u[s][i], v[s][j], sum[i][j]);
    }
  }
}

// tile <- sum, or tile <- (fresh ? 0 : tile) + sum, or with - for +; this thread's part
template <typename T>
__device__ __forceinline__ void join(T (&sum)[X][Y], const T *tile, int x, int y, bool fresh, bool minus) {
#pragma unroll
  for (int i = 0; i < X; i++) {
    T old[Y];
    read(old, tile + (x + i) * TILE + y);
#pragma unroll
    for (int j = 0; j < Y; j++) {
      T value = minus ? -sum[i][j] : sum[i][j];
      sum[i][j] = fresh ? value : old[j] + value;
    }
  }
}

template <typename T> __device__ __forceinline__ void keep(const T (&sum)[X][Y], T *tile, int x, int y) {
#pragma unroll
  for (int i = 0; i < X; i++) write(tile + (x + i) * TILE + y, sum[i]);
}

// out[row + i][column + j] <- sum[i][j] inside m x m; ACROSS: sum[j][i]. 16 bytes at a time where rows allow it.
template <bool ACROSS, typename T>
__device__ __forceinline__ void emit(const T (&sum)[X][Y], T *out, int m, int row, int column) {
  constexpr int W = 16 / sizeof(T), ROWS = ACROSS ? Y : X, COLUMNS = ACROSS ? X : Y;
  const bool whole = m % W == 0 && (index_t)out % 16 == 0;
#pragma unroll
  for (int i = 0; i < ROWS; i++)
#pragma unroll
    for (int j = 0; j < COLUMNS; j += W) {
      Pack<T, W> pack;
#pragma unroll
      for (int e = 0; e < W; e++) pack[e] = ACROSS ? sum[j + e][i] : sum[i][j + e];
      T *to = out + (index_t)(row + i) * m + column + j;
      if (row + i >= m) continue;
      if (whole) {
        if (column + j < m) store<W>(to, pack);
      } else {
#pragma unroll
        for (int e = 0; e < W; e++)
          if (column + j + e < m) to[e] = pack[e];
      }
    }
}

// Symmetric block elimination in place. After step k tile (i, j) has: for j > k, what is left of A; for i > k >= j, the
// row L_i. takes of L^-1 so far, x in block i from now on; for i <= k, the inverse of A's first k + 1 blocks of rows.
// Behind the triangle lies a row of tiles V: of step k, V_i = L_ik^T for i > k and (L^-1)_ki for i <= k.
template <typename T> __device__ void inverse(const T *A, T *out, int m, T scale, T shift) {
  const Tiles<T> tiles = {shared_memory<T>(), (m + TILE - 1) / TILE};
  const int count = tiles.count, x = threadIdx.x % PARTS / 4 * X, y = threadIdx.x % 4 * Y;
  A += (index_t)blockIdx.x * m * m, out += (index_t)blockIdx.x * m * m;
  read_matrix(tiles, A, m, scale, shift);
  for (int k = -1; k < count; k++) { // of -1 there is the first factor alone
    for (int v = threadIdx.x; k >= 0 && v < count * TILE; v += THREADS) {
      int i = v / TILE, c = v % TILE;
      T column[TILE];
      get(column, tiles(i > k ? i : k, i > k ? k : i) + c);
      if (i == k) {
#pragma unroll
        for (int t = 0; t < TILE; t++) column[t] = t == c ? (T)1 : (T)0;
      }
      forward(column, tiles(k, k));
      put(tiles(count, i) + c, column);
    }
    __syncthreads();
    const bool last = k + 1 == count;
    const int first = last ? 0 : 32; // of the threads that multiply
    if (threadIdx.x < first) factor(tiles(k + 1, k + 1), k < 0 ? nullptr : tiles(count, k + 1));
    if (threadIdx.x >= first && k >= 0)
      for (int p = (threadIdx.x - first) / PARTS; p < count * (count + 1) / 2; p += (THREADS - first) / PARTS) {
        int i = row_of(p), j = p - i * (i + 1) / 2;
        if (i == k + 1 && j == i) continue;
        T sum[X][Y], *tile = tiles(i, j);
        multiply<false>(sum, tiles(count, j > k ? j : i), x, tiles(count, j > k ? i : j), y);
        join(sum, tile, x, y, i == k || j == k, i > k);
        if (last) {
          emit<false>(sum, out, m, i * TILE + x, j * TILE + y);
          if (j < i) emit<true>(sum, out, m, j * TILE + y, i * TILE + x);
        } else {
          keep(sum, tile, x, y);
        }
      }
    __syncthreads();
  }
}

// B's rows from `row` on to or from `bands` rows of tiles behind the triangle, [x TILE + y] with y in a row of tiles
// and x in a column; lanes go along rows of B by eights, which are whole sectors.
template <bool OUT, typename T>
__device__ __forceinline__ void move_rows(const Tiles<T> &tiles, const T *from, T *to, int row, int n, int m,
                                          int bands) {
  int x = threadIdx.x % 8 + threadIdx.x / 128 * 8, y = threadIdx.x / 8 % TILE;
  for (int b = 0; b < bands; b++)
#pragma unroll 8
    for (int j = 0; j < tiles.count; j++) {
      int i = row + b * TILE + y, column = j * TILE + x;
      bool inside = i < n && column < m;
      index_t at = (index_t)i * m + column;
      T *cell = tiles(tiles.count + b, j) + x * TILE + y;
      if constexpr (OUT) {
        if (inside) to[at] = *cell;
      } else {
        *cell = inside ? from[at] : (T)0;
      }
    }
}

// tile (i, j) -= the product of tiles, this thread's part
template <bool ACROSS, typename T>
__device__ __forceinline__ void subtract(T *tile, const T *U, const T *V) {
  const int x = threadIdx.x % PARTS / 4 * X, y = threadIdx.x % 4 * Y;
  T sum[X][Y];
  multiply<ACROSS>(sum, U, x, V, y);
  join(sum, tile, x, y, false, true);
  keep(sum, tile, x, y);
}

// Y = B L^-T along with the factor, as if B were further rows of A; then Y L^-1. A block has `bands` tiles of rows of
// B and finds L for itself; what it does to a row does not depend on the others.
template <typename T> __device__ void solve(const T *A, const T *B, T *out, index_t n, int m, int bands) {
  const Tiles<T> tiles = {shared_memory<T>(), (m + TILE - 1) / TILE};
  const int count = tiles.count, slot = threadIdx.x / PARTS;
  const index_t blocks = (n + bands * TILE - 1) / (bands * TILE), matrix = blockIdx.x / blocks;
  const int row = (int)(blockIdx.x % blocks) * bands * TILE;
  A += matrix * m * m, B += matrix * n * m, out += matrix * n * m;
  read_matrix(tiles, A, m, (T)1, (T)0);
  move_rows<false>(tiles, B, out, row, (int)n, m, bands);
  for (int k = -1; k < count; k++) { // of -1 there is the first factor alone
    const int rest = count - k - 1, triangle = rest * (rest + 1) / 2;
    for (int v = threadIdx.x; k >= 0 && v < (rest + bands) * TILE; v += THREADS) {
      T column[TILE], *at = tiles(k + 1 + v / TILE, k) + v % TILE;
      get(column, at);
      forward(column, tiles(k, k));
      put(at, column);
    }
    __syncthreads();
    if (rest && threadIdx.x < 32) factor(tiles(k + 1, k + 1), k < 0 ? nullptr : tiles(k + 1, k));
    if (threadIdx.x >= 32 && k >= 0) // tile 0 of the triangle is the factor's
      for (int p = slot - 3; p < triangle + bands * rest; p += (THREADS - 32) / PARTS) {
        int i = p < triangle ? row_of(p) : rest + (p - triangle) / rest;
        int j = p < triangle ? p - i * (i + 1) / 2 : (p - triangle) % rest;
        i += k + 1, j += k + 1;
        subtract<false>(tiles(i, j), tiles(j, k), tiles(i, k));
      }
    __syncthreads();
  }
  for (int k = count - 1; k >= 0; k--) {
    for (int v = threadIdx.x; v < bands * TILE; v += THREADS) {
      T column[TILE], *at = tiles(count + v / TILE, k) + v % TILE;
      get(column, at);
      backward(column, tiles(k, k));
      put(at, column);
    }
    __syncthreads();
    for (int p = slot; p < bands * k; p += THREADS / PARTS) {
      int b = count + p / k, j = p % k;
      subtract<true>(tiles(b, j), tiles(k, j), tiles(b, k));
    }
    __syncthreads();
  }
  move_rows<true>(tiles, B, out, row, (int)n, m, bands);
}

#define KERNELS(T)                                                                                                 \
  KERNEL(spd_inverse_##T, const T *A, T *out, index_t m, double scale, double shift) {                              \
    inverse<T>(A, out, (int)m, (T)scale, (T)shift);                                                                 \
  }                                                                                                                 \
  KERNEL(spd_solve_##T, const T *A, const T *B, T *out, index_t n, index_t m, index_t bands) {                      \
    solve<T>(A, B, out, n, (int)m, (int)bands);                                                                     \
  }
KERNELS(float)
KERNELS(double)
