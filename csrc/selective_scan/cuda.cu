// Launches of the selective scan kernels (scan.cuh, general.cuh).
#include "selective_scan/launch.h"

#include "selective_scan/general.cuh"
#include "selective_scan/scan.cuh"

namespace openrec::cuda {
namespace {

constexpr int64_t kSharedLimit = 48 * 1024;  // what every architecture gives without asking

int64_t round_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

bool aligned(std::initializer_list<const void*> pointers) {
  for (const void* p : pointers)
    if (reinterpret_cast<uintptr_t>(p) % 16) return false;
  return true;
}

// How a launch divides its work, and where its working memory lies.
struct Plan {
  bool general;
  Access access;  // unless general
  int group_blocks, warps, chunks;
  int64_t blocks, shared;
  // Offsets into the workspace in bytes, -1 where shared memory or registers serve.
  int64_t carry = -1, chunk_states = -1, own = -1, part_time = -1, part_bc = -1, workspace = 0;

  int64_t take(int64_t bytes) {
    const int64_t at = workspace;
    workspace += round_up(bytes);
    return at;
  }
};

Plan make_plan(const ScanProblem& p, bool gated, bool pointers_aligned, bool backward) {
  Plan plan;
  const int group_dim = p.dim / p.groups;
  const bool is_double = p.dtype == DType::kDouble, is_float = p.dtype == DType::kFloat, narrow = !is_double && !is_float;
  const int steps = is_double ? kSteps<double> : kSteps<float>;
  plan.general = p.states != 1 || gated || is_double;
  plan.access = kSingles;
  if (pointers_aligned && narrow && p.channels_last && group_dim % 2 == 0) plan.access = kPairs;
  if (pointers_aligned && !p.channels_last && p.length % steps == 0) plan.access = kRows;
  if (plan.access == kSingles && narrow) plan.general = true;
  if (int64_t(p.length) * p.dim >= (int64_t(1) << 31) / 4) plan.general = true;  // the others index a sequence in 32 bits
  const int width = !plan.general && narrow ? 64 : 32;
  plan.group_blocks = int(ceil_div(group_dim, width));
  plan.blocks = p.batch * p.groups * plan.group_blocks;
  const int64_t pieces = ceil_div(p.length, steps);
  const int most = (plan.general && backward ? kGeneralBackwardThreads : kScanThreads) / 32;
  int warps = 1;
  while (warps < most && warps < pieces) warps *= 2;
  plan.warps = warps;
  plan.chunks = int(ceil_div(pieces, warps));

  const int64_t acc = is_double ? 8 : 4, row = acc * width;  // bytes of one number per channel
  plan.shared = 2 * warps * row * (backward ? 3 : 2);        // the pieces
  const int64_t carry = 2 * p.states * row, own = backward ? warps * (p.states + 2) * row : 0;
  if (plan.shared + carry <= kSharedLimit)
    plan.shared += carry;
  else
    plan.carry = plan.take(plan.blocks * carry);
  if (backward) {
    if (plan.carry >= 0 || plan.shared + own > kSharedLimit)
      plan.own = plan.take(plan.blocks * own);
    else
      plan.shared += own;
    if (plan.chunks > 1) plan.chunk_states = plan.take(plan.blocks * (plan.chunks - 1) * p.states * row);
    plan.part_time = plan.take(p.batch * (p.states + 2) * p.dim * acc);
    plan.part_bc = plan.take(plan.group_blocks * p.batch * p.groups * p.states * 2 * p.length * acc);
  }
  return plan;
}

template <class A>
ScanArgs<A> arguments_of(const ScanProblem& p, const ScanInputs& in, const Plan& plan, void* workspace) {
  ScanArgs<A> a{};
  a.batch = p.batch, a.dim = p.dim, a.length = p.length, a.groups = p.groups, a.states = p.states;
  a.group_dim = p.dim / p.groups, a.group_blocks = plan.group_blocks, a.chunks = plan.chunks;
  a.by_group_blocks = FastDiv(uint32_t(plan.group_blocks)), a.by_groups = FastDiv(uint32_t(p.groups));
  a.softplus = p.softplus, a.reverse = p.reverse, a.channels_last = p.channels_last;
  a.b_batch = p.b_batch, a.b_group = p.b_group, a.b_state = p.b_state, a.b_step = p.b_step;
  a.c_batch = p.c_batch, a.c_group = p.c_group, a.c_state = p.c_state, a.c_step = p.c_step;
  a.type = p.dtype, a.b_type = p.b_type, a.c_type = p.c_type;
  a.u = in.u, a.delta = in.delta, a.z = in.z, a.B = in.B, a.C = in.C;
  a.A_ = static_cast<const A*>(in.A), a.D = static_cast<const A*>(in.D), a.bias = static_cast<const A*>(in.delta_bias);
  const auto at = [&](int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<A*>(static_cast<char*>(workspace) + offset);
  };
  a.carry = at(plan.carry), a.chunk_states = at(plan.chunk_states), a.own = at(plan.own);
  a.part_time = at(plan.part_time), a.part_bc = at(plan.part_bc);
  return a;
}

template <class A>
using Kernel = void (*)(ScanArgs<A>);

template <class T>
Kernel<float> one_state_kernel(Access access, bool backward) {
  if (access == kRows) return backward ? &scan_backward<T, kRows> : &scan_forward<T, kRows>;
  constexpr Access kOther = sizeof(T) == 2 ? kPairs : kSingles;
  return backward ? &scan_backward<T, kOther> : &scan_forward<T, kOther>;
}

Kernel<float> pick(const Plan& plan, DType dtype, bool backward, float) {
  if (plan.general) return backward ? &general_backward<float> : &general_forward<float>;
  if (dtype == DType::kFloat) return one_state_kernel<float>(plan.access, backward);
  if (dtype == DType::kHalf) return one_state_kernel<half_t>(plan.access, backward);
  return one_state_kernel<bf16_t>(plan.access, backward);
}
Kernel<double> pick(const Plan&, DType, bool backward, double) {
  return backward ? &general_backward<double> : &general_forward<double>;
}

template <class A>
int forward(const ScanProblem& p, const ScanInputs& in, void* out, void* last_state, void* workspace, void* stream) {
  const Plan plan = make_plan(p, in.z != nullptr, aligned({in.u, in.delta, out}), false);
  ScanArgs<A> a = arguments_of<A>(p, in, plan, workspace);
  a.out = out;
  a.last_state = static_cast<A*>(last_state);
  const Kernel<A> kernel = pick(plan, p.dtype, false, A());
  OPENREC_LAUNCH(kernel, dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), size_t(plan.shared), stream, a);
  return int(cudaGetLastError());
}

template <class A>
int backward(const ScanProblem& p, const ScanInputs& in, const void* grad, const void* grad_last_state,
             const ScanGradients& to, void* workspace, void* stream) {
  const Plan plan = make_plan(p, in.z != nullptr, aligned({in.u, in.delta, grad, to.u, to.delta}), true);
  ScanArgs<A> a = arguments_of<A>(p, in, plan, workspace);
  a.grad = grad;
  a.grad_last = static_cast<const A*>(grad_last_state);
  a.du = to.u, a.ddelta = to.delta, a.dz = to.z;
  const Kernel<A> kernel = pick(plan, p.dtype, true, A());
  OPENREC_LAUNCH(kernel, dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), size_t(plan.shared), stream, a);
  if (int error = int(cudaGetLastError())) return error;

