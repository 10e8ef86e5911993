// The selective scan on CUDA: h_t = e^(delta_t A) h_(t-1) + delta_t u_t B_t, y_t = C_t h_t + D u_t, optionally gated.
//
// The recurrence is Mamba's (arXiv 2312.00752, state-spaces/mamba, Apache-2.0); the kernels are this project's own.
//
// A lane owns one or two channels, a warp kSteps consecutive steps of them in registers, the warps of a block neighbouring
// pieces of the sequence. A piece is an affine map of the state, h -> product * h + offset: each warp scans its piece from
// zero, puts the map into shared memory, and after one barrier composes the maps before it. What y lacks is then
// (C_t times the product up to t) * incoming state. Longer sequences go chunk by chunk. Backward does the same in both
// directions at once (the maps of h and of its gradient share their products), reading its inputs once per chunk; only
// sequences of several chunks are first run forwards for the states between chunks.
//
// This file: what all kernels share, and the kernels for one state per channel without a gate (the adaptive scan's case),
// in three layouts: kPairs (channels last, two 16-bit channels per 32-bit word), kRows (channels first, each lane reads runs
// of a channel with 16-byte loads), kSingles (any layout, one channel per lane, element by element). general.cuh: any number
// of states, gates, double.
//
// Sums over channels (dB, dC) and over batch and time (dA, dD, dbias) are written as partial sums and added in a fixed order
// by scan_finish: no atomics, the same bits in every run.
#pragma once

#include "cuda/device.cuh"
#include "selective_scan/launch.h"

namespace openrec::cuda {

enum Access { kPairs, kRows, kSingles };

constexpr int kScanThreads = 256, kGeneralBackwardThreads = 128;

// Steps of a warp's piece, and channels of a lane.
template <class A>
constexpr int kSteps = sizeof(A) == 8 ? 4 : 8;
template <class T, Access kAccess>
constexpr int kChannels = kAccess != kSingles && sizeof(T) == 2 ? 2 : 1;

template <class A>
struct ScanArgs {
  int64_t batch;
  int dim, length, groups, states;
  int group_dim;     // channels of a group
  int group_blocks;  // blocks per group
  FastDiv by_group_blocks, by_groups;
  int chunks;
  bool softplus, reverse, channels_last;
  int64_t b_batch, b_group, b_state, b_step, c_batch, c_group, c_state, c_step;
  DType type, b_type, c_type;
  const void *u, *delta, *z, *B, *C;
  const A *A_, *D, *bias;
  // forward
  void* out;
  A* last_state;
  A* carry;  // [block][2][states][channels]: states between chunks, null where shared memory holds them
  // backward
  const void* grad;
  const A* grad_last;
  void *du, *ddelta, *dz;
  A* chunk_states;  // [block][chunks - 1][states][channels]
  A* own;           // [block][warps][states + 2][channels]: time sums of each warp, null where shared memory holds it
  A* part_time;     // [batch][states + 2][dim]: dA, dD, dbias of one sequence
  A* part_bc;       // [group_blocks][batch][groups][states][2][length]: dB, dC of one block's channels
};

// ---------------------------------------------------------------------------------------------------- blocks and lanes
// What a lane of N channels works on.
template <class A, int N>
struct Lane {
  static constexpr int kWidth = 32 * N;  // channels of a block
  int lane, warp, warps, slot;           // slot: the lane's first channel in the block
  int64_t block, b;
  int group, group_block, channel, channels;  // the lane's first channel in the sequence, number of valid ones

