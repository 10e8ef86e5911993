#include "dispatch.h"

#include <cstring>

namespace openrec {

#define OPENREC_LEVEL(isa) \
  namespace isa {          \
  Kernels kernels();       \
  }
#if defined(OPENREC_X86_LEVELS)
OPENREC_LEVEL(avx512)
OPENREC_LEVEL(avx2)
#endif
OPENREC_LEVEL(baseline)

namespace {

struct Level {
  Kernels kernels;
  bool supported;
};

struct Levels {
  Level list[3];
  int count = 0, chosen = 0;

  void add(const Kernels& k, bool supported) { list[count++] = {k, supported}; }
  bool choose(const char* name) {
    for (int i = 0; i < count; ++i)
      if (list[i].supported && !std::strcmp(name, list[i].kernels.name)) {
        chosen = i;
        return true;
      }
    return false;
  }
  Levels() {
#if defined(OPENREC_X86_LEVELS)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    add(avx512::kernels(), avx512);
    add(avx2::kernels(), avx2);
#endif
    add(baseline::kernels(), true);
    while (!list[chosen].supported) ++chosen;  // best first, and the last always runs
    if (const char* forced = std::getenv("OPENREC_CPU_ISA")) choose(forced);  // Python warns about an unknown name
  }
};

Levels& levels() {
  static Levels all;
  return all;
}

}  // namespace

const Kernels& kernels() { return levels().list[levels().chosen].kernels; }

}  // namespace openrec

// For openrec/ops/_load.py, which calls them through ctypes.
#define OPENREC_EXPORT extern "C" __attribute__((visibility("default")))

OPENREC_EXPORT const char* openrec_cpu_isa() { return openrec::kernels().name; }
OPENREC_EXPORT int openrec_set_cpu_isa(const char* name) { return openrec::levels().choose(name); }
OPENREC_EXPORT const char* openrec_cpu_level(int i) {  // the i-th level this machine can run, or nullptr
  for (int k = 0; k < openrec::levels().count; ++k)
    if (openrec::levels().list[k].supported && i-- == 0) return openrec::levels().list[k].kernels.name;
  return nullptr;
}
// One number for schemas and meanings: raised with every change that an older openrec/ops could not live with.
OPENREC_EXPORT int openrec_interface() { return 1; }
#if !defined(OPENREC_BUILD_INFO)
#define OPENREC_BUILD_INFO "unknown build"
#endif
OPENREC_EXPORT const char* openrec_build_info() { return OPENREC_BUILD_INFO; }
