// Quantize and pack, unpack and dequantize, one sweep each way; codec.h tells what runs before.
#include "codec.h"

__device__ __forceinline__ unsigned mix(unsigned h) { // as in noise.py
  h = (h ^ h >> 16) * 0x7feb352du;
  h = (h ^ h >> 15) * 0x846ca68bu;
  return h ^ h >> 16;
}

struct Noise {
  index_t first;
  unsigned word0, word1;
  __device__ float operator()(index_t at) const {
    unsigned long long index = (unsigned long long)(first + at);
    unsigned h = mix((unsigned)index ^ word0);
    h = mix(h + word1 + (unsigned)(index >> 32) * 0x9e3779b9u);
    return (float)(h >> 8) * 0x1p-24f;
  }
};

// The grids of a thread's four columns, halved where they are wide.
template <typename T> struct Table {
  T lo[4], step[4], half[4];
  __device__ Table(const T *scale, index_t first, index_t columns, index_t pairs, T top) {
    unsigned column = (unsigned)first % (unsigned)columns; // both below 2^31
#pragma unroll
    for (int i = 0; i < 4; i++) {
      T l = scale[column], s = scale[pairs + column];
      column = column + 1 < columns ? column + 1 : 0;
      half[i] = halving(l, s, top);
      lo[i] = Exact<T>::mul(l, half[i]);
      step[i] = Exact<T>::mul(s, half[i]);
    }
  }
  // In whole numbers 0 .. top, ties to even; with noise u in [0, 1) up with the probability of the fraction.
  __device__ __forceinline__ T code(T d, int i, T top, bool stochastic, float u) const {
    T t = Exact<T>::sub(Exact<T>::mul(d, half[i]), lo[i]);
    t = Exact<T>::div(t, step[i] > (T)0 ? step[i] : (T)1);
    t = t > (T)0 ? t : (T)0;
    t = t < top ? t : top;
    if (!stochastic) return rint(t);
    T whole = floor(t);
    return whole + ((T)u < Exact<T>::sub(t, whole) ? (T)1 : (T)0);
  }
  __device__ __forceinline__ T point(T code, int i) const {
    T x = Exact<T>::add(Exact<T>::mul(code, step[i]), lo[i]);
    return half[i] == (T)1 ? x : Exact<T>::mul(x, (T)2);
  }
};

// `size` bytes of a word, lower ones first, at any address; one access where it is whole and aligned.
__device__ __forceinline__ void write_word(unsigned char *to, unsigned long long word, int size, bool whole) {
  if (whole && size == 8) *reinterpret_cast<unsigned long long *>(to) = word;
  else if (whole && size == 4) *reinterpret_cast<unsigned *>(to) = (unsigned)word;
  else if (whole && size == 2) *reinterpret_cast<unsigned short *>(to) = (unsigned short)word;
  else
    for (int i = 0; i < size; i++) to[i] = (unsigned char)(word >> 8 * i);
}

__device__ __forceinline__ unsigned long long read_word(const unsigned char *from, int size, bool whole) {
  if (whole && size == 8) return *reinterpret_cast<const unsigned long long *>(from);
  if (whole && size == 4) return *reinterpret_cast<const unsigned *>(from);
  if (whole && size == 2) return *reinterpret_cast<const unsigned short *>(from);
  unsigned long long word = 0;
  for (int i = 0; i < size; i++) word |= (unsigned long long)from[i] << 8 * i;
  return word;
}

template <typename T, int W> __device__ __forceinline__ void put(T *to, index_t left, const Pack<T, 4> &pack) {
  if (W > 1 && left >= 4) {
#pragma unroll
    for (int i = 0; i < 4; i += W) {
      Pack<T, W> part;
#pragma unroll
      for (int j = 0; j < W; j++) part[j] = pack[i + j];
      store<W>(to + i, part);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < left) to[i] = pack[i];
  }
}

// A thread's next four numbers and what it needs to write them.
template <typename T> struct Group {
  Pack<T, 4> x, reference;
  index_t at, left; // left <= 0: none
};

template <typename T, int W>
__device__ __forceinline__ Group<T> take(const T *x, const T *reference, index_t row, index_t super_rows,
                                         index_t lanes, index_t lane, index_t count) {
  Group<T> group;
  group.at = (row * lanes + lane) * 4;
  group.left = row < super_rows && lane < lanes ? count - group.at : 0;
  if (group.left > 0) {
    group.x = fetch<T, W>(x, group.at, group.left);
    if (reference) group.reference = fetch<T, W>(reference, group.at, group.left);
  }
  return group;
}

