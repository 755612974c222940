// What the two ends of a message share: the same bits as pdadmm/quantize in plain torch (scale.py, packing.py,
// noise.py). Every operation is one correctly rounded one, as the torch path has it.
//
// encode: codec_range, for two levels codec_sums and codec_fold (twice each), codec_fit, codec_encode. decode:
// codec_header, codec_decode. The flat array is cut into groups of four numbers; a thread meets groups whose columns
// are always the same ones, so that it looks (lo, step) up once. `lanes` groups make a super-row, an even number, and a
// multiple of the columns long.
#include "common.h"

enum { DONE, NOT_FINITE };

template <typename T> struct Exact;
template <> struct Exact<float> {
  typedef unsigned Key;
  static constexpr int SIGN = 31;
  static constexpr Key INFINITE = 0x7f800000u;
  static __device__ Key bits(float x) { return __float_as_uint(x); }
  static __device__ float number(Key x) { return __uint_as_float(x); }
  static __device__ float add(float x, float y) { return __fadd_rn(x, y); }
  static __device__ float sub(float x, float y) { return __fsub_rn(x, y); }
  static __device__ float mul(float x, float y) { return __fmul_rn(x, y); }
  static __device__ float div(float x, float y) { return __fdiv_rn(x, y); }
  static __device__ double unit(Key) { return 1.0; }
};
template <> struct Exact<double> {
  typedef unsigned long long Key;
  static constexpr int SIGN = 63;
  static constexpr Key INFINITE = 0x7ff0000000000000ull;
  static __device__ Key bits(double x) { return (Key)__double_as_longlong(x); }
  static __device__ double number(Key x) { return __longlong_as_double((long long)x); }
  static __device__ double add(double x, double y) { return __dadd_rn(x, y); }
  static __device__ double sub(double x, double y) { return __dsub_rn(x, y); }
  static __device__ double mul(double x, double y) { return __dmul_rn(x, y); }
  static __device__ double div(double x, double y) { return __ddiv_rn(x, y); }
  // Keeps sums of very large numbers finite.
  static __device__ double unit(Key size) { return number(size) >= 0x1p900 ? 0x1p-100 : 1.0; }
};

template <typename T> __device__ T larger(T x, T y) { return x > y ? x : y; }

// 1/2 for pairs so wide that x - lo may overflow, 1 elsewhere; from what is transmitted alone.
template <typename T> __device__ T halving(T lo, T step, T top) {
  return larger((T)fabs(lo), Exact<T>::mul(step, top)) < Real<T>::max() / (T)4 ? (T)1 : (T)0.5;
}

// Where a thread stands: its group within a super-row, and the first column of that group.
struct Place {
  int row, rows;
  index_t lane;
  __device__ Place(index_t lanes) {
    int width = lanes < 256 ? (int)lanes : 256;
    row = threadIdx.x / width, rows = blockDim.x / width;
    lane = (index_t)blockIdx.y * width + threadIdx.x % width;
  }
};

// The numbers at `at`, `left` of them but at most four; zeros in place of what is missing.
template <typename T, int W>
__device__ __forceinline__ Pack<T, 4> fetch(const T *x, index_t at, index_t left) {
  Pack<T, 4> pack;
  if (W > 1 && left >= 4) {
#pragma unroll
    for (int i = 0; i < 4; i += W) {
      auto part = load<W>(x + at + i);
#pragma unroll
      for (int j = 0; j < W; j++) pack[i + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) pack[i] = i < left ? x[at + i] : (T)0;
  }
  return pack;
}
