// Launches of the selective scan kernels (scan.cuh).
#include "selective_scan/launch.h"

#include "selective_scan/scan.cuh"

namespace openrec::cuda {
namespace {

constexpr int64_t kSharedLimit = 48 * 1024;  // what every architecture gives without asking

bool aligned(const void* p, int bytes) { return reinterpret_cast<uintptr_t>(p) % uintptr_t(bytes) == 0; }

int64_t round_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// How a launch divides its work, and where its working memory lies.
struct Plan {
  Access access;
  bool one_state;
  int width;  // channels of a block
  int group_blocks, warps, chunks;
  int64_t blocks, shared;
  // Offsets into the workspace in bytes, -1 where shared memory or registers serve.
  int64_t carry = -1, chunk_states = -1, private_dA = -1, part_time = -1, part_bc = -1, workspace = 0;

  int64_t take(int64_t bytes) {
    const int64_t at = workspace;
    workspace += round_up(bytes);
    return at;
  }
};

// The fast kernels need what they load in one piece to be aligned; the caller knows about pointers, this about sizes.
template <class T>
Plan make_plan(const ScanProblem& p, bool gated, bool pointers_aligned, bool backward) {
  Plan plan;
  const int group_dim = p.dim / p.groups;
  plan.access = kSingles;
  plan.one_state = p.states == 1 && !gated && sizeof(T) != 8;
  if (plan.one_state && pointers_aligned) {
    if (p.channels_last && sizeof(T) == 2 && group_dim % 2 == 0) plan.access = kPairs;
    if (!p.channels_last && p.length % kSteps<T> == 0) plan.access = kRows;
  }
  if (sizeof(T) == 2 && plan.access == kSingles) plan.one_state = false;  // the general kernel serves odd shapes
  plan.width = plan.access != kSingles && sizeof(T) == 2 ? 64 : 32;
  plan.group_blocks = int(ceil_div(group_dim, plan.width));
  plan.blocks = p.batch * p.groups * plan.group_blocks;
  const int64_t pieces = ceil_div(p.length, kSteps<T>);
  int warps = 1;
  while (warps < 8 && warps < pieces) warps *= 2;
  if (!backward && warps == 8 && pieces >= 16 && plan.blocks < 512) warps = 16;  // few blocks: more warps in each
  plan.warps = warps;
  plan.chunks = int(ceil_div(pieces, warps));

  const int64_t acc = sizeof(acc_t<T>), states = plan.one_state ? 1 : p.states;
  const int64_t tile = acc * plan.width;
  plan.shared = 2 * int64_t(warps) * tile * (backward ? 3 : 2);
  const int64_t carry = 2 * states * tile, own = backward && !plan.one_state ? warps * states * tile : 0;
  if (plan.shared + carry <= kSharedLimit)
    plan.shared += carry;
  else
    plan.carry = plan.take(plan.blocks * carry);
  if (backward) {
    if (plan.carry >= 0 || plan.shared + own > kSharedLimit)
      plan.private_dA = plan.take(plan.blocks * own);
    else
      plan.shared += own;
    if (plan.chunks > 1) plan.chunk_states = plan.take(plan.blocks * (plan.chunks - 1) * states * tile);
    plan.part_time = plan.take(p.batch * (p.states + 2) * p.dim * acc);
    plan.part_bc = plan.take(plan.group_blocks * p.batch * p.groups * p.states * 2 * p.length * acc);
  }
  return plan;
}

template <class T>
ScanArgs<T> arguments_of(const ScanProblem& p, const ScanInputs& in, const Plan& plan, void* workspace) {
  using A = acc_t<T>;
  ScanArgs<T> a{};
  a.batch = p.batch, a.dim = p.dim, a.length = p.length, a.groups = p.groups, a.states = p.states;
  a.group_dim = p.dim / p.groups, a.group_blocks = plan.group_blocks, a.chunks = plan.chunks;
  a.softplus = p.softplus, a.reverse = p.reverse, a.channels_last = p.channels_last;
  a.b_batch = p.b_batch, a.b_group = p.b_group, a.b_state = p.b_state, a.b_step = p.b_step;
  a.c_batch = p.c_batch, a.c_group = p.c_group, a.c_state = p.c_state, a.c_step = p.c_step;
  a.u = static_cast<const T*>(in.u), a.delta = static_cast<const T*>(in.delta), a.z = static_cast<const T*>(in.z);
  a.B = in.B, a.C = in.C, a.b_wide = p.b_wide, a.c_wide = p.c_wide;
  a.A_ = static_cast<const A*>(in.A), a.D = static_cast<const A*>(in.D), a.bias = static_cast<const A*>(in.delta_bias);
  const auto at = [&](int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<A*>(static_cast<char*>(workspace) + offset);
  };
  a.carry = at(plan.carry), a.chunk_states = at(plan.chunk_states), a.private_dA = at(plan.private_dA);
  a.part_time = at(plan.part_time), a.part_bc = at(plan.part_bc);
  return a;
}

template <class T, Access kAccess, bool kOneState>
int launch(bool backward, const ScanArgs<T>& a, const Plan& plan, void* stream) {
  auto* kernel = backward ? &scan_backward<T, kAccess, kOneState> : &scan_forward<T, kAccess, kOneState>;
  OPENREC_LAUNCH(kernel, dim3(unsigned(plan.blocks)), dim3(unsigned(plan.warps * 32)), size_t(plan.shared), stream, a);
  return int(cudaGetLastError());
}

// Picks the kernel. double has the general one only; 32-bit types need no pairs.
template <class T>
int launch_any(bool backward, const ScanArgs<T>& a, const Plan& plan, void* stream) {
  if constexpr (sizeof(T) != 8) {
    if (plan.access == kRows) return launch<T, kRows, true>(backward, a, plan, stream);
    if constexpr (sizeof(T) == 2) {
      if (plan.access == kPairs) return launch<T, kPairs, true>(backward, a, plan, stream);
    } else {
      if (plan.one_state) return launch<T, kSingles, true>(backward, a, plan, stream);
    }
  }
  return launch<T, kSingles, false>(backward, a, plan, stream);
}

template <class T>
struct Forward {
  static int run(const ScanProblem& p, const ScanInputs& in, void* out, void* last_state, void* workspace, void* stream) {
    const bool fine = aligned(in.u, 16) && aligned(in.delta, 16) && aligned(out, 16);
    const Plan plan = make_plan<T>(p, in.z, fine, false);
    ScanArgs<T> a = arguments_of<T>(p, in, plan, workspace);
    a.out = static_cast<T*>(out);
    a.last_state = static_cast<acc_t<T>*>(last_state);
    return launch_any<T>(false, a, plan, stream);
  }
};

template <class T>
struct Backward {
  static int run(const ScanProblem& p, const ScanInputs& in, const void* grad, const void* grad_last_state,
                 const ScanGradients& to, void* workspace, void* stream) {
    using A = acc_t<T>;
    const bool fine = aligned(in.u, 16) && aligned(in.delta, 16) && aligned(grad, 16) && aligned(to.u, 16) &&
                      aligned(to.delta, 16);
    const Plan plan = make_plan<T>(p, in.z, fine, true);
    ScanArgs<T> a = arguments_of<T>(p, in, plan, workspace);
    a.grad = static_cast<const T*>(grad);
    a.grad_last = static_cast<const A*>(grad_last_state);
    a.du = static_cast<T*>(to.u), a.ddelta = static_cast<T*>(to.delta), a.dz = static_cast<T*>(to.z);
    if (int error = launch_any<T>(true, a, plan, stream)) return error;

    FinishArgs<T> f{};
    f.batch = p.batch, f.dim = p.dim, f.length = p.length, f.groups = p.groups, f.states = p.states;
    f.group_blocks = plan.group_blocks, f.channels_last = p.channels_last;
    f.part_time = a.part_time, f.part_bc = a.part_bc;
    f.dA = static_cast<A*>(to.A), f.dD = static_cast<A*>(to.D), f.dbias = static_cast<A*>(to.delta_bias);
    f.dB = to.B, f.dC = to.C, f.b_wide = p.b_wide, f.c_wide = p.c_wide;
    f.time_blocks = int(ceil_div(int64_t(p.states + 2) * p.dim, 32));
    const int64_t others = ceil_div(2 * p.batch * p.groups * p.states * p.length, 256);
    const dim3 grid(unsigned(f.time_blocks + (others < (1 << 20) ? others : (1 << 20))));
    auto* kernel = &scan_finish<T>;
    OPENREC_LAUNCH(kernel, grid, dim3(256), 256 * sizeof(A), stream, f);
    return int(cudaGetLastError());
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

// The larger one of what any kernel that may be picked needs: pointers are not known yet.
int64_t workspace_of(const ScanProblem& p, bool backward) {
  int64_t bytes = 0;
  for (int gated = 0; gated < 2; ++gated)
    for (int fine = 0; fine < 2; ++fine) {
      const Plan plan = p.dtype == DType::kFloat    ? make_plan<float>(p, gated, fine, backward)
                        : p.dtype == DType::kDouble ? make_plan<double>(p, gated, fine, backward)
                                                    : make_plan<half_t>(p, gated, fine, backward);
      bytes = plan.workspace > bytes ? plan.workspace : bytes;
    }
  return bytes;
}

}  // namespace

int64_t selective_scan_forward_workspace(const ScanProblem& p) { return workspace_of(p, false); }
int64_t selective_scan_backward_workspace(const ScanProblem& p) { return workspace_of(p, true); }

int selective_scan_forward(const ScanProblem& p, const ScanInputs& in, void* out, void* last_state, void* workspace,
                           void* stream) {
  return dispatch<Forward, const ScanProblem&, const ScanInputs&>(p.dtype, p, in, out, last_state, workspace, stream);
}

int selective_scan_backward(const ScanProblem& p, const ScanInputs& in, const void* grad, const void* grad_last_state,
                            const ScanGradients& to, void* workspace, void* stream) {
  return dispatch<Backward, const ScanProblem&, const ScanInputs&, const void*, const void*, const ScanGradients&>(
      p.dtype, p, in, grad, grad_last_state, to, workspace, stream);
}

}  // namespace openrec::cuda
