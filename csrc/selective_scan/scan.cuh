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
// Layouts: kPairs (channels last, two 16-bit channels per 32-bit word), kRows (channels first, each lane reads runs of a
// channel with 16-byte loads), kSingles (any layout and width, one channel per lane, element by element). kOneState: the
// kernels for d_state 1 without a gate, the adaptive scan's case.
//
// Sums over channels (dB, dC) and over batch and time (dA, dD, dbias) are written as partial sums and added in a fixed order
// by scan_finish: no atomics, the same bits in every run.
#pragma once

#include "cuda/device.cuh"
#include "selective_scan/launch.h"

namespace openrec::cuda {

enum Access { kPairs, kRows, kSingles };

// Steps of a warp's piece, and channels of a lane.
template <class T>
constexpr int kSteps = sizeof(T) == 8 ? 4 : 8;
template <class T, Access kAccess>
constexpr int kChannels = kAccess != kSingles && sizeof(T) == 2 ? 2 : 1;

template <class T>
struct ScanArgs {
  using A = acc_t<T>;
  int64_t batch;
  int dim, length, groups, states;
  int group_dim;     // channels of a group
  int group_blocks;  // blocks per group
  int chunks;
  bool softplus, reverse, channels_last;
  int64_t b_batch, b_group, b_state, b_step, c_batch, c_group, c_state, c_step;
  const T *u, *delta, *z;
  const void *B, *C;  // stored as T or as A
  bool b_wide, c_wide;
  const A *A_, *D, *bias;
  // forward
  T* out;
  A* last_state;
  A* carry;  // [block][2][states][channels]: states between chunks, null where shared memory holds them
  // backward
  const T* grad;
  const A* grad_last;
  T *du, *ddelta, *dz;
  A* chunk_states;  // [block][chunks - 1][states][channels]
  A* private_dA;    // [block][warps][states][channels], null where shared memory or registers hold it
  A* part_time;     // [batch][states + 2][dim]: dA, dD, dbias of one sequence
  A* part_bc;       // [group_blocks][batch][groups][states][2][length]: dB, dC of one block's channels
};

// ------------------------------------------------------------------------------- kSteps steps of a lane's channels
template <class T, Access kAccess>
struct Tile {
  using A = acc_t<T>;
  static constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>;
  static constexpr int kWide = kAccess == kRows ? kT : kN;  // values per packed word group
  Packed<T, kWide> part[kN * kT / kWide];

  OPENREC_FN A get(int channel, int step) const {
    return kAccess == kRows ? part[channel].get(step) : part[step].get(channel);
  }
};

// Where a lane's values lie: element (channel, step) of a sequence.
template <class T, Access kAccess>
struct Place {
  using A = acc_t<T>;
  static constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>;
  int64_t base;  // of the lane's first channel at step 0
  int dim, length, channels;  // channels: valid ones of this lane
  bool channels_last, reverse;

  OPENREC_FN int64_t at(int channel, int step) const {
    const int t = reverse ? length - 1 - step : step;
    if (kAccess == kPairs || (kAccess == kSingles && channels_last)) return base + t * int64_t(dim) + channel;
    return base + channel * int64_t(length) + t;
  }
  OPENREC_FN Tile<T, kAccess> load(const T* p, int step) const {
    Tile<T, kAccess> tile;
    if constexpr (kAccess == kRows) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        tile.part[c].clear();
        if (c < channels && step < length) {
          tile.part[c].load(p + at(c, reverse ? step + kT - 1 : step));
          if (reverse) tile.part[c].flip();
        }
      }
    } else {
      const T* q = p + at(0, step);
      const int64_t stride = (kAccess == kPairs || channels_last ? int64_t(dim) : 1) * (reverse ? -1 : 1);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        tile.part[j].clear();
        if (channels > 0 && step + j < length) tile.part[j].load(q + j * stride);
      }
    }
    return tile;
  }
  OPENREC_FN void store(T* p, int step, const A (&x)[kN][kT]) const {
    if constexpr (kAccess == kRows) {
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        Packed<T, kT> v;
        v.set(x[c]);
        if (reverse) v.flip();
        if (c < channels && step < length) v.store(p + at(c, reverse ? step + kT - 1 : step));
      }
    } else {
      T* q = p + at(0, step);
      const int64_t stride = (kAccess == kPairs || channels_last ? int64_t(dim) : 1) * (reverse ? -1 : 1);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        A pair[kN];
#pragma unroll
        for (int c = 0; c < kN; ++c) pair[c] = x[c][j];
        Packed<T, kN> v;
        v.set(pair);
        if (channels > 0 && step + j < length) v.store(q + j * stride);
      }
    }
  }
};

