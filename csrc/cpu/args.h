// What the torch side of an operator hands to its kernels: plain pointers, sizes and strides.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace openrec {

enum class DType : int { f32, f64, bf16, f16 };

// u, delta, z and their gradients: element strides of batch, time step and channel.
struct Sequence {
  void* data = nullptr;  // nullptr: absent
  DType dtype = DType::f32;
  int64_t batch = 0, step = 0, channel = 0;
};

// B or C in the compute type: element strides.
struct Maps {
  const void* data = nullptr;
  int64_t batch = 0, step = 0, group = 0, state = 0;
};

struct ScanArgs {
  int64_t batch, dim, length, state, groups;
  bool softplus, reverse;
  Sequence u, delta, z, out;
  Maps B, C;
  const void *A, *D, *bias;  // compute type, contiguous; D and bias may be nullptr
  void* last;                // [B, D, N], compute type; may be nullptr

  // Backward only.
  Sequence grad, du, ddelta, dz;
  const void* grad_last;        // [B, D, N], compute type; may be nullptr
  void *dB, *dC;                // [blocks per group, B, L, G, N]: one partial sum per block of channels
  void *dA, *dD, *dbias;        // [B, D, N] and [B, D]: one partial sum per image
};

struct DcnArgs {
  int64_t batch, height, width, out_height, out_width;
  int64_t group, channels;  // channels per group
  int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, points;
  double scale;
  bool remove_center;
  DType dtype;                                  // of input, out, grad and dinput
  const void* input;                            // channels contiguous
  int64_t input_batch, input_row, input_pixel;  // strides
  const void *offset, *mask;                    // compute type, contiguous; mask may be nullptr
  void* out;                                    // contiguous
  const void* grad;                             // contiguous
  void *dinput, *doffset, *dmask;               // contiguous; doffset and dmask in the compute type
};

struct SampleArgs {
  int64_t maps, channels, height, width, queries, points;  // maps: B * M
  DType dtype;                                             // of value, out, grad and dvalue
  const void *value, *loc, *weight;                        // contiguous; loc and weight in the compute type
  void* out;                                               // [maps, c, Q]
  const void* grad;
  void *dvalue, *dloc, *dweight;
};

// The kernels of one instruction set. Each runs a range of independent tasks with scratch memory for one thread.
template <class Args>
struct Kernel {
  int64_t (*tasks)(const Args&);
  size_t (*scratch)(const Args&);  // bytes
  void (*run)(const Args&, int64_t begin, int64_t end, void* scratch);
};

template <class Args>
struct Pair {
  Kernel<Args> forward, backward;
};

struct Kernels {
  const char* name;
  Pair<ScanArgs> scan_f32, scan_f64;  // by compute type
  int64_t (*scan_blocks)(const ScanArgs&, bool is_double);
  Pair<DcnArgs> dcn_f32, dcn_f64;
  Pair<SampleArgs> sample_f32, sample_f64;
};

}  // namespace openrec