  OPENREC_FN Lane(const ScanArgs<A>& p, int thread) {
    lane = thread & 31;
    warp = thread >> 5;
    warps = int(blockDim.x) >> 5;
    slot = lane * N;
    block = blockIdx.x;  // at most 2^31 of them
    const uint32_t map = p.by_group_blocks.quotient(blockIdx.x), batch = p.by_groups.quotient(map);
    group_block = int(blockIdx.x - map * uint32_t(p.group_blocks));
    group = int(map - batch * uint32_t(p.groups));
    b = batch;
    const int in_group = group_block * kWidth + slot, left = p.group_dim - in_group;
    channels = left < 0 ? 0 : (left < N ? left : N);
    channel = group * p.group_dim + in_group;
  }
  // One number per channel; 0 for absent channels and absent tensors.
  OPENREC_FN void read(const A* p, int64_t stride, int64_t offset, A (&x)[N]) const {
#pragma unroll
    for (int c = 0; c < N; ++c) x[c] = p && c < channels ? p[(channel + c) * stride + offset] : A(0);
  }
};

// B and C are the same for all channels of a block: lane j < kT holds B of step j, lane kT + j holds C.
template <class A>
struct SharedInputs {
  static constexpr int kT = kSteps<A>;
  A mine;

  template <class L>
  OPENREC_FN SharedInputs(const ScanArgs<A>& p, const L& l, int state, int step) {
    const int j = l.lane % kT, which = l.lane / kT;
    const int t = p.reverse ? p.length - 1 - (step + j) : step + j;
    mine = A(0);
    if (which < 2 && step + j < p.length) {
      const int64_t at = which ? l.b * p.c_batch + l.group * p.c_group + state * p.c_state + t * p.c_step
                               : l.b * p.b_batch + l.group * p.b_group + state * p.b_state + t * p.b_step;
      mine = read_any<A>(which ? p.C : p.B, at, which ? p.c_type : p.b_type);
    }
  }
  OPENREC_FN A b(int j) const { return __shfl_sync(0xffffffffu, mine, j); }
  OPENREC_FN A c(int j) const { return __shfl_sync(0xffffffffu, mine, kT + j); }
};

template <class A>
struct Piece {  // the map of a warp's steps for one channel
  A product, offset;
};
template <class A>
struct TwoWayPiece {
  A product, offset, back;  // h -> product h + offset; the gradient e -> product e + back
};

// The state before warp `end`, from the one before warp 0.
template <class P, class A>
OPENREC_FN A advance(const P* row, int width, int end, A h) {
  for (int w = 0; w < end; ++w) h = row[w * width].product * h + row[w * width].offset;
  return h;
}

// Adds kValues values over the 32 lanes; lane i ends up with the sum of value lane_value(i). Each step halves the values a
// lane holds, so it costs about kValues shuffles and not 5 * kValues.
template <int kValues, int kHalf = 16, class A, int kSize>
OPENREC_FN void reduce_lanes(A (&x)[kSize], int lane) {
  if constexpr (kValues > 1) {
    const bool upper = lane & kHalf;
#pragma unroll
    for (int i = 0; i < kValues / 2; ++i) {
      const A send = upper ? x[i] : x[i + kValues / 2], keep = upper ? x[i + kValues / 2] : x[i];
      x[i] = keep + __shfl_xor_sync(0xffffffffu, send, kHalf);
    }
    reduce_lanes<kValues / 2, kHalf / 2>(x, lane);
  } else if constexpr (kHalf >= 1) {
    x[0] += __shfl_xor_sync(0xffffffffu, x[0], kHalf);
    reduce_lanes<1, kHalf / 2>(x, lane);
  }
}

// Writes dB (the first half of x) and dC (the second) of kCount / 2 steps, summed over the block's channels.
template <int kCount, class A, class L>
OPENREC_FN void write_shared_gradients(const ScanArgs<A>& p, const L& l, int state, int step, A (&x)[kCount]) {
  constexpr int kHalf = kCount / 2, kLanesPerValue = 32 / kCount;
  reduce_lanes<kCount>(x, l.lane);
  const int value = l.lane / kLanesPerValue, t = step + value % kHalf;
  if (l.lane % kLanesPerValue == 0 && t < p.length) {
    const int64_t map = (l.group_block * p.batch + l.b) * p.groups + l.group;
    p.part_bc[((map * p.states + state) * 2 + value / kHalf) * p.length + (p.reverse ? p.length - 1 - t : t)] = x[0];
  }
}

// Adds the sums that warps hold for their steps, in order: what is left of dA, dD, dbias is a sum over the batch.
// `own`: [warps][states + 2][kWidth].
template <class A, class L>
OPENREC_FN void write_time_gradients(const ScanArgs<A>& p, const L& l, const A* own) {
  constexpr int kWidth = L::kWidth;
  const int rows = p.states + 2;
  __syncthreads();
  A* const out = p.part_time + l.b * rows * p.dim;
  for (int i = int(threadIdx.x); i < rows * kWidth; i += int(blockDim.x)) {
    const int row = i / kWidth, c = i - row * kWidth, channel = l.group_block * kWidth + c;
    if (channel >= p.group_dim) continue;
    A total = A(0);
    for (int w = 0; w < l.warps; ++w) total += own[(w * rows + row) * kWidth + c];
    out[row * int64_t(p.dim) + l.group * p.group_dim + channel] = total;
  }
}

// ------------------------------------------------------------------------------- kSteps steps of a lane's channels
template <class T, Access kAccess, int kT = kSteps<acc_t<T>>>
struct Tile {
  using A = acc_t<T>;
  static constexpr int kN = kChannels<T, kAccess>;
  static constexpr int kWide = kAccess == kRows ? kT : kN;  // values that lie together
  Packed<T, kWide> part[kN * kT / kWide];