// What a block and a lane of it work on.
template <class T, Access kAccess>
struct Lane {
  static constexpr int kN = kChannels<T, kAccess>, kWidth = 32 * kN;
  int lane, warp, warps;
  int64_t block, b;
  int group, group_block, channel, channels;  // first channel of the lane in the sequence, number of valid ones
  Place<T, kAccess> place;

  OPENREC_FN explicit Lane(const ScanArgs<T>& p) {
    lane = int(threadIdx.x) & 31;
    warp = int(threadIdx.x) >> 5;
    warps = int(blockDim.x) >> 5;
    block = blockIdx.x;
    const int64_t map = block / p.group_blocks;
    group_block = int(block - map * p.group_blocks);
    b = map / p.groups;
    group = int(map - b * p.groups);
    const int in_group = group_block * kWidth + lane * kN;
    const int left = p.group_dim - in_group;
    channels = left < 0 ? 0 : (left < kN ? left : kN);
    channel = group * p.group_dim + in_group;
    place.dim = p.dim;
    place.length = p.length;
    place.channels = channels;
    place.channels_last = p.channels_last;
    place.reverse = p.reverse;
    const bool last = kAccess == kPairs || (kAccess == kSingles && p.channels_last);
    place.base = b * p.length * int64_t(p.dim) + (last ? int64_t(channel) : channel * int64_t(p.length));
  }
};

// Lane j < kT gets B of step j, lane kT + j gets C: they are the same for all channels of a block.
template <class T>
struct SharedInputs {
  using A = acc_t<T>;
  static constexpr int kT = kSteps<T>;
  A mine;

  template <class L>
  OPENREC_FN SharedInputs(const ScanArgs<T>& p, const L& l, int state, int step) {
    const int j = l.lane % kT, which = l.lane / kT;
    const int t = p.reverse ? p.length - 1 - (step + j) : step + j;
    mine = A(0);
    if (which < 2 && step + j < p.length) {
      const int64_t at = which ? l.b * p.c_batch + l.group * p.c_group + state * p.c_state + t * p.c_step
                               : l.b * p.b_batch + l.group * p.b_group + state * p.b_state + t * p.b_step;
      mine = read_either<T>(which ? p.C : p.B, at, which ? p.c_wide : p.b_wide);
    }
  }
  OPENREC_FN A b(int j) const { return __shfl_sync(0xffffffffu, mine, j); }
  OPENREC_FN A c(int j) const { return __shfl_sync(0xffffffffu, mine, kT + j); }
};

// delta, zero (the identity of the recurrence) where there is no step or no channel; its slope where wanted.
template <class T, Access kAccess>
OPENREC_FN void read_delta(const ScanArgs<T>& p, const Lane<T, kAccess>& l, const Tile<T, kAccess>& raw, int step,
                           const acc_t<T> (&bias)[kChannels<T, kAccess>],
                           acc_t<T> (&delta)[kChannels<T, kAccess>][kSteps<T>]) {
  constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>;
  using A = acc_t<T>;
#pragma unroll
  for (int c = 0; c < kN; ++c)
#pragma unroll
    for (int j = 0; j < kT; ++j) delta[c][j] = raw.get(c, j) + bias[c];
  if (p.softplus) {
#pragma unroll
    for (int c = 0; c < kN; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) delta[c][j] = Maths<T>::softplus(delta[c][j]).value;
  }
#pragma unroll
  for (int c = 0; c < kN; ++c)
#pragma unroll
    for (int j = 0; j < kT; ++j)
      if (step + j >= p.length || c >= l.channels) delta[c][j] = A(0);
}

