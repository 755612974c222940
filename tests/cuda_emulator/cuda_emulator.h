// Runs CUDA kernels on the CPU for tests: every thread of a block is a fibre (ucontext), blocks run one after another.
//
// Fibres switch at barriers and warp operations alone, by setjmp and longjmp: swapcontext asks the kernel each time. Even blocks run their fibres forward, odd ones backward, so
// that a missing barrier shows. Threads of a warp that disagree about a barrier or about the mask of a warp operation
// end the launch with an error. Kernels are found by name (KERNEL registers them); every argument takes 8 bytes. Dynamic
// shared memory is all NaN as a block begins, and what is written past its end is noticed.
#pragma once
#define CUDA_EMULATOR

#undef _FORTIFY_SOURCE // its longjmp refuses to change stacks
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __device__
#define __forceinline__ inline
#define __restrict__
#define __shared__ static
#define KERNEL(name, ...)                                                                                        \
  void name(__VA_ARGS__);                                                                                        \
  static emulator::Registered registered_##name(#name, &name);                                                   \
  void name(__VA_ARGS__)

struct Dim3 {
  unsigned x, y, z;
};
static Dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

constexpr size_t STACK = 64 << 10;
constexpr int MAX_THREADS = 1024;
constexpr size_t MAX_SHARED = 227 << 10, GUARD = 4096; // bytes of dynamic shared memory, and beyond it

struct Warp {
  unsigned char slots[2][32][8]; // two turns: a lane that is ahead must not overwrite what others still read
  unsigned masks[2];
  int arrived = 0;
  unsigned generation = 0;
};

struct Fibre {
  ucontext_t context; // where it starts
  jmp_buf jump;       // where it goes on
  bool started;
  std::vector<unsigned char> stack;
  unsigned lane_turn; // warp operations so far
  bool done;
};

static jmp_buf scheduler;
static std::vector<Fibre> fibres(MAX_THREADS);
static Warp warps[MAX_THREADS / 32];
static int alive, at_barrier, current;
static unsigned barrier_generation;
static bool progress;
static std::string error;
static std::function<void()> body;
alignas(128) static unsigned char shared[MAX_SHARED + GUARD]; // as a block finds it every number is NaN
static size_t shared_size;

__attribute__((noinline)) void yield() {
  if (!_setjmp(fibres[current].jump)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) void resume() {
  if (_setjmp(scheduler)) return;
  Fibre &fibre = fibres[current];
  if (fibre.started) _longjmp(fibre.jump, 1);
  fibre.started = true;
  setcontext(&fibre.context);
}

inline void fail(const char *what) {
  if (error.empty()) error = what;
  for (;;) yield(); // the scheduler gives the launch up
}

inline void release_barrier() {
  if (alive == 0 || at_barrier < alive) return;
  at_barrier = 0;
  barrier_generation++;
}

inline void entry() {
  body();
  fibres[current].done = true;
  alive--;
  progress = true;
  release_barrier();
  yield();
}

inline void barrier() {
  unsigned generation = barrier_generation;
  at_barrier++;
  progress = true;
  release_barrier();
  while (generation == barrier_generation) yield();
}

// Deposits `value`, waits for all lanes of `mask`, returns where the deposits lie.
template <typename T> const unsigned char (*exchange(unsigned mask, T value))[8] {
  static_assert(sizeof(T) <= 8, "a lane passes at most 8 bytes");
  int lane = current % 32;
  Warp &warp = warps[current / 32];
  unsigned turn = fibres[current].lane_turn++ & 1, generation = warp.generation;
  unsigned existing = blockDim.x - current / 32 * 32 >= 32 ? ~0u : (1u << (blockDim.x % 32)) - 1;
  if (!(mask >> lane & 1)) fail("a lane is missing from its own mask");
  if (mask & ~existing) fail("a mask names lanes that do not exist");
  if (warp.arrived == 0) warp.masks[turn] = mask;
  if (warp.masks[turn] != mask) fail("lanes of a warp pass different masks");
  std::memcpy(warp.slots[turn][lane], &value, sizeof(T));
  progress = true;
  if (++warp.arrived == __builtin_popcount(mask)) {
    warp.arrived = 0;
    warp.generation++;
  }
  while (generation == warp.generation) yield();
  return warp.slots[turn];
}

template <typename T> T taken(const unsigned char (*slots)[8], int lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

inline void run_block() {
  unsigned threads = blockDim.x;
  bool backward = (blockIdx.x + blockIdx.y) % 2;
  alive = threads, at_barrier = 0;
  for (Warp &warp : warps) warp = Warp();
  if (shared_size) std::memset(shared, 0xff, shared_size + GUARD);
  for (unsigned t = 0; t < threads; t++) {
    Fibre &fibre = fibres[t];
    fibre.stack.resize(STACK);
    fibre.started = fibre.done = false, fibre.lane_turn = 0;
    getcontext(&fibre.context);
    fibre.context.uc_stack.ss_sp = fibre.stack.data();
    fibre.context.uc_stack.ss_size = STACK;
    fibre.context.uc_link = nullptr;
    makecontext(&fibre.context, entry, 0);
  }
  while (alive && error.empty()) {
    progress = false;
    for (unsigned i = 0; i < threads && error.empty(); i++) {
      unsigned t = backward ? threads - 1 - i : i;
      if (fibres[t].done) continue;
      current = t;
      threadIdx = {t, 0, 0};
      resume();
    }
    if (!progress && alive && error.empty()) error = "threads wait for each other: a barrier not all of them reach";
  }
  for (size_t i = shared_size; shared_size && i < shared_size + GUARD; i++)
    if (shared[i] != 0xff && error.empty()) error = "a block wrote past the end of its shared memory";
}

inline std::map<std::string, std::function<void(void **)>> &kernels() {
  static std::map<std::string, std::function<void(void **)>> table;
  return table;
}

struct Registered {
  template <typename... A> Registered(const char *name, void (*kernel)(A...)) {
    static_assert(((sizeof(A) == 8) && ...), "a kernel argument takes 8 bytes");
    kernels()[name] = [kernel](void **args) { call(kernel, args, std::index_sequence_for<A...>()); };
    arity()[name] = sizeof...(A);
  }
  template <typename... A, size_t... I>
  static void call(void (*kernel)(A...), void **args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_const_t<A> *>(args[I])...);
  }
  static std::map<std::string, int> &arity() {
    static std::map<std::string, int> table;
    return table;
  }
};

} // namespace emulator

