// Launch functions of the selective scan kernels. Pointers are device pointers; 0 is returned on success, else a CUDA
// error code. u, delta, z, out and their gradients are contiguous; B and C have any strides (in elements).
#pragma once

#include "cuda/types.h"

namespace openrec::cuda {

struct ScanProblem {
  DType dtype;           // of u, delta, z, out and their gradients
  DType b_type, c_type;  // double with double, else any other. A, D, bias and states: float, or double with double
  int64_t batch;
  int dim, length, groups, states;
  bool softplus, reverse, channels_last;
  int64_t b_batch, b_group, b_state, b_step;  // strides of B
  int64_t c_batch, c_group, c_state, c_step;  // strides of C
};

struct ScanInputs {
  const void *u, *delta, *A, *B, *C;
  const void *D, *z, *delta_bias;  // may be null
};

struct ScanGradients {
  void *u, *delta, *A, *B, *C;  // B and C contiguous: [B, G, N, L], or [B, L, G, N] with channels_last
  void *D, *z, *delta_bias;     // null where the input is
};

// Bytes of working memory that the launches want (0: none).
int64_t selective_scan_forward_workspace(const ScanProblem&);
int64_t selective_scan_backward_workspace(const ScanProblem&);

// last_state [batch, dim, states] may be null.
int selective_scan_forward(const ScanProblem&, const ScanInputs&, void* out, void* last_state, void* workspace,
                           void* stream);

// grad_last_state may be null. Every element of the gradients is written.
int selective_scan_backward(const ScanProblem&, const ScanInputs&, const void* grad, const void* grad_last_state,
                            const ScanGradients&, void* workspace, void* stream);

}  // namespace openrec::cuda