  OPENREC_FN A get(int channel, int step) const {
    return kAccess == kRows ? part[channel].get(step) : part[step].get(channel);
  }
  // Keeps the compiler from holding unpacked values, twice the registers, from before to after this point.
  OPENREC_FN void stay_packed() {
#pragma unroll
    for (int i = 0; i < kN * kT / kWide; ++i)
#pragma unroll
      for (int k = 0; k < Packed<T, kWide>::kWords; ++k) part[i].word[k] = renewed(part[i].word[k]);
  }
};

// Where a lane's values lie in u, delta and the like. Within a sequence 32 bits do (the host sees to it).
template <class T, Access kAccess>
struct Place {
  using A = acc_t<T>;
  static constexpr int kN = kChannels<T, kAccess>;
  int64_t sequence;  // first element of this sequence, the same for the whole block
  int first;         // the lane's first channel at the first step, in order of the scan
  int stride;        // to the next step in order of the scan
  int length, channels;
  bool reverse;

  template <class L>
  OPENREC_FN Place(const ScanArgs<A>& p, const L& l) : length(p.length), channels(l.channels), reverse(p.reverse) {
    const bool last = kAccess == kPairs || (kAccess == kSingles && p.channels_last);
    stride = last ? p.dim : 1;
    sequence = l.b * p.length * int64_t(p.dim);
    first = (last ? l.channel : l.channel * p.length) + (reverse ? (length - 1) * stride : 0);
    stride = reverse ? -stride : stride;
  }
  // Run of `count` steps of channel c (kRows).
  OPENREC_FN int run(int c, int step, int count) const {
    return first + c * length + (reverse ? -(step + count - 1) : step);
  }
  template <int kT = kSteps<A>>
  OPENREC_FN Tile<T, kAccess, kT> load(const void* from, int step) const {
    const T* const p = static_cast<const T*>(from) + sequence;
    Tile<T, kAccess, kT> tile;
    if constexpr (kAccess == kRows) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        tile.part[c].clear();
        if (c < channels && step < length) tile.part[c].load(p + run(c, step, kT));
        if (reverse) tile.part[c].flip();
      }
    } else {
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        tile.part[j].clear();
        if (channels > 0 && step + j < length) tile.part[j].load(p + (first + (step + j) * stride));
      }
    }
    return tile;
  }
  template <int kT>
  OPENREC_FN void store(void* to, int step, const A (&x)[kN][kT]) const {
    T* const p = static_cast<T*>(to) + sequence;
    if constexpr (kAccess == kRows) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        Packed<T, kT> v;
        v.set(x[c]);
        if (reverse) v.flip();
        if (c < channels && step < length) v.store(p + run(c, step, kT));
      }
    } else {
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        A values[kN];
#pragma unroll
        for (int c = 0; c < kN; ++c) values[c] = x[c][j];
        Packed<T, kN> v;
        v.set(values);
        if (channels > 0 && step + j < length) v.store(p + (first + (step + j) * stride));
      }
    }
  }
};

