// dcnv3 on CPU: the torch side.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../check.h"
#include "../cpu/dispatch.h"

namespace openrec {
namespace {

constexpr const char* kOp = "dcnv3";

struct Geometry {
  std::vector<int64_t> kernel, stride, pad, dilation;
  int64_t group;
  double scale;
  bool remove_center;
};

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  return (size + 2 * pad - (dilation * (kernel - 1) + 1)) / stride + 1;
}

// Sizes only; the pointers are set by the caller, who holds the tensors.
DcnArgs arguments(const Tensor& input, const Tensor& offset, const OptionalTensor& mask, const Geometry& g) {
  check_rank(kOp, "input", input, 4);
  for (const auto* pair : {&g.kernel, &g.stride, &g.pad, &g.dilation})
    STD_TORCH_CHECK(pair->size() == 2, kOp, ": kernel_size, stride, pad and dilation are pairs");
  for (int i = 0; i < 2; ++i)
    STD_TORCH_CHECK(g.kernel[i] >= 1 && g.stride[i] >= 1 && g.dilation[i] >= 1 && g.pad[i] >= 0, kOp,
                    ": kernel_size, stride and dilation must be positive, pad not negative");
  STD_TORCH_CHECK(g.group >= 1 && input.size(3) % g.group == 0, kOp, ": ", input.size(3), " channels in ", g.group, " groups");
  DcnArgs a = {};
  a.batch = input.size(0), a.height = input.size(1), a.width = input.size(2);
  a.group = g.group, a.channels = input.size(3) / g.group;
  a.kernel_h = g.kernel[0], a.kernel_w = g.kernel[1], a.stride_h = g.stride[0], a.stride_w = g.stride[1];
  a.pad_h = g.pad[0], a.pad_w = g.pad[1], a.dilation_h = g.dilation[0], a.dilation_w = g.dilation[1];
  a.scale = g.scale, a.remove_center = g.remove_center;
  a.points = a.kernel_h * a.kernel_w - int64_t(g.remove_center);
  a.out_height = out_size(a.height, a.kernel_h, a.stride_h, a.pad_h, a.dilation_h);
  a.out_width = out_size(a.width, a.kernel_w, a.stride_w, a.pad_w, a.dilation_w);
  STD_TORCH_CHECK(a.out_height >= 1 && a.out_width >= 1, kOp, ": the map is smaller than the kernel's span");
  a.dtype = dtype_of(kOp, "input", input);
  check_rank(kOp, "offset", offset, 4);
  const int64_t expected[4] = {a.batch, a.out_height, a.out_width, a.group * a.points};
  for (int i = 0; i < 4; ++i) check_size(kOp, "offset", offset, i, i == 3 ? 2 * expected[i] : expected[i]);
  if (mask) check_rank(kOp, "mask", *mask, 4);
  for (int i = 0; mask && i < 4; ++i) check_size(kOp, "mask", *mask, i, expected[i]);
  return a;
}

Tensor with_rows(const Tensor& input, DcnArgs& a) {
  const Tensor t = input.stride(3) == 1 || input.size(3) == 1 ? input : torch::stable::contiguous(input);
  a.input = t.const_data_ptr();
  a.input_batch = t.stride(0), a.input_row = t.stride(1), a.input_pixel = t.stride(2);
  return t;
}

Tensor forward(const Tensor& input, const Tensor& offset, const OptionalTensor& mask, std::vector<int64_t> kernel,
               std::vector<int64_t> stride, std::vector<int64_t> pad, std::vector<int64_t> dilation, int64_t group,
               double scale, bool remove_center) {
  DcnArgs a = arguments(input, offset, mask, {kernel, stride, pad, dilation, group, scale, remove_center});
  const ScalarType compute = is_double(input) ? ScalarType::Double : ScalarType::Float;
  const Tensor rows = with_rows(input, a), off = dense(offset, compute);
  const OptionalTensor weights = dense(mask, compute);
  Tensor out = torch::stable::new_empty(input, {a.batch, a.out_height, a.out_width, input.size(3)});
  if (out.numel() == 0) return out;
  a.offset = off.const_data_ptr(), a.mask = weights ? weights->const_data_ptr() : nullptr;
  a.out = out.mutable_data_ptr();
  run((is_double(input) ? kernels().dcn_f64 : kernels().dcn_f32).forward, a);
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& input, const Tensor& offset,
                                            const OptionalTensor& mask, std::vector<int64_t> kernel,
                                            std::vector<int64_t> stride, std::vector<int64_t> pad,
                                            std::vector<int64_t> dilation, int64_t group, double scale,
                                            bool remove_center) {
  DcnArgs a = arguments(input, offset, mask, {kernel, stride, pad, dilation, group, scale, remove_center});
  check_rank(kOp, "grad", grad, 4);
  const int64_t expected[4] = {a.batch, a.out_height, a.out_width, input.size(3)};
  for (int i = 0; i < 4; ++i) check_size(kOp, "grad", grad, i, expected[i]);
  const ScalarType compute = is_double(input) ? ScalarType::Double : ScalarType::Float;
  const Tensor rows = with_rows(input, a), off = dense(offset, compute), upstream = dense(grad, input.scalar_type());
  const OptionalTensor weights = dense(mask, compute);
  Tensor d_input = torch::stable::new_empty(input, input.sizes());
  Tensor d_offset = torch::stable::new_empty(off, offset.sizes());
  Tensor d_mask = weights ? torch::stable::new_empty(*weights, mask->sizes()) : nothing(input);
  if (upstream.numel() == 0) {
    torch::stable::zero_(d_input), torch::stable::zero_(d_offset), torch::stable::zero_(d_mask);
  } else {
    a.offset = off.const_data_ptr(), a.mask = weights ? weights->const_data_ptr() : nullptr;
    a.grad = upstream.const_data_ptr(), a.dinput = d_input.mutable_data_ptr();
    a.doffset = d_offset.mutable_data_ptr(), a.dmask = d_mask.mutable_data_ptr();
    run((is_double(input) ? kernels().dcn_f64 : kernels().dcn_f32).backward, a);
  }
  return {d_input, as_type(d_offset, offset.scalar_type()), mask ? as_type(d_mask, mask->scalar_type()) : d_mask};
}

}  // namespace
}  // namespace openrec

STABLE_TORCH_LIBRARY_IMPL(openrec, CPU, m) {
  m.impl("dcnv3_forward", TORCH_BOX(&openrec::forward));
  m.impl("dcnv3_backward", TORCH_BOX(&openrec::backward));
}
