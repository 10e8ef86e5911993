// Runs CUDA kernels on the CPU, for tests on machines without a GPU.
//
// Every CUDA thread of a block is a fiber with a stack of its own. A fiber runs until it meets __syncthreads or a warp
// shuffle and then lets the others run, so barriers, shuffles and shared memory behave as on a GPU, one block after the
// other. The order in which fibers are resumed can be turned round or shuffled: a missing barrier then changes results. A
// barrier that not all threads reach ends the program with a message. Only what csrc uses is here.
#pragma once

#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __grid_constant__

struct uint2 { uint32_t x, y; };
struct uint4 { uint32_t x, y, z, w; };
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace cuda_emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = 256 * 1024;

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fiber {
  State state;
  dim3 thread;
  int linear;
  unsigned shuffles;  // how many this lane has done: its parity picks the exchange buffer
  void* stack_pointer;
};

struct Machine {
  dim3 block_index, block_dim, grid_dim;
  std::vector<Fiber> fibers;
  std::vector<char> stacks;
  std::vector<unsigned char> shared;
  std::vector<uint64_t> exchange;  // [warp][parity][lane]
  Fiber* current = nullptr;
  void* main_stack_pointer = nullptr;
  void (*body)(void*) = nullptr;
  void* body_argument = nullptr;
  int order = 0;  // 0 ascending, 1 descending, 2 and more: pseudo-random with this seed
};

Machine& machine();
void yield_to_scheduler(State state);
void run_block(void (*body)(void*), void* argument);

template <class... P, class... Q>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, Q&&... arguments) {
  std::tuple<P...> values(std::forward<Q>(arguments)...);
  auto call = [&] { std::apply(kernel, values); };
  using Call = decltype(call);
  Machine& m = machine();
  if (size_t(block.x) * block.y * block.z > 1024 || block.x == 0 || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
      grid.y > 65535 || grid.z > 65535 || grid.x > 2147483647u || shared_bytes > 48 * 1024) {
    std::fprintf(stderr, "cuda_emulator: launch outside the limits (grid %u %u %u, block %u %u %u, shared %zu)\n", grid.x,
                 grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
    std::abort();
  }
  m.block_dim = block;
  m.grid_dim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        m.block_index = dim3(x, y, z);
        m.shared.assign(shared_bytes + 16, 0xee);  // not zero: reading what was never written shows
        run_block([](void* c) { (*static_cast<Call*>(c))(); }, &call);
      }
}

template <class T>
T shuffle(T value, int from_lane) {
  static_assert(sizeof(T) <= 8, "");
  Machine& m = machine();
  Fiber& f = *m.current;
  uint64_t* slots = m.exchange.data() + (size_t(f.linear / kWarp) * 2 + (f.shuffles++ & 1)) * kWarp;
  uint64_t raw = 0;
  std::memcpy(&raw, &value, sizeof(T));
  slots[f.linear % kWarp] = raw;
  yield_to_scheduler(State::kAtWarp);
  T result;
  std::memcpy(&result, &slots[from_lane & (kWarp - 1)], sizeof(T));
  return result;
}

}  // namespace cuda_emulator

#define threadIdx (cuda_emulator::machine().current->thread)
#define blockIdx (cuda_emulator::machine().block_index)
#define blockDim (cuda_emulator::machine().block_dim)
#define gridDim (cuda_emulator::machine().grid_dim)

inline void __syncthreads() { cuda_emulator::yield_to_scheduler(cuda_emulator::State::kAtBlock); }
template <class T>
T __shfl_sync(unsigned, T value, int lane) { return cuda_emulator::shuffle(value, lane); }
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return cuda_emulator::shuffle(value, (cuda_emulator::machine().current->linear % cuda_emulator::kWarp) ^ mask);
}
template <class T>
T __shfl_up_sync(unsigned, T value, int delta) {
  int lane = cuda_emulator::machine().current->linear % cuda_emulator::kWarp;
  return cuda_emulator::shuffle(value, lane < delta ? lane : lane - delta);
}
inline int atomicAdd(int* p, int v) {
  int old = *p;
  *p += v;
  return old;
}

using cudaStream_t = void*;
using cudaError_t = int;
inline cudaError_t cudaGetLastError() { return 0; }
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t) {
  std::memset(p, value, bytes);
  return 0;
}

#define OPENREC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  cuda_emulator::launch(kernel, grid, block, shared_bytes, __VA_ARGS__)
#define OPENREC_DYNAMIC_SHARED(name) unsigned char* name = cuda_emulator::machine().shared.data()

namespace openrec::cuda {
inline float host_half_to_float(uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return float(h);
}
inline uint16_t host_float_to_half(float x) {
  _Float16 h = _Float16(x);
  uint16_t bits;
  std::memcpy(&bits, &h, 2);
  return bits;
}
inline float host_exp2(float x) { return std::exp2(x); }
inline float host_log2(float x) { return std::log2(x); }
}  // namespace openrec::cuda

using std::exp;
using std::fabs;
using std::log1p;
