// selective_scan on CPU: the torch side.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "../check.h"
#include "../cpu/dispatch.h"

namespace openrec {
namespace {

constexpr const char* kOp = "selective_scan";

struct Inputs {
  Tensor u, delta, A, B, C;
  OptionalTensor D, z, bias;
};

// The tensors in the compute type where the kernel wants it; keeps them alive while it runs.
struct Call {
  ScanArgs a = {};
  bool wide;  // float64
  bool channels_last;
  ScalarType compute;
  Tensor A, B, C;
  OptionalTensor D, bias;

  Call(const Inputs& in, bool softplus, bool reverse, bool last_axis)
      : wide(is_double(in.u) || is_double(in.delta) || is_double(in.A) || is_double(in.B) || is_double(in.C) ||
             is_double(in.D) || is_double(in.z) || is_double(in.bias)),
        channels_last(last_axis),
        compute(wide ? ScalarType::Double : ScalarType::Float),
        A(dense(in.A, compute)),
        B(as_type(in.B, compute)),
        C(as_type(in.C, compute)),
        D(dense(in.D, compute)),
        bias(dense(in.bias, compute)) {
    check_rank(kOp, "u", in.u, 3), check_rank(kOp, "A", A, 2);
    a.batch = in.u.size(0), a.dim = in.u.size(channels_last ? 2 : 1), a.length = in.u.size(channels_last ? 1 : 2);
    a.state = A.size(1), a.softplus = softplus, a.reverse = reverse;
    check_size(kOp, "A", A, 0, a.dim);
    check_rank(kOp, "B", B, 4);
    a.groups = B.size(channels_last ? 2 : 1);
    STD_TORCH_CHECK(a.groups >= 1 && a.dim % a.groups == 0, kOp, ": ", a.dim, " channels in ", a.groups, " groups");
    a.B = maps("B", B), a.C = maps("C", C);
    a.u = sequence("u", in.u), a.delta = sequence("delta", in.delta);
    if (in.z) a.z = sequence("z", *in.z);
    a.A = A.const_data_ptr();
    a.D = vector("D", D), a.bias = vector("delta_bias", bias);
  }

