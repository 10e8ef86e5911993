// Launch functions of the deform_sample kernels. Pointers are device pointers to contiguous tensors; 0 is returned on
// success, else a CUDA error code.
#pragma once

#include "cuda/types.h"

namespace openrec::cuda {

struct DeformSampleProblem {
  DType dtype;                  // of value, output and their gradients
  DType loc_type, weight_type;  // double with double, else any other
  int64_t batch;
  int heads, channels;  // channels per head
  int height, width;    // value map
  int queries, points;  // without weight every (query, point) pair is an output of its own
};

int deform_sample_forward(const DeformSampleProblem&, const void* value, const void* loc, const void* weight, void* out,
                          void* stream);

// Bytes of working memory that deform_sample_backward wants (0: none).
int64_t deform_sample_backward_workspace(const DeformSampleProblem&, bool weighted);

// weight and grad_weight may be null. Every element of the gradients is written.
int deform_sample_backward(const DeformSampleProblem&, const void* grad, const void* value, const void* loc,
                           const void* weight, void* grad_value, void* grad_loc, void* grad_weight, void* workspace,
                           void* stream);

}  // namespace openrec::cuda
