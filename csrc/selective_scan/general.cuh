// The selective scan for any number of states, with or without a gate, in any layout: see scan.cuh for the method.
//
// One channel per lane, read element by element, the states one after the other. float arithmetic serves all of float32,
// float16 and bfloat16 (a run-time choice), double its own type.
#pragma once

#include "selective_scan/scan.cuh"

namespace openrec::cuda {

template <class A>
struct GeneralTile {
  static constexpr int kT = kSteps<A>;
  A x[kT];
  OPENREC_FN A get(int, int step) const { return x[step]; }
};

template <class A>
struct GeneralPlace {
  static constexpr int kT = kSteps<A>;
  int64_t base, step_stride;
  int length;
  bool exists;
  DType type;

  OPENREC_FN GeneralPlace(const ScanArgs<A>& p, const Lane<A, 1>& l) : length(p.length), exists(l.channels > 0), type(p.type) {
    const int64_t stride = p.channels_last ? p.dim : 1;
    base = l.b * p.length * int64_t(p.dim) + (p.channels_last ? int64_t(l.channel) : l.channel * int64_t(p.length)) +
           (p.reverse ? (length - 1) * stride : 0);
    step_stride = p.reverse ? -stride : stride;
  }
  OPENREC_FN GeneralTile<A> load(const void* p, int step) const {
    GeneralTile<A> tile;
#pragma unroll
    for (int j = 0; j < kT; ++j)
      tile.x[j] = exists && step + j < length ? read_any<A>(p, base + (step + j) * step_stride, type) : A(0);
    return tile;
  }
  OPENREC_FN void store(void* p, int step, const A (&x)[kT]) const {
#pragma unroll
    for (int j = 0; j < kT; ++j)
      if (exists && step + j < length) write_any<A>(p, base + (step + j) * step_stride, type, x[j]);
  }
};

// e^(delta a) for all steps; the fast exponential where the storage is 16 bits wide.
template <class A, int kT>
OPENREC_FN void decays(DType type, const A (&delta)[1][kT], A a, A (&decay)[kT]) {
  if constexpr (std::is_same<A, float>::value) {
    if (type != DType::kFloat) {
#pragma unroll
      for (int j = 0; j < kT; ++j) decay[j] = FastMaths::decay(delta[0][j], FastMaths::rate(a));
      return;
    }
  }
#pragma unroll
  for (int j = 0; j < kT; ++j) decay[j] = Maths<A>::decay(delta[0][j], a);
}

template <class A>
__global__ void __launch_bounds__(kScanThreads, 2) general_forward(const ScanArgs<A> p) {
  using M = Maths<A>;
  constexpr int kT = kSteps<A>, kWidth = 32;
  OPENREC_DYNAMIC_SHARED(shared);
  const Lane<A, 1> l(p, int(threadIdx.x));
  const GeneralPlace<A> place(p, l);
  const int states = p.states;
  Piece<A>* const pieces = reinterpret_cast<Piece<A>*>(shared);  // [2][warps][kWidth]
  A* const carry = (p.carry ? p.carry + l.block * 2 * states * kWidth  // [2][states][kWidth]
                            : reinterpret_cast<A*>(pieces + 2 * l.warps * kWidth)) + l.lane;
  A skip[1], bias[1];
  l.read(p.D, 1, 0, skip);
  l.read(p.bias, 1, 0, bias);

  int turn = 0;
  for (int chunk = 0; chunk < p.chunks; ++chunk) {
    const int step = (chunk * l.warps + l.warp) * kT;
    const GeneralTile<A> u = place.load(p.u, step);
    A delta[1][kT], y[kT];
    read_delta<A>(p, l.channels, place.load(p.delta, step), step, bias, delta);
#pragma unroll
    for (int j = 0; j < kT; ++j) y[j] = skip[0] * u.x[j];
    for (int n = 0; n < states; ++n, turn ^= 1) {
      A a[1], decay[kT], h = A(0), product = A(1);
      l.read(p.A_, states, n, a);
      const SharedInputs<A> in(p, l, n, step);
      decays(p.type, delta, a[0], decay);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A cj = in.c(j);
        h = decay[j] * h + delta[0][j] * u.x[j] * in.b(j);
        product *= decay[j];
        y[j] += cj * h;
        decay[j] = cj * product;
      }
      Piece<A>* const row = pieces + turn * l.warps * kWidth + l.lane;
      row[l.warp * kWidth] = Piece<A>{product, h};
      __syncthreads();
      const A before = advance(row, kWidth, l.warp, chunk ? carry[(((chunk - 1) & 1) * states + n) * kWidth] : A(0));
#pragma unroll
      for (int j = 0; j < kT; ++j) y[j] += decay[j] * before;
      if (l.warp == l.warps - 1) {
        const A after = product * before + h;
        carry[((chunk & 1) * states + n) * kWidth] = after;
        if (p.last_state && chunk == p.chunks - 1 && l.channels)
          p.last_state[(l.b * p.dim + l.channel) * states + n] = after;
      }
    }
    if (p.z) {
      const GeneralTile<A> z = place.load(p.z, step);
#pragma unroll
      for (int j = 0; j < kT; ++j) y[j] *= z.x[j] * M::sigmoid(z.x[j]);
    }
    place.store(p.out, step, y);
  }
}

