// The CUDA side of the operators in library.cpp: checks, allocation, device and stream, then the launch functions.
//
// Compiled by the host compiler against PyTorch's stable ABI, without a CUDA header: the same binary serves CPU and CUDA
// builds of torch. All calls are asynchronous on torch's current stream and can be captured in a CUDA graph. Python has
// checked arguments with better messages; the checks here keep memory safe when the raw operators are called.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "dcnv3/launch.h"
#include "deform_sample/launch.h"
#include "selective_scan/launch.h"

namespace openrec::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Ints = std::vector<int64_t>;

// ------------------------------------------------------------------------------------------------------- device, stream
#ifdef OPENREC_EMULATE_CUDA  // the kernels run on the CPU, for tests (tests/cuda_emulator)
struct OnDevice {
  explicit OnDevice(const Tensor&) {}
  void* stream = nullptr;
};
#else
// Makes the tensor's device current and finds the stream that torch uses there.
struct OnDevice {
  explicit OnDevice(const Tensor& t) : guard(t.get_device_index()) {
    using GetStream = AOTITorchError (*)(int32_t, void**);
    // In libtorch_cuda, which this library does not link: it must also load where torch has no CUDA.
    static const auto get =
        reinterpret_cast<GetStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    STD_TORCH_CHECK(get != nullptr, "openrec: this torch has no CUDA support");
    STD_TORCH_CHECK(get(t.get_device_index(), &stream) == 0, "openrec: torch gave no CUDA stream");
  }
  torch::stable::accelerator::DeviceGuard guard;
  void* stream = nullptr;
};
#endif

void check_launch(int code, const char* op) {
  STD_TORCH_CHECK(code == 0, op, ": CUDA error: ", error_text(code));
}

// --------------------------------------------------------------------------------------------------------------- tensors
DType dtype_of(const Tensor& t, const char* op) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::kFloat;
    case ScalarType::Double: return DType::kDouble;
    case ScalarType::Half: return DType::kHalf;
    case ScalarType::BFloat16: return DType::kBFloat16;
    default: STD_TORCH_CHECK(false, op, ": expected float32, float64, float16 or bfloat16 tensors");
  }
  return DType::kFloat;
}

ScalarType wide_type(ScalarType t) { return t == ScalarType::Double ? ScalarType::Double : ScalarType::Float; }

Tensor as(const Tensor& t, ScalarType type) { return t.scalar_type() == type ? t : torch::stable::to(t, type); }

Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// In `type` and contiguous.
Tensor dense(const Tensor& t, ScalarType type) { return dense(as(t, type)); }
MaybeTensor dense(const MaybeTensor& t, ScalarType type) { return t ? MaybeTensor(dense(*t, type)) : t; }

// Contiguous, and float64 exactly where `main` is: kernels read all other mixes as they are.
Tensor beside(const Tensor& t, ScalarType main) {
  if (main == ScalarType::Double) return dense(t, main);
  return t.scalar_type() == ScalarType::Double ? dense(t, ScalarType::Float) : dense(t);
}
MaybeTensor beside(const MaybeTensor& t, ScalarType main) { return t ? MaybeTensor(beside(*t, main)) : t; }

const void* data(const Tensor& t) { return t.const_data_ptr(); }
const void* data(const MaybeTensor& t) { return t ? t->const_data_ptr() : nullptr; }
void* target(const Tensor& t) { return t.numel() ? t.mutable_data_ptr() : nullptr; }

Tensor make(const Tensor& like, const Ints& size, ScalarType type) { return torch::stable::new_empty(like, size, type); }
Tensor make_like(const Tensor& t) { return make(t, Ints(t.sizes().begin(), t.sizes().end()), t.scalar_type()); }
Tensor make_like(const MaybeTensor& t, const Tensor& device, ScalarType type) {
  return t ? make_like(*t) : make(device, {0}, type);
}

Tensor workspace(const Tensor& like, int64_t bytes) { return make(like, {bytes}, ScalarType::Byte); }

void fill_zeros(const OnDevice& on, std::initializer_list<Tensor> tensors, const char* op) {
  for (const Tensor& t : tensors)
    if (t.numel()) check_launch(fill_zero(target(t), t.numel() * int64_t(t.element_size()), on.stream), op);
}