template <class T, Access kAccess>
OPENREC_FN void read_channels(const acc_t<T>* p, const Lane<T, kAccess>& l, int64_t stride, int64_t offset,
                              acc_t<T> (&x)[kChannels<T, kAccess>]) {
#pragma unroll
  for (int c = 0; c < kChannels<T, kAccess>; ++c)
    x[c] = p && c < l.channels ? p[(l.channel + c) * stride + offset] : acc_t<T>(0);
}

template <class A>
struct Piece {  // the map of a warp's steps for one channel
  A product, offset;
};

// ------------------------------------------------------------------------------------------------------------- forward
template <class T, Access kAccess, bool kOneState>
__global__ void __launch_bounds__(512) scan_forward(const ScanArgs<T> p) {
  using A = acc_t<T>;
  using M = Maths<T>;
  constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>, kWidth = 32 * kN;
  OPENREC_DYNAMIC_SHARED(shared);
  const Lane<T, kAccess> l(p);
  const int states = kOneState ? 1 : p.states, slot = l.lane * kN;
  Piece<A>* const pieces = reinterpret_cast<Piece<A>*>(shared);  // [2][warps][kWidth]
  A* const carry = p.carry ? p.carry + l.block * 2 * states * kWidth
                           : reinterpret_cast<A*>(pieces + 2 * l.warps * kWidth);  // [2][states][kWidth]
  A skip[kN], bias[kN], rate[kN];
  read_channels<T, kAccess>(p.D, l, 1, 0, skip);
  read_channels<T, kAccess>(p.bias, l, 1, 0, bias);
  if (kOneState) read_channels<T, kAccess>(p.A_, l, 1, 0, rate);

  int turn = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int step = (chunk * l.warps + l.warp) * kT;
    const Tile<T, kAccess> u = l.place.load(p.u, step);
    A delta[kN][kT], y[kN][kT];
    read_delta<T, kAccess>(p, l, l.place.load(p.delta, step), step, bias, delta);
#pragma unroll
    for (int c = 0; c < kN; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) y[c][j] = skip[c] * u.get(c, j);

    for (int n = 0; n < states; ++n, turn ^= 1) {
      if (!kOneState) read_channels<T, kAccess>(p.A_, l, states, n, rate);
      const SharedInputs<T> in(p, l, n, step);
      A reach[kN][kT], h[kN], product[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) h[c] = A(0), product[c] = A(1);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A bj = in.b(j), cj = in.c(j);
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          const A a = M::decay(delta[c][j], M::rate(rate[c]));
          h[c] = a * h[c] + delta[c][j] * u.get(c, j) * bj;
          product[c] *= a;
          y[c][j] += cj * h[c];
          reach[c][j] = cj * product[c];
        }
      }
      Piece<A>* const row = pieces + turn * l.warps * kWidth + slot;
#pragma unroll
      for (int c = 0; c < kN; ++c) row[l.warp * kWidth + c] = Piece<A>{product[c], h[c]};
      __syncthreads();
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        A before = chunk ? carry[(((chunk - 1) & 1) * states + n) * kWidth + slot + c] : A(0);
        for (int w = 0; w < l.warp; ++w) {
          const Piece<A> piece = row[w * kWidth + c];
          before = piece.product * before + piece.offset;
        }
#pragma unroll
        for (int j = 0; j < kT; ++j) y[c][j] += reach[c][j] * before;
        if (l.warp == l.warps - 1) {
          const A after = product[c] * before + h[c];
          carry[((chunk & 1) * states + n) * kWidth + slot + c] = after;
          if (p.last_state && chunk == p.chunks - 1 && c < l.channels)
            p.last_state[(l.b * p.dim + l.channel + c) * states + n] = after;
        }
      }
    }
    if (!kOneState && p.z) {
      const Tile<T, kAccess> z = l.place.load(p.z, step);
#pragma unroll
      for (int c = 0; c < kN; ++c)
#pragma unroll
        for (int j = 0; j < kT; ++j) y[c][j] *= z.get(c, j) * M::sigmoid(z.get(c, j));
    }
    l.place.store(p.out, step, y);
  }
}

// ------------------------------------------------------------------------------------------------------------ backward
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
template <int kValues>
OPENREC_FN int lane_value(int lane) {
  constexpr int kLanesPerValue = 32 / kValues;
  return lane / kLanesPerValue;
}