template <class A>
__global__ void __launch_bounds__(kGeneralBackwardThreads, sizeof(A) == 8 ? 2 : 2) general_backward(const ScanArgs<A> p) {
  using M = Maths<A>;
  constexpr int kT = kSteps<A>, kWidth = 32;
  OPENREC_DYNAMIC_SHARED(shared);
  const int states = p.states, lane = int(threadIdx.x) & 31, warps = int(blockDim.x) >> 5;
  const int64_t block = blockIdx.x;
  TwoWayPiece<A>* const pieces = reinterpret_cast<TwoWayPiece<A>*>(shared);  // [2][warps][kWidth]
  A* const after_pieces = reinterpret_cast<A*>(pieces + 2 * warps * kWidth);
  A* const carry = (p.carry ? p.carry + block * 2 * states * kWidth : after_pieces) + lane;  // [2][states][kWidth]
  // [warps][dA of each state, dD, dbias][kWidth]
  A* const all_own = p.own ? p.own + block * warps * (states + 2) * kWidth : after_pieces + 2 * states * kWidth;
  A* const own = all_own + int(threadIdx.x >> 5) * (states + 2) * kWidth + lane;
  A* const between = p.chunk_states + block * (p.chunks - 1) * states * kWidth + lane;  // [chunks - 1][states][kWidth]
  for (int n = 0; n < states + 2; ++n) own[n * kWidth] = A(0);

  int turn = 0;
  for (int chunk = 0; chunk + 1 < p.chunks; ++chunk) {  // states between chunks
    const Lane<A, 1> l(p, renewed(int(threadIdx.x)));
    const GeneralPlace<A> place(p, l);
    const int step = (chunk * l.warps + l.warp) * kT;
    const GeneralTile<A> u = place.load(p.u, step);
    A delta[1][kT], bias[1];
    l.read(p.bias, 1, 0, bias);
    read_delta<A>(p, l.channels, place.load(p.delta, step), step, bias, delta);
    for (int n = 0; n < states; ++n, turn ^= 1) {
      A a[1], decay[kT], h = A(0), product = A(1);
      l.read(p.A_, states, n, a);
      const SharedInputs<A> in(p, l, n, step);
      decays(p.type, delta, a[0], decay);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        h = decay[j] * h + delta[0][j] * u.x[j] * in.b(j);
        product *= decay[j];
      }
      TwoWayPiece<A>* const row = pieces + turn * l.warps * kWidth + l.lane;
      row[l.warp * kWidth] = TwoWayPiece<A>{product, h, A(0)};
      __syncthreads();
      if (l.warp == l.warps - 1)
        between[(chunk * int64_t(states) + n) * kWidth] =
            advance(row, kWidth, l.warps, chunk ? between[((chunk - 1) * int64_t(states) + n) * kWidth] : A(0));
    }
  }

  for (int chunk = p.chunks - 1; chunk >= 0; --chunk) {
    const Lane<A, 1> l(p, renewed(int(threadIdx.x)));  // nothing of it kept in registers from chunk to chunk
    const GeneralPlace<A> place(p, l);
    const int step = (chunk * l.warps + l.warp) * kT;
    const GeneralTile<A> u = place.load(p.u, step);
    GeneralTile<A> grad = place.load(p.grad, step);  // of the output before the gate
    A delta[1][kT], du[kT], ddelta[kT], y[kT], skip[1], bias[1];
    l.read(p.D, 1, 0, skip);
    l.read(p.bias, 1, 0, bias);
    read_delta<A>(p, l.channels, place.load(p.delta, step), step, bias, delta);
    if (p.z) {
      const GeneralTile<A> z = place.load(p.z, step);
#pragma unroll
      for (int j = 0; j < kT; ++j) grad.x[j] *= z.x[j] * M::sigmoid(z.x[j]);
    }
    A sum_D = A(0), sum_bias = A(0);
#pragma unroll
    for (int j = 0; j < kT; ++j) {
      du[j] = skip[0] * grad.x[j];
      ddelta[j] = A(0);
      y[j] = skip[0] * u.x[j];
      sum_D += grad.x[j] * u.x[j];
    }
    own[states * kWidth] += sum_D;
    for (int n = 0; n < states; ++n, turn ^= 1) {
      A a[1], decay[kT], before[kT], shared_grads[kT], h = A(0), e = A(0), product = A(1), sum_A = A(0);
      l.read(p.A_, states, n, a);
      const SharedInputs<A> in(p, l, n, step);
      decays(p.type, delta, a[0], decay);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        h = decay[j] * h + delta[0][j] * u.x[j] * in.b(j);
        product *= decay[j];
      }
#pragma unroll
      for (int j = kT - 1; j >= 0; --j) e = decay[j] * (in.c(j) * grad.x[j] + e);
      TwoWayPiece<A>* const row = pieces + turn * l.warps * kWidth + l.lane;
      row[l.warp * kWidth] = TwoWayPiece<A>{product, h, e};
      __syncthreads();
      h = advance(row, kWidth, l.warp, chunk ? between[((chunk - 1) * int64_t(states) + n) * kWidth] : A(0));
      if (chunk + 1 < p.chunks)
        e = carry[(((chunk + 1) & 1) * states + n) * kWidth];
      else
        e = p.grad_last && l.channels ? p.grad_last[(l.b * p.dim + l.channel) * states + n] : A(0);
      for (int w = l.warps - 1; w > l.warp; --w) e = row[w * kWidth].product * e + row[w * kWidth].back;
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        before[j] = h;
        h = decay[j] * h + delta[0][j] * u.x[j] * in.b(j);
      }
