/* What the C kernels share: functions built for several instruction sets, and what ctypes may see. */

#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12 /* by what the processor can do; a name such as skylake-avx512 is Intel's alone */
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "avx2", "default")))
#else
#define CLONES __attribute__((target_clones("arch=skylake-avx512", "avx2", "default")))
#endif
#else
#define CLONES
#endif
#define EXPORT __attribute__((visibility("default")))
