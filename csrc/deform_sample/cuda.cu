// deform_sample on CUDA: the sampling step of multi-scale deformable attention (Deformable DETR, arXiv 2010.04159), of DAT
// and of True2D's decoder; one map per head, channels first. The kernels are cuda/sampling.cuh in the planar layout.
#include "deform_sample/launch.h"

#include "cuda/sampling.cuh"

namespace openrec::cuda {
namespace {

constexpr int kChannels = 4;  // per thread

template <class T>
SampleArgs<T> arguments_of(const DeformSampleProblem& p, const void* value, const void* loc, const void* weight) {
  SampleArgs<T> a{};
  a.value = static_cast<const T*>(value);
  a.coord = loc;
  a.weight = weight;
  a.type = p.dtype, a.coord_type = p.loc_type, a.weight_type = p.weight_type;
  a.batch = p.batch;
  a.groups = p.heads;
  a.width = p.channels;
  a.rows = p.height, a.cols = p.width;
  a.queries = weight ? p.queries : p.queries * p.points;
  a.points = weight ? p.points : 1;
  return a;
}

template <class T>
Normalised<acc_t<T>> place_of(const DeformSampleProblem& p) {
  return Normalised<acc_t<T>>{acc_t<T>(p.width), acc_t<T>(p.height)};
}

template <class T>
struct Forward {
  static int run(const DeformSampleProblem& p, const void* value, const void* loc, const void* weight, void* out,
                 void* stream) {
    SampleArgs<T> a = arguments_of<T>(p, value, loc, weight);
    a.out = static_cast<T*>(out);
    return launch_sample_forward<T, kChannels, true>(a, place_of<T>(p), stream);
  }
};

template <class T>
struct Backward {
  static int run(const DeformSampleProblem& p, const void* grad, const void* value, const void* loc, const void* weight,
                 void* grad_value, void* grad_loc, void* grad_weight, void* workspace, void* stream) {
    SampleArgs<T> a = arguments_of<T>(p, value, loc, weight);
    a.grad = static_cast<const T*>(grad);
    a.grad_value = static_cast<T*>(grad_value);
    a.partial = static_cast<acc_t<T>*>(sizeof(T) == 2 ? workspace : grad_value);
    a.grad_coord = grad_loc;
    a.grad_weight = grad_weight;
    return launch_sample_backward<T, kChannels, true>(a, place_of<T>(p), stream);
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

int deform_sample_forward(const DeformSampleProblem& p, const void* value, const void* loc, const void* weight, void* out,
                          void* stream) {
  return dispatch<Forward, const DeformSampleProblem&>(p.dtype, p, value, loc, weight, out, stream);
}

int64_t deform_sample_backward_workspace(const DeformSampleProblem& p, bool weighted) {
  const bool narrow = p.dtype == DType::kHalf || p.dtype == DType::kBFloat16;
  const int64_t queries = weighted ? p.queries : int64_t(p.queries) * p.points;
  if (!needs_partial(narrow, queries, weighted ? p.points : 1)) return 0;
  return p.batch * p.heads * p.channels * int64_t(p.height) * p.width * 4;
}

int deform_sample_backward(const DeformSampleProblem& p, const void* grad, const void* value, const void* loc,
                           const void* weight, void* grad_value, void* grad_loc, void* grad_weight, void* workspace,
                           void* stream) {
  return dispatch<Backward, const DeformSampleProblem&>(p.dtype, p, grad, value, loc, weight, grad_value, grad_loc,
                                                        grad_weight, workspace, stream);
}

}  // namespace openrec::cuda