// The step sizes, zero (the identity of the recurrence) where there is no step or no channel.
template <class T, int N, int kT, class Raw>
OPENREC_FN void read_delta(const ScanArgs<acc_t<T>>& p, int channels, const Raw& raw, int step, const acc_t<T> (&bias)[N],
                           acc_t<T> (&delta)[N][kT]) {
  using A = acc_t<T>;
#pragma unroll
  for (int c = 0; c < N; ++c)
#pragma unroll
    for (int j = 0; j < kT; ++j) delta[c][j] = raw.get(c, j) + bias[c];
  if (p.softplus) {
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) delta[c][j] = Maths<T>::softplus(delta[c][j]).value;
  }
  if (step + kT > p.length || channels < N) {
#pragma unroll
    for (int c = 0; c < N; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j)
        if (step + j >= p.length || c >= channels) delta[c][j] = A(0);
  }
}

// ------------------------------------------------------------------------------------------------ one state, forward
template <class T, Access kAccess>
__global__ void __launch_bounds__(kScanThreads, sizeof(T) == 2 ? 3 : 4) scan_forward(const ScanArgs<acc_t<T>> p) {
  using A = acc_t<T>;
  using M = Maths<T>;
  constexpr int N = kChannels<T, kAccess>, kT = kSteps<A>, kWidth = 32 * N;
  OPENREC_DYNAMIC_SHARED(shared);
  const Lane<A, N> l(p, int(threadIdx.x));
  const Place<T, kAccess> place(p, l);
  Piece<A>* const pieces = reinterpret_cast<Piece<A>*>(shared);           // [2][warps][kWidth]
  A* const carry = reinterpret_cast<A*>(pieces + 2 * l.warps * kWidth);  // [2][kWidth]
  A skip[N], bias[N], rate[N];
  l.read(p.D, 1, 0, skip);
  l.read(p.bias, 1, 0, bias);
  l.read(p.A_, 1, 0, rate);
#pragma unroll
  for (int c = 0; c < N; ++c) rate[c] = M::rate(rate[c]);

  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int step = (chunk * l.warps + l.warp) * kT, odd = chunk & 1;
    const Tile<T, kAccess> u = place.load(p.u, step);
    const Tile<T, kAccess> raw = place.load(p.delta, step);
    const SharedInputs<A> in(p, l, 0, step);
    A y[N][kT], reach[N][kT], h[N], product[N];
    read_delta<T>(p, l.channels, raw, step, bias, reach);
#pragma unroll
    for (int c = 0; c < N; ++c) h[c] = A(0), product[c] = A(1);
#pragma unroll
    for (int j = 0; j < kT; ++j) {
      const A bj = in.b(j), cj = in.c(j);
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const A delta = reach[c][j], uj = u.get(c, j), decay = M::decay(delta, rate[c]);
        h[c] = decay * h[c] + delta * uj * bj;
        product[c] *= decay;
        y[c][j] = cj * h[c] + skip[c] * uj;
        reach[c][j] = cj * product[c];
      }
    }
    Piece<A>* const row = pieces + odd * l.warps * kWidth + l.slot;
#pragma unroll
    for (int c = 0; c < N; ++c) row[l.warp * kWidth + c] = Piece<A>{product[c], h[c]};
    __syncthreads();
#pragma unroll
    for (int c = 0; c < N; ++c) {
      const A before = advance(row + c, kWidth, l.warp, chunk ? carry[(odd ^ 1) * kWidth + l.slot + c] : A(0));
#pragma unroll
      for (int j = 0; j < kT; ++j) y[c][j] += reach[c][j] * before;
      if (l.warp == l.warps - 1) {
        const A after = product[c] * before + h[c];
        carry[odd * kWidth + l.slot + c] = after;
        if (p.last_state && chunk == p.chunks - 1 && c < l.channels) p.last_state[l.b * p.dim + l.channel + c] = after;
      }
    }
    place.store(p.out, step, y);
  }
}