#pragma unroll
      for (int j = kT - 1; j >= 0; --j) {
        const A bj = in.b(j), cj = in.c(j), kept = decay[j] * before[j];
        const A dh = cj * grad.x[j] + e, dh_delta = dh * delta[0][j];
        ddelta[j] += dh * (u.x[j] * bj + a[0] * kept);
        du[j] += dh_delta * bj;
        sum_A += dh_delta * kept;
        y[j] += cj * h;
        shared_grads[j % (kT / 2)] = dh_delta * u.x[j];
        shared_grads[kT / 2 + j % (kT / 2)] = grad.x[j] * h;
        h = before[j];
        e = decay[j] * dh;
        if (j == kT / 2 || j == 0) write_shared_gradients(p, l, n, step + j, shared_grads);
      }
      if (l.warp == 0) carry[((chunk & 1) * states + n) * kWidth] = e;
      own[n * kWidth] += sum_A;
    }
    if (p.softplus) {
      const GeneralTile<A> raw = place.load(p.delta, step);
#pragma unroll
      for (int j = 0; j < kT; ++j) ddelta[j] *= M::softplus(raw.x[j] + bias[0]).slope;
    }
#pragma unroll
    for (int j = 0; j < kT; ++j)
      if (step + j < p.length) sum_bias += ddelta[j];
    own[(states + 1) * kWidth] += sum_bias;
    place.store(p.du, step, du);
    place.store(p.ddelta, step, ddelta);
    if (p.z) {
      const GeneralTile<A> z = place.load(p.z, step), out_grad = place.load(p.grad, step);
#pragma unroll
      for (int j = 0; j < kT; ++j) {
        const A s = M::sigmoid(z.x[j]);
        y[j] *= out_grad.x[j] * s * (A(1) + z.x[j] * (A(1) - s));
      }
      place.store(p.dz, step, y);
    }
  }
  write_time_gradients(p, Lane<A, 1>(p, renewed(int(threadIdx.x))), all_own);
}

}  // namespace openrec::cuda