  FinishArgs<A> f{};
  f.batch = p.batch, f.dim = p.dim, f.length = p.length, f.groups = p.groups, f.states = p.states;
  f.group_blocks = plan.group_blocks, f.channels_last = p.channels_last;
  f.part_time = a.part_time, f.part_bc = a.part_bc;
  f.dA = static_cast<A*>(to.A), f.dD = static_cast<A*>(to.D), f.dbias = static_cast<A*>(to.delta_bias);
  f.dB = to.B, f.dC = to.C, f.b_type = p.b_type, f.c_type = p.c_type;
  f.time_blocks = int(ceil_div(int64_t(p.states + 2) * p.dim, 32));
  const int64_t others = ceil_div(2 * p.batch * p.groups * p.states * p.length, kScanThreads);
  const dim3 grid(unsigned(f.time_blocks + (others < (1 << 20) ? others : (1 << 20))));
  auto* finish = &scan_finish<A>;
  OPENREC_LAUNCH(finish, grid, dim3(kScanThreads), kScanThreads * sizeof(A), stream, f);
  return int(cudaGetLastError());
}

// The larger one of what the kernels that may be picked need: pointers are not known yet.
int64_t workspace_of(const ScanProblem& p, bool backward) {
  int64_t bytes = 0;
  for (const bool gated : {false, true})
    for (const bool fine : {false, true}) {
      const int64_t need = make_plan(p, gated, fine, backward).workspace;
      bytes = need > bytes ? need : bytes;
    }
  return bytes;
}

}  // namespace

int64_t selective_scan_forward_workspace(const ScanProblem& p) { return workspace_of(p, false); }
int64_t selective_scan_backward_workspace(const ScanProblem& p) { return workspace_of(p, true); }

int selective_scan_forward(const ScanProblem& p, const ScanInputs& in, void* out, void* last_state, void* workspace,
                           void* stream) {
  return (p.dtype == DType::kDouble ? &forward<double> : &forward<float>)(p, in, out, last_state, workspace, stream);
}

int selective_scan_backward(const ScanProblem& p, const ScanInputs& in, const void* grad, const void* grad_last_state,
                            const ScanGradients& to, void* workspace, void* stream) {
  return (p.dtype == DType::kDouble ? &backward<double> : &backward<float>)(p, in, grad, grad_last_state, to, workspace,
                                                                            stream);
}

}  // namespace openrec::cuda