template <class A>
struct TwoWayPiece {
  A product, offset, back;  // h -> product h + offset; e -> product e + back
};

// The states at the end of all chunks but the last, from the inputs alone.
template <class T, Access kAccess, bool kOneState>
OPENREC_FN void chunk_states(const ScanArgs<T>& p, const Lane<T, kAccess>& l, TwoWayPiece<acc_t<T>>* pieces,
                             acc_t<T>* states_out, const acc_t<T> (&bias)[kChannels<T, kAccess>], int& turn) {
  using A = acc_t<T>;
  using M = Maths<T>;
  constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>, kWidth = 32 * kN;
  const int states = kOneState ? 1 : p.states, slot = l.lane * kN;
  for (int chunk = 0; chunk + 1 < p.chunks; ++chunk) {
    const int step = (chunk * l.warps + l.warp) * kT;
    const Tile<T, kAccess> u = l.place.load(p.u, step);
    A delta[kN][kT];
    read_delta<T, kAccess>(p, l, l.place.load(p.delta, step), step, bias, delta);
    for (int n = 0; n < states; ++n, turn ^= 1) {
      A rate[kN], h[kN], product[kN];
      read_channels<T, kAccess>(p.A_, l, states, n, rate);
      const SharedInputs<T> in(p, l, n, step);
#pragma unroll
      for (int c = 0; c < kN; ++c) h[c] = A(0), product[c] = A(1);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A bj = in.b(j);
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          const A a = M::decay(delta[c][j], M::rate(rate[c]));
          h[c] = a * h[c] + delta[c][j] * u.get(c, j) * bj;
          product[c] *= a;
        }
      }
      TwoWayPiece<A>* const row = pieces + turn * l.warps * kWidth + slot;
#pragma unroll
      for (int c = 0; c < kN; ++c) row[l.warp * kWidth + c] = TwoWayPiece<A>{product[c], h[c], A(0)};
      __syncthreads();
      if (l.warp == l.warps - 1) {
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          A after = chunk ? states_out[((chunk - 1) * int64_t(states) + n) * kWidth + slot + c] : A(0);
          for (int w = 0; w < l.warps; ++w) {
            const TwoWayPiece<A> piece = row[w * kWidth + c];
            after = piece.product * after + piece.offset;
          }
          states_out[(chunk * int64_t(states) + n) * kWidth + slot + c] = after;
        }
      }
    }
  }
}

