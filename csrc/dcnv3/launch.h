// Launch functions of the dcnv3 kernels. Pointers are device pointers to contiguous tensors; 0 is returned on success,
// else a CUDA error code.
#pragma once

#include "cuda/types.h"

namespace openrec::cuda {

struct Dcnv3Problem {
  DType dtype;                   // of input, output and their gradients
  DType offset_type, mask_type;  // double with double, else any other
  int64_t batch;
  int height, width;      // input map
  int out_height, out_width;
  int kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int group, group_channels;
  double offset_scale;
  bool remove_center;

  int kernel_points() const { return kernel_h * kernel_w; }
  int points() const { return kernel_points() - (remove_center ? 1 : 0); }
};

int dcnv3_forward(const Dcnv3Problem&, const void* input, const void* offset, const void* mask, void* out, void* stream);

// Bytes of working memory that dcnv3_backward wants (0: none).
int64_t dcnv3_backward_workspace(const Dcnv3Problem&);

// mask and grad_mask may be null. Every element of the gradients is written.
int dcnv3_backward(const Dcnv3Problem&, const void* grad, const void* input, const void* offset, const void* mask,
                   void* grad_input, void* grad_offset, void* grad_mask, void* workspace, void* stream);

}  // namespace openrec::cuda