  Maps maps(const char* name, const Tensor& t) const {
    check_rank(kOp, name, t, 4);
    const int group = channels_last ? 2 : 1, state = channels_last ? 3 : 2, step = channels_last ? 1 : 3;
    check_size(kOp, name, t, 0, a.batch), check_size(kOp, name, t, step, a.length);
    check_size(kOp, name, t, group, a.groups), check_size(kOp, name, t, state, a.state);
    return {t.const_data_ptr(), t.stride(0), t.stride(step), t.stride(group), t.stride(state)};
  }
  Sequence sequence(const char* name, const Tensor& t) const {
    check_rank(kOp, name, t, 3);
    const int channel = channels_last ? 2 : 1, step = channels_last ? 1 : 2;
    check_size(kOp, name, t, 0, a.batch), check_size(kOp, name, t, step, a.length), check_size(kOp, name, t, channel, a.dim);
    // A single entry may carry any stride; the kernel's fast paths ask for 1.
    const int64_t c = a.dim == 1 && channels_last ? 1 : t.stride(channel);
    const int64_t s = a.length == 1 && !channels_last ? 1 : t.stride(step);
    return {const_cast<void*>(t.const_data_ptr()), dtype_of(kOp, name, t), t.stride(0), s, c};
  }
  const void* vector(const char* name, const OptionalTensor& t) const {
    if (!t) return nullptr;
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == a.dim, kOp, ": ", name, " must hold one number per channel");
    return t->const_data_ptr();
  }
  const Pair<ScanArgs>& kernel() const { return wide ? kernels().scan_f64 : kernels().scan_f32; }
  bool empty() const { return a.batch == 0 || a.dim == 0 || a.length == 0; }
};

std::tuple<Tensor, Tensor> forward(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                                   const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                                   const OptionalTensor& bias, bool softplus, bool reverse, bool channels_last,
                                   bool return_last) {
  Call call({u, delta, A, B, C, D, z, bias}, softplus, reverse, channels_last);
  ScanArgs& a = call.a;
  Tensor out = torch::stable::new_empty(u, u.sizes());
  Tensor last = return_last ? torch::stable::new_zeros(call.A, {a.batch, a.dim, a.state}) : nothing(call.A);
  if (call.empty()) return {out, last};
  a.out = call.sequence("out", out);
  a.last = return_last ? last.mutable_data_ptr() : nullptr;
  run(call.kernel().forward, a);
  return {out, last};
}

// Sums `count` partial results that lie behind each other, in double precision and in a fixed order.
template <class T>
void fold_into(T* out, const T* parts, int64_t size, int64_t count) {
  torch::stable::parallel_for(0, size, 4096, [&](int64_t begin, int64_t end) {
    constexpr int64_t chunk = 256;
    double sums[chunk];
    for (int64_t i = begin; i < end; i += chunk) {
      const int64_t n = end - i < chunk ? end - i : chunk;
      for (int64_t j = 0; j < n; ++j) sums[j] = parts[i + j];
      for (int64_t p = 1; p < count; ++p)
        for (int64_t j = 0; j < n; ++j) sums[j] += parts[p * size + i + j];
      for (int64_t j = 0; j < n; ++j) out[i + j] = T(sums[j]);
    }
  });
}

Tensor fold(const Tensor& parts, bool wide) {
  const auto sizes = parts.sizes();
  const std::vector<int64_t> rest(sizes.begin() + 1, sizes.end());
  if (parts.size(0) == 1) return torch::stable::view(parts, rest);
  Tensor out = torch::stable::new_empty(parts, rest);
  if (wide)
    fold_into((double*)out.mutable_data_ptr(), (const double*)parts.const_data_ptr(), out.numel(), parts.size(0));
  else
    fold_into((float*)out.mutable_data_ptr(), (const float*)parts.const_data_ptr(), out.numel(), parts.size(0));
  return out;
}

// [B, L, G, N] in the compute type -> the layout and dtype of B (or C).
Tensor as_maps(const Tensor& grad, const Tensor& like, bool channels_last) {
  if (channels_last) return as_type(grad, like.scalar_type());
  Tensor t = torch::stable::transpose(torch::stable::transpose(grad, 1, 2), 2, 3);  // [B, G, N, L]
  return torch::stable::contiguous(as_type(t, like.scalar_type()));
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients backward(const Tensor& grad, const OptionalTensor& grad_last, const Tensor& u, const Tensor& delta,
                   const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                   const OptionalTensor& bias, bool softplus, bool reverse, bool channels_last) {
  Call call({u, delta, A, B, C, D, z, bias}, softplus, reverse, channels_last);
  ScanArgs& a = call.a;
  const Tensor& like = call.A;
  const OptionalTensor upstream_last = dense(grad_last, call.compute);
  if (upstream_last)
    STD_TORCH_CHECK(upstream_last->numel() == a.batch * a.dim * a.state, kOp, ": grad_last_state has the wrong size");
  Tensor du = torch::stable::new_empty(u, u.sizes()), ddelta = torch::stable::new_empty(delta, delta.sizes());
  Tensor dz = z ? torch::stable::new_empty(*z, z->sizes()) : nothing(u);
  if (call.empty()) {
    const auto zeros = [](const Tensor& t) { return torch::stable::new_zeros(t, t.sizes()); };
    return {du, ddelta, zeros(call.A), zeros(B), zeros(C), D ? zeros(*call.D) : nothing(like), dz,
            bias ? zeros(*call.bias) : nothing(like)};
  }
  const int64_t blocks = kernels().scan_blocks(a, call.wide);
  Tensor dB = torch::stable::new_empty(like, {blocks, a.batch, a.length, a.groups, a.state});
  Tensor dC = torch::stable::new_empty(like, {blocks, a.batch, a.length, a.groups, a.state});
  Tensor dA = torch::stable::new_empty(like, {a.batch, a.dim, a.state});
  Tensor dD = torch::stable::new_empty(like, {a.batch, a.dim}), dbias = torch::stable::new_empty(like, {a.batch, a.dim});
  a.grad = call.sequence("grad", grad), a.grad_last = upstream_last ? upstream_last->const_data_ptr() : nullptr;
  a.du = call.sequence("du", du), a.ddelta = call.sequence("ddelta", ddelta);
  if (z) a.dz = call.sequence("dz", dz);
  a.dB = dB.mutable_data_ptr(), a.dC = dC.mutable_data_ptr();
  a.dA = dA.mutable_data_ptr(), a.dD = dD.mutable_data_ptr(), a.dbias = dbias.mutable_data_ptr();
  run(call.kernel().backward, a);
  return {du,
          ddelta,
          fold(dA, call.wide),
          as_maps(fold(dB, call.wide), B, channels_last),
          as_maps(fold(dC, call.wide), C, channels_last),
          D ? fold(dD, call.wide) : nothing(like),
          dz,
          bias ? fold(dbias, call.wide) : nothing(like)};
}

}  // namespace
}  // namespace openrec

STABLE_TORCH_LIBRARY_IMPL(openrec, CPU, m) {
  m.impl("selective_scan_forward", TORCH_BOX(&openrec::forward));
  m.impl("selective_scan_backward", TORCH_BOX(&openrec::backward));
}