template <class T, Access kAccess, bool kOneState>
__global__ void __launch_bounds__(256) scan_backward(const ScanArgs<T> p) {
  using A = acc_t<T>;
  using M = Maths<T>;
  constexpr int kN = kChannels<T, kAccess>, kT = kSteps<T>, kWidth = 32 * kN;
  OPENREC_DYNAMIC_SHARED(shared);
  const Lane<T, kAccess> l(p);
  const int states = kOneState ? 1 : p.states, slot = l.lane * kN;
  TwoWayPiece<A>* const pieces = reinterpret_cast<TwoWayPiece<A>*>(shared);     // [2][warps][kWidth]
  A* const carry = p.carry ? p.carry + l.block * 2 * states * kWidth
                           : reinterpret_cast<A*>(pieces + 2 * l.warps * kWidth);  // [2][states][kWidth]
  A* const own = p.private_dA ? p.private_dA + l.block * l.warps * states * kWidth
                              : reinterpret_cast<A*>(pieces + 2 * l.warps * kWidth) + 2 * states * kWidth;
  A* const between = p.chunk_states + l.block * (p.chunks - 1) * states * kWidth;
  A skip[kN], bias[kN], rate[kN], sum_A[kN], sum_D[kN], sum_bias[kN];
  read_channels<T, kAccess>(p.D, l, 1, 0, skip);
  read_channels<T, kAccess>(p.bias, l, 1, 0, bias);
  if (kOneState) read_channels<T, kAccess>(p.A_, l, 1, 0, rate);
#pragma unroll
  for (int c = 0; c < kN; ++c) sum_A[c] = sum_D[c] = sum_bias[c] = A(0);
  if (!kOneState)
    for (int n = 0; n < states; ++n)
      for (int c = 0; c < kN; ++c) own[(l.warp * states + n) * kWidth + slot + c] = A(0);

  int turn = 0;
  chunk_states<T, kAccess, kOneState>(p, l, pieces, between, bias, turn);
  for (int chunk = p.chunks - 1; chunk >= 0; --chunk) {
    const int step = (chunk * l.warps + l.warp) * kT;
    const Tile<T, kAccess> u = l.place.load(p.u, step), raw = l.place.load(p.delta, step);
    const Tile<T, kAccess> grad = l.place.load(p.grad, step);
    A delta[kN][kT], dy[kN][kT], du[kN][kT], ddelta[kN][kT], y[kN][kT];
    read_delta<T, kAccess>(p, l, raw, step, bias, delta);
#pragma unroll
    for (int c = 0; c < kN; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) dy[c][j] = grad.get(c, j);
    if (!kOneState && p.z) {
      const Tile<T, kAccess> z = l.place.load(p.z, step);
#pragma unroll
      for (int c = 0; c < kN; ++c)
#pragma unroll
        for (int j = 0; j < kT; ++j) dy[c][j] *= z.get(c, j) * M::sigmoid(z.get(c, j));
    }
#pragma unroll
    for (int c = 0; c < kN; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        du[c][j] = skip[c] * dy[c][j];
        ddelta[c][j] = A(0);
        y[c][j] = skip[c] * u.get(c, j);
        sum_D[c] += dy[c][j] * u.get(c, j);
      }

    for (int n = 0; n < states; ++n, turn ^= 1) {
      if (!kOneState) read_channels<T, kAccess>(p.A_, l, states, n, rate);
      const SharedInputs<T> in(p, l, n, step);
      A decay[kN][kT], before[kN][kT], h[kN], e[kN], product[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) h[c] = e[c] = A(0), product[c] = A(1);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A bj = in.b(j);
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          decay[c][j] = M::decay(delta[c][j], M::rate(rate[c]));
          h[c] = decay[c][j] * h[c] + delta[c][j] * u.get(c, j) * bj;
          product[c] *= decay[c][j];
        }
      }
#pragma unroll
      for (int j = kT - 1; j >= 0; --j) {
        const A cj = in.c(j);
#pragma unroll
        for (int c = 0; c < kN; ++c) e[c] = decay[c][j] * (cj * dy[c][j] + e[c]);
      }
      TwoWayPiece<A>* const row = pieces + turn * l.warps * kWidth + slot;
#pragma unroll
      for (int c = 0; c < kN; ++c) row[l.warp * kWidth + c] = TwoWayPiece<A>{product[c], h[c], e[c]};
      __syncthreads();
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        h[c] = chunk ? between[((chunk - 1) * int64_t(states) + n) * kWidth + slot + c] : A(0);
        for (int w = 0; w < l.warp; ++w) {
          const TwoWayPiece<A> piece = row[w * kWidth + c];
          h[c] = piece.product * h[c] + piece.offset;
        }
        if (chunk + 1 < p.chunks)
          e[c] = carry[(((chunk + 1) & 1) * states + n) * kWidth + slot + c];
        else
          e[c] = p.grad_last && c < l.channels ? p.grad_last[(l.b * p.dim + l.channel + c) * states + n] : A(0);
        for (int w = l.warps - 1; w > l.warp; --w) {
          const TwoWayPiece<A> piece = row[w * kWidth + c];
          e[c] = piece.product * e[c] + piece.back;
        }
      }
      // h of every step forwards, its gradient backwards. A step's state before it is kept.
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A bj = in.b(j);
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          before[c][j] = h[c];
          h[c] = decay[c][j] * h[c] + delta[c][j] * u.get(c, j) * bj;
        }
      }
      A shared_grads[2 * kT], dA[kN];
#pragma unroll
      for (int c = 0; c < kN; ++c) dA[c] = A(0);
