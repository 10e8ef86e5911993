// DCNv3 on CUDA: InternImage's operator (arXiv 2211.05778, OpenGVLab/InternImage, MIT), channels last.
//
// The operator's definition is InternImage's, the kernels are this project's own (cuda/sampling.cuh).
#include "dcnv3/launch.h"

#include <initializer_list>

#include "cuda/sampling.cuh"

namespace openrec::cuda {
namespace {

template <class A>
Lattice<A> lattice_of(const Dcnv3Problem& p) {
  Lattice<A> l;
  // Offset scale 1 leaves the centre of the kernel at stride * output + half - pad; other scales spread points around it.
  const int half_x = p.dilation_w * (p.kernel_w - 1) / 2, half_y = p.dilation_h * (p.kernel_h - 1) / 2;
  l.out_cols = FastDiv(uint32_t(p.out_width));
  l.kernel_rows = FastDiv(uint32_t(p.kernel_h));
  l.kernel_points = p.kernel_points();
  l.centre = p.remove_center ? p.kernel_points() / 2 : p.kernel_points();
  l.scale = A(p.offset_scale);
  l.origin_x = A(double(half_x - p.pad_w) - half_x * p.offset_scale);
  l.origin_y = A(double(half_y - p.pad_h) - half_y * p.offset_scale);
  l.stride_x = A(p.stride_w), l.stride_y = A(p.stride_h);
  l.dilation_x = A(p.dilation_w), l.dilation_y = A(p.dilation_h);
  return l;
}

template <class T>
SampleArgs<T> arguments_of(const Dcnv3Problem& p, const void* input, const void* offset, const void* mask) {
  SampleArgs<T> a{};
  a.value = static_cast<const T*>(input);
  a.coord = offset;
  a.weight = mask;
  a.type = p.dtype, a.coord_type = p.offset_type, a.weight_type = p.mask_type;
  a.batch = p.batch;
  a.groups = p.group;
  a.width = p.group_channels;
  a.rows = p.height, a.cols = p.width;
  a.queries = p.out_height * p.out_width;
  a.points = p.points();
  return a;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T, int V>
int forward(const Dcnv3Problem& p, const void* input, const void* offset, const void* mask, void* out, void* stream) {
  SampleArgs<T> a = arguments_of<T>(p, input, offset, mask);
  a.out = static_cast<T*>(out);
  return launch_sample_forward<T, V, false>(a, lattice_of<acc_t<T>>(p), stream);
}

template <class T, int V>
int backward(const Dcnv3Problem& p, const void* grad, const void* input, const void* offset, const void* mask,
             void* grad_input, void* grad_offset, void* grad_mask, void* workspace, void* stream) {
  SampleArgs<T> a = arguments_of<T>(p, input, offset, mask);
  a.grad = static_cast<const T*>(grad);
  a.grad_value = static_cast<T*>(grad_input);
  a.partial = static_cast<acc_t<T>*>(workspace ? workspace : grad_input);
  a.grad_coord = grad_offset;
  a.grad_weight = grad_mask;
  return launch_sample_backward<T, V, false>(a, lattice_of<acc_t<T>>(p), stream);
}

// Whole 16-byte vectors of a group's channels, at aligned addresses.
bool vectors(const Dcnv3Problem& p, std::initializer_list<const void*> pointers) {
  bool fine = p.group_channels % (p.dtype == DType::kFloat ? 4 : 8) == 0;
  for (const void* q : pointers) fine = fine && aligned(q);
  return fine;
}

}  // namespace

int dcnv3_forward(const Dcnv3Problem& p, const void* input, const void* offset, const void* mask, void* out, void* stream) {
  if (p.dtype == DType::kDouble) return forward<double, 1>(p, input, offset, mask, out, stream);
  if (!vectors(p, {input, out})) return forward<any_t, 1>(p, input, offset, mask, out, stream);
  if (p.dtype == DType::kFloat) return forward<float, 4>(p, input, offset, mask, out, stream);
  if (p.dtype == DType::kHalf) return forward<half_t, 8>(p, input, offset, mask, out, stream);
  return forward<bf16_t, 8>(p, input, offset, mask, out, stream);
}

int64_t dcnv3_backward_workspace(const Dcnv3Problem& p) {
  const bool narrow = p.dtype == DType::kHalf || p.dtype == DType::kBFloat16;
  if (!needs_partial(narrow, int64_t(p.out_height) * p.out_width, p.points())) return 0;
  return p.batch * p.height * p.width * int64_t(p.group) * p.group_channels * 4;
}

int dcnv3_backward(const Dcnv3Problem& p, const void* grad, const void* input, const void* offset, const void* mask,
                   void* grad_input, void* grad_offset, void* grad_mask, void* workspace, void* stream) {
  const auto run = [&](auto* launch) {
    return launch(p, grad, input, offset, mask, grad_input, grad_offset, grad_mask, workspace, stream);
  };
  if (p.dtype == DType::kDouble) return run(&backward<double, 1>);
  if (!vectors(p, {input, grad, grad_input, workspace})) return run(&backward<any_t, 1>);
  if (p.dtype == DType::kFloat) return run(&backward<float, 4>);
  if (p.dtype == DType::kHalf) return run(&backward<half_t, 8>);
  return run(&backward<bf16_t, 8>);
}

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int fill_zero(void* p, int64_t bytes, void* stream) {
  return int(cudaMemsetAsync(p, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
}

}  // namespace openrec::cuda