// ----------------------------------------------------------------------------------------------- one state, backward
// Blocks per multiprocessor to leave registers for. sm_75 rounds to bfloat16 in software, which takes more of them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kBackwardBlocks = 1;
#else
constexpr int kBackwardBlocks = 2;
#endif

template <class T, Access kAccess>
__global__ void __launch_bounds__(kScanThreads, kBackwardBlocks) scan_backward(const ScanArgs<acc_t<T>> p) {
  using A = acc_t<T>;
  using M = Maths<T>;
  constexpr int N = kChannels<T, kAccess>, kT = kSteps<A>, kH = kT / 2, kWidth = 32 * N;
  OPENREC_DYNAMIC_SHARED(shared);
  const int warps = int(blockDim.x) >> 5;
  TwoWayPiece<A>* const pieces = reinterpret_cast<TwoWayPiece<A>*>(shared);        // [2][warps][kWidth]
  A* const carry = reinterpret_cast<A*>(pieces + 2 * warps * kWidth);             // [2][kWidth]
  A* const all_own = carry + 2 * kWidth;                                          // [warps][dA, dD, dbias][kWidth]
  A* const between = p.chunk_states + int64_t(blockIdx.x) * (p.chunks - 1) * kWidth;  // [chunks - 1][kWidth]
  for (int i = int(threadIdx.x); i < warps * 3 * kWidth; i += int(blockDim.x)) all_own[i] = A(0);

  int odd = 0;
  for (int chunk = 0; chunk + 1 < p.chunks; ++chunk, odd ^= 1) {  // states between chunks
    const Lane<A, N> l(p, renewed(int(threadIdx.x)));
    const Place<T, kAccess> place(p, l);
    const int step = (chunk * l.warps + l.warp) * kT;
    const Tile<T, kAccess> u = place.load(p.u, step);
    const SharedInputs<A> in(p, l, 0, step);
    A delta[N][kT], h[N], product[N], bias[N], rate[N];
    l.read(p.bias, 1, 0, bias);
    l.read(p.A_, 1, 0, rate);
    read_delta<T>(p, l.channels, place.load(p.delta, step), step, bias, delta);
#pragma unroll
    for (int c = 0; c < N; ++c) h[c] = A(0), product[c] = A(1), rate[c] = M::rate(rate[c]);
#pragma unroll
    for (int j = 0; j < kT; ++j) {
      const A bj = in.b(j);
#pragma unroll
      for (int c = 0; c < N; ++c) {
        const A decay = M::decay(delta[c][j], rate[c]);
        h[c] = decay * h[c] + delta[c][j] * u.get(c, j) * bj;
        product[c] *= decay;
      }
    }
    TwoWayPiece<A>* const row = pieces + odd * l.warps * kWidth + l.slot;
#pragma unroll
    for (int c = 0; c < N; ++c) row[l.warp * kWidth + c] = TwoWayPiece<A>{product[c], h[c], A(0)};
    __syncthreads();
    if (l.warp == l.warps - 1) {
#pragma unroll
      for (int c = 0; c < N; ++c)
        between[chunk * kWidth + l.slot + c] =
            advance(row + c, kWidth, l.warps, chunk ? between[(chunk - 1) * kWidth + l.slot + c] : A(0));
    }
  }

  for (int chunk = p.chunks - 1; chunk >= 0; --chunk, odd ^= 1) {
    const Lane<A, N> l(p, renewed(int(threadIdx.x)));  // nothing of it kept in registers from chunk to chunk
    const Place<T, kAccess> place(p, l);
    const int step = (chunk * l.warps + l.warp) * kT;
    Tile<T, kAccess> u = place.load(p.u, step), grad = place.load(p.grad, step);
    const SharedInputs<A> in(p, l, 0, step);
    A delta[N][kT], decay[N][kT], h[N], e[N], product[N], bias[N], rate[N];  // per channel: read again where used,
    l.read(p.bias, 1, 0, bias);                                             // registers are scarce
    l.read(p.A_, 1, 0, rate);
    read_delta<T>(p, l.channels, place.load(p.delta, step), step, bias, delta);
#pragma unroll
    for (int c = 0; c < N; ++c) h[c] = e[c] = A(0), product[c] = A(1), rate[c] = M::rate(rate[c]);
#pragma unroll
    for (int j = 0; j < kT; ++j) {
      const A bj = in.b(j);
#pragma unroll
      for (int c = 0; c < N; ++c) {
        decay[c][j] = M::decay(delta[c][j], rate[c]);
        h[c] = decay[c][j] * h[c] + delta[c][j] * u.get(c, j) * bj;
        product[c] *= decay[c][j];
      }
    }
#pragma unroll
    for (int j = kT - 1; j >= 0; --j) {
      const A cj = in.c(j);
#pragma unroll
      for (int c = 0; c < N; ++c) e[c] = decay[c][j] * (cj * grad.get(c, j) + e[c]);
    }
    TwoWayPiece<A>* const row = pieces + odd * l.warps * kWidth + l.slot;
#pragma unroll
    for (int c = 0; c < N; ++c) row[l.warp * kWidth + c] = TwoWayPiece<A>{product[c], h[c], e[c]};
    __syncthreads();
#pragma unroll
    for (int c = 0; c < N; ++c) {
      h[c] = advance(row + c, kWidth, l.warp, chunk ? between[(chunk - 1) * kWidth + l.slot + c] : A(0));
      if (chunk + 1 < p.chunks)
        e[c] = carry[(odd ^ 1) * kWidth + l.slot + c];
      else
        e[c] = p.grad_last && c < l.channels ? p.grad_last[l.b * p.dim + l.channel + c] : A(0);
      for (int w = l.warps - 1; w > l.warp; --w) e[c] = row[w * kWidth + c].product * e[c] + row[w * kWidth + c].back;
    }

    // States forwards, then gradients backwards. In two halves, the later steps first: half the values to keep in
    // registers, for a few multiplications more.
    A skip[N], sum_A[N], sum_D[N], sum_bias[N];
    l.read(p.D, 1, 0, skip);
    l.read(p.A_, 1, 0, rate);  // unscaled now
#pragma unroll
    for (int c = 0; c < N; ++c) sum_A[c] = sum_D[c] = sum_bias[c] = A(0);
#pragma unroll
    for (int half = kH; half >= 0; half -= kH) {
      A before[N][kH], du[N][kH], shared_grads[kT], state[N];
      u.stay_packed();
      grad.stay_packed();
#pragma unroll
      for (int c = 0; c < N; ++c) state[c] = h[c];
#pragma unroll
      for (int j = 0; j < half + kH; ++j) {
        const A bj = in.b(j);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          if (j >= half) before[c][j % kH] = state[c];
          state[c] = decay[c][j] * state[c] + delta[c][j] * u.get(c, j) * bj;
        }
      }
#pragma unroll
      for (int i = kH - 1; i >= 0; --i) {
        const int j = half + i;
        const A bj = in.b(j), cj = in.c(j);
        A db = A(0), dc = A(0);
#pragma unroll
        for (int c = 0; c < N; ++c) {
          const A uj = u.get(c, j), dy = grad.get(c, j), kept = decay[c][j] * before[c][i];
          const A dh = cj * dy + e[c], dh_delta = dh * delta[c][j];
          db += dh_delta * uj;
          dc += dy * state[c];
          sum_A[c] += dh_delta * kept;
          sum_D[c] += dy * uj;
          state[c] = before[c][i];
          e[c] = decay[c][j] * dh;
          du[c][i] = dh_delta * bj + skip[c] * dy;
          before[c][i] = dh * (uj * bj + rate[c] * kept);  // of delta after softplus
        }
        shared_grads[i] = db;
        shared_grads[kH + i] = dc;
      }
      const int again = (renewed(chunk) * l.warps + l.warp) * kT + half;  // addresses anew: not kept in registers
      place.store(p.du, again, du);
      if (p.softplus) {
        const Tile<T, kAccess, kH> raw = place.template load<kH>(p.delta, again);
        l.read(p.bias, 1, 0, bias);
#pragma unroll
        for (int c = 0; c < N; ++c)
#pragma unroll
          for (int i = 0; i < kH; ++i) before[c][i] *= M::softplus(raw.get(c, i) + bias[c]).slope;
      }
      place.store(p.ddelta, again, before);
#pragma unroll
      for (int c = 0; c < N; ++c)
#pragma unroll
        for (int i = 0; i < kH; ++i)
          if (again + i < p.length) sum_bias[c] += before[c][i];
      write_shared_gradients(p, l, 0, again, shared_grads);
    }
    if (l.warp == 0) {
#pragma unroll
      for (int c = 0; c < N; ++c) carry[odd * kWidth + l.slot + c] = e[c];
    }
#pragma unroll
    for (int c = 0; c < N; ++c) {
      A* const own = all_own + l.warp * 3 * kWidth + l.slot + c;
      own[0] += sum_A[c], own[kWidth] += sum_D[c], own[2 * kWidth] += sum_bias[c];
    }
  }
  write_time_gradients(p, Lane<A, N>(p, renewed(int(threadIdx.x))), all_own);
}