#pragma unroll
      for (int j = kT - 1; j >= 0; --j) {
        const A bj = in.b(j), cj = in.c(j);
        A db = A(0), dc = A(0);
#pragma unroll
        for (int c = 0; c < kN; ++c) {
          const A uj = u.get(c, j), kept = decay[c][j] * before[c][j], after = j + 1 < kT ? before[c][j + 1] : h[c];
          const A dh = cj * dy[c][j] + e[c], dh_delta = dh * delta[c][j];
          ddelta[c][j] += dh * (uj * bj + rate[c] * kept);
          du[c][j] += dh_delta * bj;
          dA[c] += dh_delta * kept;
          db += dh_delta * uj;
          dc += dy[c][j] * after;
          y[c][j] += cj * after;
          e[c] = decay[c][j] * dh;
        }
        shared_grads[j] = db;
        shared_grads[kT + j] = dc;
      }
#pragma unroll
      for (int c = 0; c < kN; ++c) {
        if (l.warp == 0) carry[((chunk & 1) * states + n) * kWidth + slot + c] = e[c];
        if (kOneState)
          sum_A[c] += dA[c];
        else
          own[(l.warp * states + n) * kWidth + slot + c] += dA[c];
      }
      reduce_lanes<2 * kT>(shared_grads, l.lane);
      const int value = lane_value<2 * kT>(l.lane), t = step + value % kT;
      if (l.lane % (32 / (2 * kT)) == 0 && t < p.length) {
        const int64_t map = (l.group_block * p.batch + l.b) * p.groups + l.group;
        p.part_bc[((map * states + n) * 2 + value / kT) * p.length + (p.reverse ? p.length - 1 - t : t)] = shared_grads[0];
      }
    }

#pragma unroll
    for (int c = 0; c < kN; ++c)
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        if (p.softplus) ddelta[c][j] *= M::softplus(raw.get(c, j) + bias[c]).slope;
        if (step + j < p.length) sum_bias[c] += ddelta[c][j];
      }
    l.place.store(p.du, step, du);
    l.place.store(p.ddelta, step, ddelta);
    if (!kOneState && p.z) {
      const Tile<T, kAccess> z = l.place.load(p.z, step), again = l.place.load(p.grad, step);
#pragma unroll
      for (int c = 0; c < kN; ++c)
#pragma unroll
        for (int j = 0; j < kT; ++j) {
          const A zj = z.get(c, j), s = M::sigmoid(zj);
          y[c][j] *= again.get(c, j) * s * (A(1) + zj * (A(1) - s));
        }
      l.place.store(p.dz, step, y);
    }
  }

  // This sequence's sums over time: add the warps' in order.
  __syncthreads();
  A* const sums = reinterpret_cast<A*>(shared);  // [warps][3][kWidth], over the pieces
#pragma unroll
  for (int c = 0; c < kN; ++c) {
    A* const q = sums + l.warp * 3 * kWidth + slot + c;
    q[0] = sum_A[c], q[kWidth] = sum_D[c], q[2 * kWidth] = sum_bias[c];
  }
  __syncthreads();
  A* const out = p.part_time + l.b * (states + 2) * p.dim;
  for (int i = int(threadIdx.x); i < (states + 2) * kWidth; i += int(blockDim.x)) {
    const int row = i / kWidth, c = i - row * kWidth, channel = l.group_block * kWidth + c;
    if (channel >= p.group_dim) continue;
    A total = A(0);
    for (int w = 0; w < l.warps; ++w) {
      if (row < states && !kOneState)
        total += own[(w * states + row) * kWidth + c];
      else
        total += sums[(w * 3 + (row < states ? 0 : row - states + 1)) * kWidth + c];
    }
    out[row * int64_t(p.dim) + l.group * p.group_dim + channel] = total;
  }
}

// Adds the partial sums. Blocks [0, time_blocks): 32 columns of part_time each, the batch split over the block's warps;
// the others: one element of dB or dC per thread.
template <class T>
struct FinishArgs {
  using A = acc_t<T>;
  int64_t batch;
  int dim, length, groups, states, group_blocks, time_blocks;
  bool channels_last;
  const A *part_time, *part_bc;
  A *dA, *dD, *dbias;  // dD and dbias may be null
  void *dB, *dC;
  bool b_wide, c_wide;
};

template <class T>
__global__ void __launch_bounds__(256) scan_finish(const FinishArgs<T> p) {
  using A = acc_t<T>;
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
    write_either<T>(row & 1 ? p.dC : p.dB, to, row & 1 ? p.c_wide : p.b_wide, sum);
  }
}

}  // namespace openrec::cuda