int small(int64_t n, const char* what) {
  STD_TORCH_CHECK(n >= 0 && n <= std::numeric_limits<int32_t>::max(), what, " is too large: ", n);
  return int(n);
}

void check_shape(const Tensor& t, const Ints& size, const char* what) {
  bool same = t.dim() == int64_t(size.size());
  for (size_t i = 0; same && i < size.size(); ++i) same = t.size(int64_t(i)) == size[i];
  STD_TORCH_CHECK(same, what, " has an unexpected shape");
}

// ----------------------------------------------------------------------------------------------------------------- dcnv3
Dcnv3Problem dcnv3_problem(const Tensor& input, const Tensor& offset, const MaybeTensor& mask, const Ints& kernel,
                           const Ints& stride, const Ints& pad, const Ints& dilation, int64_t group, double offset_scale,
                           bool remove_center) {
  const char* op = "dcnv3";
  STD_TORCH_CHECK(input.dim() == 4, op, ": input must be [N, H, W, C]");
  STD_TORCH_CHECK(kernel.size() == 2 && stride.size() == 2 && pad.size() == 2 && dilation.size() == 2, op,
                  ": kernel_size, stride, pad and dilation are pairs");
  const int64_t channels = input.size(3);
  STD_TORCH_CHECK(group > 0 && channels % group == 0, op, ": channels must be divisible by group");
  for (int i = 0; i < 2; ++i)
    STD_TORCH_CHECK(kernel[i] > 0 && stride[i] > 0 && dilation[i] > 0 && pad[i] >= 0, op,
                    ": kernel_size, stride and dilation must be positive, pad not negative");
  Dcnv3Problem p{};
  p.dtype = dtype_of(input, op);
  p.offset_type = dtype_of(offset, op), p.mask_type = mask ? dtype_of(*mask, op) : p.dtype;
  p.batch = input.size(0);
  p.height = small(input.size(1), "height"), p.width = small(input.size(2), "width");
  p.kernel_h = small(kernel[0], "kernel_size"), p.kernel_w = small(kernel[1], "kernel_size");
  p.stride_h = small(stride[0], "stride"), p.stride_w = small(stride[1], "stride");
  p.pad_h = small(pad[0], "pad"), p.pad_w = small(pad[1], "pad");
  p.dilation_h = small(dilation[0], "dilation"), p.dilation_w = small(dilation[1], "dilation");
  p.group = small(group, "group"), p.group_channels = small(channels / group, "channels");
  p.offset_scale = offset_scale, p.remove_center = remove_center;
  const int64_t span_h = p.height + 2 * pad[0] - dilation[0] * (kernel[0] - 1) - 1;
  const int64_t span_w = p.width + 2 * pad[1] - dilation[1] * (kernel[1] - 1) - 1;
  p.out_height = span_h < 0 ? 0 : small(span_h / stride[0] + 1, "output height");
  p.out_width = span_w < 0 ? 0 : small(span_w / stride[1] + 1, "output width");
  small(int64_t(p.height) * p.width, "the map");
  small(int64_t(p.out_height) * p.out_width * p.points(), "the number of samples of a map");
  small(channels, "the number of channels");
  const int64_t samples = group * p.points();
  check_shape(offset, {p.batch, p.out_height, p.out_width, samples * 2}, "dcnv3: offset");
  if (mask) check_shape(*mask, {p.batch, p.out_height, p.out_width, samples}, "dcnv3: mask");
  return p;
}

