// deform_sample on CPU: the torch side.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../check.h"
#include "../cpu/dispatch.h"

namespace openrec {
namespace {

constexpr const char* kOp = "deform_sample";

// Without weights every point is a query of its own; `a.queries` counts them.
SampleArgs arguments(const Tensor& value, const Tensor& loc, const OptionalTensor& weight) {
  check_rank(kOp, "value", value, 5), check_rank(kOp, "loc", loc, 5);
  for (int i = 0; i < 2; ++i) check_size(kOp, "loc", loc, i, value.size(i));
  check_size(kOp, "loc", loc, 4, 2);
  if (weight) check_rank(kOp, "weight", *weight, 4);
  for (int i = 0; weight && i < 4; ++i) check_size(kOp, "weight", *weight, i, loc.size(i));
  SampleArgs a = {};
  a.maps = value.size(0) * value.size(1), a.channels = value.size(2), a.height = value.size(3), a.width = value.size(4);
  a.queries = weight ? loc.size(2) : loc.size(2) * loc.size(3), a.points = weight ? loc.size(3) : 1;
  a.dtype = dtype_of(kOp, "value", value);
  return a;
}

const Pair<SampleArgs>& pair(const Tensor& value) {
  return is_double(value) ? kernels().sample_f64 : kernels().sample_f32;
}

Tensor forward(const Tensor& value, const Tensor& loc, const OptionalTensor& weight) {
  SampleArgs a = arguments(value, loc, weight);
  const ScalarType compute = is_double(value) ? ScalarType::Double : ScalarType::Float;
  const Tensor maps = torch::stable::contiguous(value), points = dense(loc, compute);
  const OptionalTensor weights = dense(weight, compute);
  const int64_t b = value.size(0), m = value.size(1), q = loc.size(2);
  Tensor out = weight ? torch::stable::new_empty(value, {b, m, a.channels, q})
                      : torch::stable::new_empty(value, {b, m, a.channels, q, loc.size(3)});
  if (out.numel() == 0) return out;
  a.value = maps.const_data_ptr(), a.loc = points.const_data_ptr();
  a.weight = weights ? weights->const_data_ptr() : nullptr, a.out = out.mutable_data_ptr();
  run(pair(value).forward, a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& value, const Tensor& loc,
                                            const OptionalTensor& weight) {
  SampleArgs a = arguments(value, loc, weight);
  STD_TORCH_CHECK(grad.numel() == a.maps * a.channels * a.queries, kOp, ": grad must hold ",
                  a.maps * a.channels * a.queries, " numbers, got ", grad.numel());
  const ScalarType compute = is_double(value) ? ScalarType::Double : ScalarType::Float;
  const Tensor maps = torch::stable::contiguous(value), points = dense(loc, compute);
  const Tensor upstream = dense(grad, value.scalar_type());
  const OptionalTensor weights = dense(weight, compute);
  Tensor d_value = torch::stable::new_empty(value, value.sizes());
  Tensor d_loc = torch::stable::new_empty(points, loc.sizes());
  Tensor d_weight = weights ? torch::stable::new_empty(*weights, weight->sizes()) : nothing(value);
  if (upstream.numel() == 0 || value.numel() == 0) {
    torch::stable::zero_(d_value), torch::stable::zero_(d_loc), torch::stable::zero_(d_weight);
  } else {
    a.value = maps.const_data_ptr(), a.loc = points.const_data_ptr(), a.grad = upstream.const_data_ptr();
    a.weight = weights ? weights->const_data_ptr() : nullptr, a.dvalue = d_value.mutable_data_ptr();
    a.dloc = d_loc.mutable_data_ptr(), a.dweight = d_weight.mutable_data_ptr();
    run(pair(value).backward, a);
  }
  return {d_value, as_type(d_loc, loc.scalar_type()), weight ? as_type(d_weight, weight->scalar_type()) : d_weight};
}

}  // namespace
}  // namespace openrec

STABLE_TORCH_LIBRARY_IMPL(openrec, CPU, m) {
  m.impl("deform_sample_forward", TORCH_BOX(&openrec::forward));
  m.impl("deform_sample_backward", TORCH_BOX(&openrec::backward));
}