// ------------------------------------------------------------------------------------------------------------ finish
// Adds the partial sums. Blocks [0, time_blocks): 32 columns of part_time each, the batch split over the block's warps;
// the others: one element of dB or dC per thread.
template <class A>
struct FinishArgs {
  int64_t batch;
  int dim, length, groups, states, group_blocks, time_blocks;
  bool channels_last;
  const A *part_time, *part_bc;
  A *dA, *dD, *dbias;  // dD and dbias may be null
  void *dB, *dC;
  DType b_type, c_type;
};

template <class A>
__global__ void __launch_bounds__(kScanThreads) scan_finish(const FinishArgs<A> p) {
  OPENREC_DYNAMIC_SHARED(shared);
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5, warps = int(blockDim.x) >> 5;
  if (int64_t(blockIdx.x) < p.time_blocks) {
    const int columns = (p.states + 2) * p.dim, column = int(blockIdx.x) * 32 + lane;
    A* const sums = reinterpret_cast<A*>(shared);
    A sum = A(0);
    if (column < columns)
      for (int64_t b = warp; b < p.batch; b += warps) sum += p.part_time[b * columns + column];
    sums[warp * 32 + lane] = sum;
    __syncthreads();
    if (warp == 0 && column < columns) {
      sum = A(0);
      for (int w = 0; w < warps; ++w) sum += sums[w * 32 + lane];
      const int row = column / p.dim, channel = column - row * p.dim;
      if (row < p.states)
        p.dA[int64_t(channel) * p.states + row] = sum;
      else if (row == p.states && p.dD)
        p.dD[channel] = sum;
      else if (row == p.states + 1 && p.dbias)
        p.dbias[channel] = sum;
    }
    return;
  }
  const int64_t half = p.batch * p.groups * p.states * p.length;
  const int64_t first = (int64_t(blockIdx.x) - p.time_blocks) * blockDim.x + threadIdx.x;
  const int64_t step = (int64_t(gridDim.x) - p.time_blocks) * blockDim.x;
  for (int64_t i = first; i < 2 * half; i += step) {  // i runs over [batch, groups, states, 2, length]
    A sum = A(0);
    for (int k = 0; k < p.group_blocks; ++k) sum += p.part_bc[k * 2 * half + i];
    const int64_t row = i / p.length, t = i - row * p.length, map = row / 2;
    int64_t to = map * p.length + t;
    if (p.channels_last) {
      const int64_t bg = map / p.states, n = map - bg * p.states, b = bg / p.groups, g = bg - b * p.groups;
      to = ((b * p.length + t) * p.groups + g) * p.states + n;
    }
    write_any<A>(row & 1 ? p.dC : p.dB, to, row & 1 ? p.c_type : p.b_type, sum);
  }
}

}  // namespace openrec::cuda