Tensor dcnv3_forward_cuda(Tensor input, Tensor offset, MaybeTensor mask, Ints kernel, Ints stride, Ints pad, Ints dilation,
                          int64_t group, double offset_scale, bool remove_center) {
  const OnDevice on(input);
  const ScalarType type = input.scalar_type();
  input = dense(input), offset = beside(offset, type), mask = beside(mask, type);
  const Dcnv3Problem p =
      dcnv3_problem(input, offset, mask, kernel, stride, pad, dilation, group, offset_scale, remove_center);
  Tensor out = make(input, {p.batch, p.out_height, p.out_width, input.size(3)}, type);
  if (out.numel() == 0) return out;
  if (input.numel() == 0 || p.points() == 0) {
    fill_zeros(on, {out}, "dcnv3");
    return out;
  }
  check_launch(dcnv3_forward(p, data(input), data(offset), data(mask), target(out), on.stream), "dcnv3");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> dcnv3_backward_cuda(Tensor grad, Tensor input, Tensor offset, MaybeTensor mask,
                                                       Ints kernel, Ints stride, Ints pad, Ints dilation, int64_t group,
                                                       double offset_scale, bool remove_center) {
  const OnDevice on(input);
  const ScalarType type = input.scalar_type(), offset_type = offset.scalar_type();
  const ScalarType mask_type = mask ? mask->scalar_type() : type;
  grad = dense(grad, type), input = dense(input), offset = beside(offset, type), mask = beside(mask, type);
  const Dcnv3Problem p =
      dcnv3_problem(input, offset, mask, kernel, stride, pad, dilation, group, offset_scale, remove_center);
  check_shape(grad, {p.batch, p.out_height, p.out_width, input.size(3)}, "dcnv3: the gradient");
  Tensor grad_input = make_like(input), grad_offset = make_like(offset), grad_mask = make_like(mask, input, type);
  if (grad.numel() == 0 || input.numel() == 0 || p.points() == 0) {
    fill_zeros(on, {grad_input, grad_offset, grad_mask}, "dcnv3 backward");
  } else {
    const Tensor work = workspace(input, dcnv3_backward_workspace(p));
    check_launch(dcnv3_backward(p, data(grad), data(input), data(offset), data(mask), target(grad_input),
                                target(grad_offset), target(grad_mask), target(work), on.stream),
                 "dcnv3 backward");
  }
  return {grad_input, as(grad_offset, offset_type), as(grad_mask, mask_type)};
}

// ---------------------------------------------------------------------------------------------------------- deform_sample
DeformSampleProblem deform_sample_problem(const Tensor& value, const Tensor& loc, const MaybeTensor& weight) {
  const char* op = "deform_sample";
  STD_TORCH_CHECK(value.dim() == 5 && loc.dim() == 5, op, ": value must be [B, M, c, H, W] and loc [B, M, Q, P, 2]");
  DeformSampleProblem p{};
  p.dtype = dtype_of(value, op);
  p.loc_type = dtype_of(loc, op), p.weight_type = weight ? dtype_of(*weight, op) : p.dtype;
  p.batch = value.size(0);
  p.heads = small(value.size(1), "the number of heads"), p.channels = small(value.size(2), "the number of channels");
  p.height = small(value.size(3), "height"), p.width = small(value.size(4), "width");
  p.queries = small(loc.size(2), "the number of queries"), p.points = small(loc.size(3), "the number of points");
  small(int64_t(p.height) * p.width, "the map");
  small(int64_t(p.queries) * p.points, "the number of samples of a map");
  check_shape(loc, {p.batch, p.heads, p.queries, p.points, 2}, "deform_sample: loc");
  if (weight) check_shape(*weight, {p.batch, p.heads, p.queries, p.points}, "deform_sample: weight");
  return p;
}

Ints deform_sample_shape(const DeformSampleProblem& p, bool weighted) {
  Ints shape = {p.batch, p.heads, p.channels, p.queries};
  if (!weighted) shape.push_back(p.points);
  return shape;
}

Tensor deform_sample_forward_cuda(Tensor value, Tensor loc, MaybeTensor weight) {
  const OnDevice on(value);
  const ScalarType type = value.scalar_type();
  value = dense(value), loc = beside(loc, type), weight = beside(weight, type);
  const DeformSampleProblem p = deform_sample_problem(value, loc, weight);
  Tensor out = make(value, deform_sample_shape(p, weight.has_value()), type);
  if (out.numel() == 0) return out;
  if (value.numel() == 0 || p.points == 0) {
    fill_zeros(on, {out}, "deform_sample");
    return out;
  }
  check_launch(deform_sample_forward(p, data(value), data(loc), data(weight), target(out), on.stream), "deform_sample");
  return out;
}

std::tuple<Tensor, Tensor, Tensor> deform_sample_backward_cuda(Tensor grad, Tensor value, Tensor loc, MaybeTensor weight) {
  const OnDevice on(value);
  const ScalarType type = value.scalar_type(), loc_type = loc.scalar_type();
  const ScalarType weight_type = weight ? weight->scalar_type() : type;
  grad = dense(grad, type), value = dense(value), loc = beside(loc, type), weight = beside(weight, type);
  const DeformSampleProblem p = deform_sample_problem(value, loc, weight);
  check_shape(grad, deform_sample_shape(p, weight.has_value()), "deform_sample: the gradient");
  Tensor grad_value = make_like(value), grad_loc = make_like(loc), grad_weight = make_like(weight, value, type);
  if (grad.numel() == 0 || value.numel() == 0 || p.points == 0) {
    fill_zeros(on, {grad_value, grad_loc, grad_weight}, "deform_sample backward");
  } else {
    const Tensor work = workspace(value, deform_sample_backward_workspace(p, weight.has_value()));
    check_launch(deform_sample_backward(p, data(grad), data(value), data(loc), data(weight), target(grad_value),
                                        target(grad_loc), target(grad_weight), target(work), on.stream),
                 "deform_sample backward");
  }
  return {grad_value, as(grad_loc, loc_type), as(grad_weight, weight_type)};
}

// --------------------------------------------------------------------------------------------------------- selective_scan
// The tensors of one call as the kernels want them: u, delta, z of one type, B and C of it or of the arithmetic type.
struct Scan {
  ScanProblem problem{};
  ScalarType type, wide;
  Tensor u, delta, A, B, C;
  MaybeTensor D, z, bias;

  Scan(const Tensor& u_, const Tensor& delta_, const Tensor& A_, const Tensor& B_, const Tensor& C_, const MaybeTensor& D_,
       const MaybeTensor& z_, const MaybeTensor& bias_, bool softplus, bool reverse, bool channels_last) {
    const char* op = "selective_scan";
    STD_TORCH_CHECK(u_.dim() == 3 && A_.dim() == 2 && B_.dim() == 4 && C_.dim() == 4, op,
                    ": u must have 3 dimensions, A 2, B and C 4");
    type = u_.scalar_type();
    bool mixed = delta_.scalar_type() != type || (z_ && z_->scalar_type() != type), doubles = false;
    for (const MaybeTensor& t : {MaybeTensor(u_), MaybeTensor(delta_), MaybeTensor(A_), MaybeTensor(B_), MaybeTensor(C_), D_,
                                 z_, bias_})
      doubles = doubles || (t && t->scalar_type() == ScalarType::Double);
    if (doubles)
      type = ScalarType::Double;
    else if (mixed)
      type = ScalarType::Float;
    wide = wide_type(type);
    u = dense(u_, type), delta = dense(delta_, type), A = dense(A_, wide);
    B = doubles ? as(B_, type) : B_, C = doubles ? as(C_, type) : C_;  // any strides
    D = dense(D_, wide), z = dense(z_, type), bias = dense(bias_, wide);

    ScanProblem& p = problem;
    p.dtype = dtype_of(u, op);
    p.b_type = dtype_of(B, op), p.c_type = dtype_of(C, op);
    p.softplus = softplus, p.reverse = reverse, p.channels_last = channels_last;
    const int dim_axis = channels_last ? 2 : 1, length_axis = channels_last ? 1 : 2;
    const int group = channels_last ? 2 : 1, state = channels_last ? 3 : 2, step = channels_last ? 1 : 3;
    p.batch = u.size(0);
    p.dim = small(u.size(dim_axis), "the number of channels"), p.length = small(u.size(length_axis), "the length");
    p.groups = small(B.size(group), "the number of groups"), p.states = small(A.size(1), "d_state");
    STD_TORCH_CHECK(p.groups > 0 && p.dim % p.groups == 0, op, ": channels must be divisible by the groups of B");
    const Ints shape = {u.size(0), u.size(1), u.size(2)};
    const Ints maps = channels_last ? Ints{p.batch, p.length, p.groups, p.states} : Ints{p.batch, p.groups, p.states, p.length};
    check_shape(delta, shape, "selective_scan: delta");
    check_shape(A, {p.dim, p.states}, "selective_scan: A");
    check_shape(B, maps, "selective_scan: B");
    check_shape(C, maps, "selective_scan: C");
    if (z) check_shape(*z, shape, "selective_scan: z");
    if (D) check_shape(*D, {p.dim}, "selective_scan: D");
    if (bias) check_shape(*bias, {p.dim}, "selective_scan: delta_bias");
    p.b_batch = B.stride(0), p.b_group = B.stride(group), p.b_state = B.stride(state), p.b_step = B.stride(step);
    p.c_batch = C.stride(0), p.c_group = C.stride(group), p.c_state = C.stride(state), p.c_step = C.stride(step);
  }
  ScanInputs inputs() const { return {data(u), data(delta), data(A), data(B), data(C), data(D), data(z), data(bias)}; }
};

std::tuple<Tensor, Tensor> selective_scan_forward_cuda(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, MaybeTensor D,
                                                       MaybeTensor z, MaybeTensor delta_bias, bool softplus, bool reverse,
                                                       bool channels_last, bool return_last_state) {
  const OnDevice on(u);
  const Scan s(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, channels_last);
  const ScanProblem& p = s.problem;
  Tensor out = make_like(s.u);
  Tensor last = make(u, return_last_state ? Ints{p.batch, p.dim, p.states} : Ints{0}, s.wide);
  if (out.numel() == 0 || p.states == 0) {
    STD_TORCH_CHECK(p.states > 0 || out.numel() == 0, "selective_scan: d_state must be at least 1");
    fill_zeros(on, {last}, "selective_scan");
  } else {
    const Tensor work = workspace(u, selective_scan_forward_workspace(p));
    check_launch(selective_scan_forward(p, s.inputs(), target(out), target(last), target(work), on.stream),
                 "selective_scan");
  }
  return {as(out, u.scalar_type()), last};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> selective_scan_backward_cuda(
    Tensor grad, MaybeTensor grad_last_state, Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, MaybeTensor D,
    MaybeTensor z, MaybeTensor delta_bias, bool softplus, bool reverse, bool channels_last) {
  const OnDevice on(u);
  const Scan s(u, delta, A, B, C, D, z, delta_bias, softplus, reverse, channels_last);
  const ScanProblem& p = s.problem;
  grad = dense(grad, s.type);
  grad_last_state = dense(grad_last_state, s.wide);
  check_shape(grad, {u.size(0), u.size(1), u.size(2)}, "selective_scan: the gradient");
  if (grad_last_state) check_shape(*grad_last_state, {p.batch, p.dim, p.states}, "selective_scan: the state's gradient");
  Tensor du = make_like(s.u), ddelta = make_like(s.delta), dA = make_like(s.A), dB = make_like(s.B), dC = make_like(s.C);
  Tensor dD = make_like(s.D, u, s.wide), dz = make_like(s.z, u, s.type), dbias = make_like(s.bias, u, s.wide);
  if (du.numel() == 0 || p.states == 0) {
    fill_zeros(on, {du, ddelta, dA, dB, dC, dD, dz, dbias}, "selective_scan backward");
  } else {
    const Tensor work = workspace(u, selective_scan_backward_workspace(p));
    const ScanGradients to = {target(du), target(ddelta), target(dA), target(dB),
                              target(dC), target(dD),     target(dz), target(dbias)};
    check_launch(selective_scan_backward(p, s.inputs(), data(grad), data(grad_last_state), to, target(work), on.stream),
                 "selective_scan backward");
  }
  return {as(du, u.scalar_type()),
          as(ddelta, delta.scalar_type()),
          dA,
          as(dB, B.scalar_type()),
          as(dC, C.scalar_type()),
          dD,
          as(dz, z ? z->scalar_type() : u.scalar_type()),
          dbias};
}

}  // namespace
}  // namespace openrec::cuda

#ifdef OPENREC_EMULATE_CUDA
STABLE_TORCH_LIBRARY_IMPL(openrec_emulated, CPU, m) {
#else
STABLE_TORCH_LIBRARY_IMPL(openrec, CUDA, m) {
#endif
  m.impl("dcnv3_forward", TORCH_BOX(&openrec::cuda::dcnv3_forward_cuda));
  m.impl("dcnv3_backward", TORCH_BOX(&openrec::cuda::dcnv3_backward_cuda));
  m.impl("selective_scan_forward", TORCH_BOX(&openrec::cuda::selective_scan_forward_cuda));
  m.impl("selective_scan_backward", TORCH_BOX(&openrec::cuda::selective_scan_backward_cuda));
  m.impl("deform_sample_forward", TORCH_BOX(&openrec::cuda::deform_sample_forward_cuda));
  m.impl("deform_sample_backward", TORCH_BOX(&openrec::cuda::deform_sample_backward_cuda));
}
