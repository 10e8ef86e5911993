// DCNv3 on CUDA: InternImage's operator (arXiv 2211.05778, OpenGVLab/InternImage, MIT), channels last.
//
// The operator's definition is InternImage's, the kernels are this project's own (cuda/sampling.cuh).
#include "dcnv3/launch.h"

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
  a.coord_wide = p.offset_wide;
  a.weight_wide = p.mask_wide;
  a.batch = p.batch;
  a.groups = p.group;
  a.width = p.group_channels;
  a.rows = p.height, a.cols = p.width;
  a.queries = p.out_height * p.out_width;
  a.points = p.points();
  return a;
}

bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

template <class T>
struct Forward {
  static int run(const Dcnv3Problem& p, const void* input, const void* offset, const void* mask, void* out, void* stream) {
    constexpr int V = 16 / sizeof(T);
    SampleArgs<T> a = arguments_of<T>(p, input, offset, mask);
    a.out = static_cast<T*>(out);
    const auto place = lattice_of<acc_t<T>>(p);
    if (p.group_channels % V == 0 && aligned(input) && aligned(out))
      return launch_sample_forward<T, V, false>(a, place, stream);
    return launch_sample_forward<T, 1, false>(a, place, stream);
  }
};

template <class T>
struct Backward {
  static int run(const Dcnv3Problem& p, const void* grad, const void* input, const void* offset, const void* mask,
                 void* grad_input, void* grad_offset, void* grad_mask, void* workspace, void* stream) {
    constexpr int V = 16 / sizeof(T);
    SampleArgs<T> a = arguments_of<T>(p, input, offset, mask);
    a.grad = static_cast<const T*>(grad);
    a.grad_value = static_cast<T*>(grad_input);
    a.partial = static_cast<acc_t<T>*>(sizeof(T) == 2 ? workspace : grad_input);
    a.grad_coord = grad_offset;
    a.grad_weight = grad_mask;
    const auto place = lattice_of<acc_t<T>>(p);
    const bool vector = p.group_channels % V == 0 && aligned(input) && aligned(grad) && aligned(grad_input);
    if (vector && (a.partial == nullptr || aligned(a.partial)))
      return launch_sample_backward<T, V, false>(a, place, stream);
    return launch_sample_backward<T, 1, false>(a, place, stream);
  }
};

template <template <class> class Job, class... P>
int dispatch(DType dtype, P... arguments) {
  switch (dtype) {
    case DType::kFloat: return Job<float>::run(arguments...);
    case DType::kDouble: return Job<double>::run(arguments...);
    case DType::kHalf: return Job<half_t>::run(arguments...);
    default: return Job<bf16_t>::run(arguments...);
  }
}

}  // namespace

int dcnv3_forward(const Dcnv3Problem& p, const void* input, const void* offset, const void* mask, void* out, void* stream) {
  return dispatch<Forward, const Dcnv3Problem&>(p.dtype, p, input, offset, mask, out, stream);
}

int64_t dcnv3_backward_workspace(const Dcnv3Problem& p) {
  const bool narrow = p.dtype == DType::kHalf || p.dtype == DType::kBFloat16;
  if (!needs_partial(narrow, int64_t(p.out_height) * p.out_width, p.points())) return 0;
  return p.batch * p.height * p.width * int64_t(p.group) * p.group_channels * 4;
}

int dcnv3_backward(const Dcnv3Problem& p, const void* grad, const void* input, const void* offset, const void* mask,
                   void* grad_input, void* grad_offset, void* grad_mask, void* workspace, void* stream) {
  return dispatch<Backward, const Dcnv3Problem&>(p.dtype, p, grad, input, offset, mask, grad_input, grad_offset, grad_mask,
                                                 workspace, stream);
}

const char* error_text(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

int fill_zero(void* p, int64_t bytes, void* stream) {
  return int(cudaMemsetAsync(p, 0, size_t(bytes), static_cast<cudaStream_t>(stream)));
}

}  // namespace openrec::cuda