// value may be x or reference: a thread reads its group before it writes it, and the next one already on its way is
// another one.
template <typename T, int W>
__device__ void encode(const T *x, const T *reference, T *value, unsigned char *codes, const T *scale,
                       const int *status, index_t count, index_t lanes, index_t columns, index_t pairs, index_t bits,
                       index_t levels, index_t stochastic, index_t word0, index_t word1, index_t first,
                       index_t codes_aligned) {
  if (*status != DONE) return;
  Place place(lanes);
  T top = (T)(levels - 1);
  Table<T> table(scale, place.lane * 4, columns, pairs, top);
  Noise noise{first, (unsigned)word0, (unsigned)word1};
  int width = (int)bits;
  // threads of this thread's warp; the last warp of a block may be smaller
  unsigned mask = threadIdx.x / 32 < blockDim.x / 32 ? WARP : (1u << blockDim.x % 32) - 1;
  index_t super_rows = (count + 4 * lanes - 1) / (4 * lanes), stride = (index_t)gridDim.x * place.rows;
  index_t base = (index_t)blockIdx.x * place.rows; // the same for the whole block, so that warps stay together
  auto next = take<T, W>(x, reference, base + place.row, super_rows, lanes, place.lane, count);
  for (; base < super_rows; base += stride) {
    auto group = next;
    next = take<T, W>(x, reference, base + stride + place.row, super_rows, lanes, place.lane, count);
    unsigned long long word = 0;
    if (group.left > 0) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        T d = reference ? Exact<T>::sub(group.x[i], group.reference[i]) : group.x[i];
        T code = table.code(d, i, top, stochastic, stochastic ? noise(group.at + i) : 0.0f);
        if (i < group.left) word |= (unsigned long long)(unsigned)code << width * i;
        T point = table.point(code, i);
        group.x[i] = reference ? Exact<T>::add(group.reference[i], point) : point;
      }
      if (value) put<T, W>(value + group.at, group.left, group.x);
    }
    if (!codes) continue;
    if (width == 1) { // four codes are half a byte: the even thread of a pair writes it
      unsigned upper = __shfl_down_sync(mask, (unsigned)word, 1);
      if (group.left > 0 && threadIdx.x % 2 == 0) codes[group.at / 8] = (unsigned char)(word | upper << 4);
    } else if (group.left > 0) {
      int size = (int)((group.left < 4 ? group.left : 4) * width + 7) / 8;
      write_word(codes + group.at / 4 * width / 2, word, size, codes_aligned && group.left >= 4);
    }
  }
}

template <typename T, int W>
__device__ void decode(const unsigned char *codes, T *value, const T *scale, const int *status, index_t count,
                       index_t lanes, index_t columns, index_t pairs, index_t bits, index_t levels, index_t add,
                       index_t codes_aligned) {
  if (*status != DONE) return;
  Place place(lanes);
  Table<T> table(scale, place.lane * 4, columns, pairs, (T)(levels - 1));
  index_t super_rows = (count + 4 * lanes - 1) / (4 * lanes);
  unsigned code_mask = (1u << bits) - 1;
  for (index_t row = (index_t)blockIdx.x * place.rows + place.row; row < super_rows && place.lane < lanes;
       row += (index_t)gridDim.x * place.rows) {
    index_t at = (row * lanes + place.lane) * 4, left = count - at;
    if (left <= 0) continue;
    int size = (int)((left < 4 ? left : 4) * bits + 7) / 8;
    unsigned long long word = read_word(codes + at * bits / 8, size, codes_aligned && left >= 4);
    if (bits == 1 && at % 8) word >>= 4;
    Pack<T, 4> was, now;
    if (add) was = fetch<T, W>(value, at, left);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      now[i] = table.point((T)((unsigned)(word >> bits * i) & code_mask), i);
      if (add) now[i] = Exact<T>::add(was[i], now[i]);
    }
    put<T, W>(value + at, left, now);
  }
}

#define SWEEPS(T, W)                                                                                             \
  KERNEL(codec_encode_##T##_##W, const T *x, const T *reference, T *value, unsigned char *codes, const T *scale, \
         const int *status, index_t count, index_t lanes, index_t columns, index_t pairs, index_t bits,          \
         index_t levels, index_t stochastic, index_t word0, index_t word1, index_t first,                        \
         index_t codes_aligned) {                                                                                \
    encode<T, W>(x, reference, value, codes, scale, status, count, lanes, columns, pairs, bits, levels,          \
                 stochastic, word0, word1, first, codes_aligned);                                                \
  }                                                                                                              \
  KERNEL(codec_decode_##T##_##W, const unsigned char *codes, T *value, const T *scale, const int *status,        \
         index_t count, index_t lanes, index_t columns, index_t pairs, index_t bits, index_t levels,             \
         index_t add, index_t codes_aligned) {                                                                   \
    decode<T, W>(codes, value, scale, status, count, lanes, columns, pairs, bits, levels, add, codes_aligned);   \
  }
SWEEPS(float, 4)
SWEEPS(float, 1)
SWEEPS(double, 2)
SWEEPS(double, 1)