// Returns null, or a sentence about what went wrong.
extern "C" const char *emulator_launch(const char *name, unsigned grid_x, unsigned grid_y, unsigned threads,
                                       unsigned shared, int arguments, void **args) {
  using namespace emulator;
  auto found = kernels().find(name);
  if (found == kernels().end()) return "no such kernel";
  if (Registered::arity()[name] != arguments) return "a wrong number of arguments";
  if (threads == 0 || threads > 256 || grid_x == 0 || grid_y == 0 || grid_y > 65535) return "a wrong launch size";
  if (shared > MAX_SHARED) return "more shared memory than a block can have";
  error.clear();
  blockDim = {threads, 1, 1}, gridDim = {grid_x, grid_y, 1}, shared_size = shared;
  body = [&] { found->second(args); };
  for (unsigned y = 0; y < grid_y; y++)
    for (unsigned x = 0; x < grid_x; x++) {
      blockIdx = {x, y, 0};
      run_block();
      if (!error.empty()) return error.c_str();
    }
  return nullptr;
}

// The names of all kernels, separated by spaces.
extern "C" const char *emulator_kernels() {
  static std::string names;
  names.clear();
  for (auto &[name, kernel] : emulator::kernels()) names += name + " ";
  return names.c_str();
}

// The part of CUDA that the kernels use.

inline void __syncthreads() { emulator::barrier(); }

template <typename T> T __shfl_xor_sync(unsigned mask, T value, int distance) {
  int lane = emulator::current % 32;
  return emulator::taken<T>(emulator::exchange(mask, value), lane ^ distance);
}

template <typename T> T __shfl_down_sync(unsigned mask, T value, int distance) {
  int from = emulator::current % 32 + distance;
  auto slots = emulator::exchange(mask, value);
  return from < 32 && mask >> from & 1 ? emulator::taken<T>(slots, from) : value;
}

template <typename T> T __shfl_sync(unsigned mask, T value, int from) {
  return emulator::taken<T>(emulator::exchange(mask, value), from % 32);
}

inline int __any_sync(unsigned mask, int predicate) {
  auto slots = emulator::exchange(mask, predicate);
  for (int lane = 0; lane < 32; lane++)
    if (mask >> lane & 1 && emulator::taken<int>(slots, lane)) return 1;
  return 0;
}

template <typename T> T atomicMin(T *to, T value) {
  T old = *to;
  if (value < old) *to = value;
  return old;
}

template <typename To, typename From> To emulator_bits(From from) {
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }

using std::exp, std::fabs, std::floor, std::fma, std::log, std::log1p, std::rint, std::sqrt;

template <typename T> T *shared_memory() { return reinterpret_cast<T *>(emulator::shared); }

template <int N> void store_words(void *to, const unsigned (&words)[N]) {
  if ((uintptr_t)to % sizeof(words)) emulator::fail("a misaligned store");
  std::memcpy(to, words, sizeof(words));
}

inline float from_half(unsigned short h) {
  int exponent = h >> 10 & 31, digits = h & 1023;
  float size = exponent == 31  ? (digits ? NAN : INFINITY)
               : exponent == 0 ? std::ldexp((float)digits, -24)
                               : std::ldexp((float)(digits + 1024), exponent - 25);
  return h >> 15 ? -size : size;
}

inline unsigned short to_half(float f) { // to nearest, ties to even
  unsigned sign = std::signbit(f) ? 0x8000u : 0u;
  float size = std::fabs(f);
  if (std::isnan(f)) return 0x7e00;
  if (size >= 65520.0f) return (unsigned short)(sign | 0x7c00u);
  int exponent = size < 0x1p-14f ? -14 : std::ilogb(size);
  float unit = std::ldexp(1.0f, exponent - 10), digits = std::nearbyint(size / unit);
  unsigned bits = (unsigned)digits + (unsigned)(exponent + 14) * 1024u; // 2048 digits carry into the exponent
  return (unsigned short)(sign | bits);
}
