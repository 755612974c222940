// What the kernels share. They are compiled at run time, without any standard header, so none is included; without
// fused multiply-adds, so that element-wise results equal those of plain torch; for blocks of at most 256 threads.
// Every kernel argument takes 8 bytes: a pointer, a long long or a double.
#ifndef CUDA_EMULATOR
#define KERNEL(name, ...) extern "C" __global__ void __launch_bounds__(256) name(__VA_ARGS__)

__device__ __forceinline__ float from_half(unsigned short h) {
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
}

__device__ __forceinline__ unsigned short to_half(float f) {
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
}

// The launch's shared memory, from a multiple of 16 bytes on.
template <typename T> __device__ __forceinline__ T *shared_memory() {
  extern __shared__ __align__(16) unsigned char memory[];
  return reinterpret_cast<T *>(memory);
}

// Writes 16 or 8 bytes of global memory at once.
__device__ __forceinline__ void store_words(void *to, const unsigned (&w)[4]) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]),
               "r"(w[2]), "r"(w[3])
               : "memory");
}

__device__ __forceinline__ void store_words(void *to, const unsigned (&w)[2]) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(__cvta_generic_to_global(to)), "r"(w[0]), "r"(w[1]) : "memory");
}
#endif

typedef long long index_t;
enum : unsigned { WARP = 0xffffffffu }; // all lanes

template <typename T> struct Real;
template <> struct Real<float> {
  static __device__ float max() { return 3.40282347e38f; }
  static __device__ float tiny() { return 1.17549435e-38f; }
  static __device__ float eps() { return 1.1920929e-7f; }
};
template <> struct Real<double> {
  static __device__ double max() { return 1.7976931348623157e308; }
  static __device__ double tiny() { return 2.2250738585072014e-308; }
  static __device__ double eps() { return 2.220446049250313e-16; }
};

// W numbers that move as one access: 16 bytes where W * sizeof(T) is 16.
template <typename T, int W> struct alignas(W * sizeof(T)) Pack {
  T v[W];
  __device__ T &operator[](int i) { return v[i]; }
  __device__ const T &operator[](int i) const { return v[i]; }
};

template <int W, typename T> __device__ __forceinline__ Pack<T, W> load(const T *from) {
  return *reinterpret_cast<const Pack<T, W> *>(from);
}

template <int W, typename T> __device__ __forceinline__ void store(T *to, const Pack<T, W> &pack) {
  *reinterpret_cast<Pack<T, W> *>(to) = pack;
}

// How many numbers a generic lambda takes at once.
template <int N> struct Width {
  static constexpr int value = N;
};

// f of a layer, without a branch; NaN passes through, and minus infinity becomes 0 where torch's clamp has it so.
template <typename T> __device__ __forceinline__ T activate(T z, T slope) {
  T below = slope == (T)0 ? (T)0 : slope * z;
  return z < (T)0 ? below : z;
}

// Reductions over groups of L neighbouring lanes; every lane gets the same bits. All 32 lanes of a warp take part.
template <int L, typename T> __device__ __forceinline__ T group_sum(T x) {
#pragma unroll
  for (int d = L / 2; d; d /= 2) x += __shfl_xor_sync(WARP, x, d);
  return x;
}

template <int L, typename T> __device__ __forceinline__ T group_max(T x) {
#pragma unroll
  for (int d = L / 2; d; d /= 2) {
    T other = __shfl_xor_sync(WARP, x, d);
    x = other > x ? other : x;
  }
  return x;
}
