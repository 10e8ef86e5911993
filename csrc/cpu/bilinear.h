// Bilinear sampling of rows of channels: what deformable convolution and deform_sample share.
#pragma once

#include "simd.h"

namespace openrec {
namespace OPENREC_ISA {

// A map of rows: pixel (y, x) starts at `row * y + pixel * x` and holds the channels next to each other. `outside` is
// where neighbours outside the map are read: a row of zeros (for gradients, a row that nobody reads), as a distance
// from p. With it the arithmetic needs no branches; random points would mispredict half of them.
template <class S>
struct Plane {
  S* p;
  int64_t height, width, row, pixel, outside;

  // Whether distances inside the plane fit the whole numbers that go with T.
  template <class T>
  bool small() const {
    return sizeof(T) == 8 || (height + 2) * row + (width + 2) * pixel < (int64_t(1) << 31);
  }
};

// Element distance between two places in different arrays.
template <class S>
OPENREC_INLINE int64_t distance(const S* from, const S* to) {
  return int64_t((intptr_t)to - (intptr_t)from) / int64_t(sizeof(S));
}

// kLanes points: the distances of their four neighbours from the plane's start, and the place between them. Computed
// for all lanes at once: done point by point, this costs more than the sampling.
template <class T>
struct Taps {
  alignas(64) int64_t i00[kLanes<T>], i01[kLanes<T>], i10[kLanes<T>], i11[kLanes<T>];  // (y, x), (y, x + 1), (y + 1, x), ..
  alignas(64) T w00[kLanes<T>], w01[kLanes<T>], w10[kLanes<T>], w11[kLanes<T>];
};
// What the gradient needs beside it: the distances in the map of sums, and the place itself.
template <class T>
struct GradientTaps : Taps<T> {
  alignas(64) int64_t j00[kLanes<T>], j01[kLanes<T>], j10[kLanes<T>], j11[kLanes<T>];
  alignas(64) T fy[kLanes<T>], fx[kLanes<T>];
};

// Lower neighbour of x on an axis of `size` pixels, -2 and `size` meaning far outside; NaN is far outside.
template <class T>
OPENREC_INLINE Mask<T> lower(Vec<T> x, int64_t size, Vec<T>& fraction) {
  const Vec<T> end = splat(T(size));
  const Vec<T> near = x >= T(-1) ? (x < end ? x : end) : splat(T(-2));
  Mask<T> i = __builtin_convertvector(near, Mask<T>);
  i += __builtin_convertvector(i, Vec<T>) > near;  // a comparison that holds is -1
  fraction = near - __builtin_convertvector(i, Vec<T>);
  return i;
}

// Distances and validity of the four neighbours. Huge planes: lane by lane in 64 bits.
template <class S, class T, class Store>
OPENREC_INLINE void neighbours(const Plane<S>& m, Mask<T> iy, Mask<T> ix, Mask<T> channel, Store put) {
  const Lane<T> height = Lane<T>(m.height), width = Lane<T>(m.width);
  const Mask<T> top = (iy >= 0) & (iy < height), bottom = (iy >= -1) & (iy < height - 1);
  const Mask<T> left = (ix >= 0) & (ix < width), right = (ix >= -1) & (ix < width - 1);
  if (m.template small<T>()) {
    const Lane<T> row = Lane<T>(m.row), pixel = Lane<T>(m.pixel);
    const Mask<T> first = iy * row + ix * pixel + channel;
    put(0, first, top & left);
    put(1, first + pixel, top & right);
    put(2, first + row, bottom & left);
    put(3, first + row + pixel, bottom & right);
  } else {
    for (int i = 0; i < kLanes<T>; ++i) {
      const int64_t first = int64_t(iy[i]) * m.row + int64_t(ix[i]) * m.pixel + channel[i];
      put(0, i, first, top[i] & left[i]);
      put(1, i, first + m.pixel, top[i] & right[i]);
      put(2, i, first + m.row, bottom[i] & left[i]);
      put(3, i, first + m.row + m.pixel, bottom[i] & right[i]);
    }
  }
}

// Writes distances to four arrays of kLanes; `outside` where a neighbour is not in the map.
template <class T>
struct PutIndex {
  int64_t* to[4];
  int64_t outside;

  OPENREC_METHOD void operator()(int which, Mask<T> index, Mask<T> valid) const { store_index(to[which], index, valid, outside); }
  OPENREC_METHOD void operator()(int which, int lane, int64_t index, bool valid) const { to[which][lane] = valid ? index : outside; }
};

// `channel`: where the channels of a point's group begin in a pixel.
template <class S, class T>
OPENREC_INLINE void find_taps(const Plane<S>& m, Vec<T> y, Vec<T> x, Mask<T> channel, Vec<T> weight, Taps<T>& t) {
  Vec<T> fy, fx;
  const Mask<T> iy = lower<T>(y, m.height, fy), ix = lower<T>(x, m.width, fx);
  neighbours<S, T>(m, iy, ix, channel, PutIndex<T>{{t.i00, t.i01, t.i10, t.i11}, m.outside});
  fy = fy * weight;
  const Vec<T> gy = weight - fy, w11 = fy * fx, w01 = gy * fx;
  store(t.w11, w11), store(t.w10, fy - w11), store(t.w01, w01), store(t.w00, gy - w01);
}

// `nobody`: where in the map of sums goes what falls outside.
template <class T>
OPENREC_INLINE void find_taps(const Plane<T>& m, int64_t nobody, Vec<T> y, Vec<T> x, Mask<T> channel, GradientTaps<T>& t) {
  Vec<T> fy, fx;
  const Mask<T> iy = lower<T>(y, m.height, fy), ix = lower<T>(x, m.width, fx);
  neighbours<T, T>(m, iy, ix, channel, PutIndex<T>{{t.i00, t.i01, t.i10, t.i11}, m.outside});
  neighbours<T, T>(m, iy, ix, channel, PutIndex<T>{{t.j00, t.j01, t.j10, t.j11}, nobody});
  const Vec<T> w11 = fy * fx, w01 = fx - w11;
  store(t.w11, w11), store(t.w10, fy - w11), store(t.w01, w01), store(t.w00, (T(1) - fy) - w01);
  store(t.fy, fy), store(t.fx, fx);
}

template <class S, class T>
OPENREC_INLINE Vec<T> blend(const S* p, const Taps<T>& t, int i) {
  return (load(p + t.i00[i]) * t.w00[i] + load(p + t.i01[i]) * t.w01[i]) +
         (load(p + t.i10[i]) * t.w10[i] + load(p + t.i11[i]) * t.w11[i]);
}

// Adds the sample at point i to `out`, or, without Add, writes it.
template <class S, class T, bool Add>
OPENREC_INLINE void gather(const S* p, const Taps<T>& t, int i, int64_t channels, T* out) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const Vec<T> v = blend<S, T>(p + c, t, i);
    store(out + c, Add ? load(out + c) + v : v);
  }
  for (; c < channels; ++c) {
    const T v = (to_float(p[c + t.i00[i]]) * t.w00[i] + to_float(p[c + t.i01[i]]) * t.w01[i]) +
                (to_float(p[c + t.i10[i]]) * t.w10[i] + to_float(p[c + t.i11[i]]) * t.w11[i]);
    out[c] = Add ? out[c] + v : v;
  }
}

// Gradients of one point in pixels; the map's gradient is added to `sums`.
template <class T>
struct PointGradient {
  T x, y, weight;
};
template <class T, bool Weighted, int NV>
OPENREC_INLINE PointGradient<T> scatter(const T* map, T* sums, const GradientTaps<T>& t, int i, T weight, int64_t channels,
                                        const T* grad) {
  constexpr int L = kLanes<T>;
  const T w00 = t.w00[i], w01 = t.w01[i], w10 = t.w10[i], w11 = t.w11[i];
  const T fy = t.fy[i], fx = t.fx[i], gy = 1 - fy, gx = 1 - fx;
  Vec<T> dx = {}, dy = {}, dw = {};
  T sx = 0, sy = 0, sw = 0;
  int64_t c = 0;
  const int64_t whole = NV ? NV * L : channels;
  OPENREC_UNROLL for (; c + L <= whole; c += L) {
    const T* const p = map + c;
    T* const q = sums + c;
    Vec<T> g = load(grad + c);
    const Vec<T> v00 = load(p + t.i00[i]), v01 = load(p + t.i01[i]), v10 = load(p + t.i10[i]), v11 = load(p + t.i11[i]);
    if (Weighted) {
      dw = dw + g * ((v00 * w00 + v01 * w01) + (v10 * w10 + v11 * w11));
      g = g * weight;
    }
    dx = dx + g * ((v01 - v00) * gy + (v11 - v10) * fy);
    dy = dy + g * ((v10 - v00) * gx + (v11 - v01) * fx);
    store(q + t.j00[i], load(q + t.j00[i]) + g * w00);
    store(q + t.j01[i], load(q + t.j01[i]) + g * w01);
    store(q + t.j10[i], load(q + t.j10[i]) + g * w10);
    store(q + t.j11[i], load(q + t.j11[i]) + g * w11);
  }
  for (; !NV && c < channels; ++c) {
    const T* const p = map + c;
    T* const q = sums + c;
    const T g = grad[c] * weight, v00 = p[t.i00[i]], v01 = p[t.i01[i]], v10 = p[t.i10[i]], v11 = p[t.i11[i]];
    sx += g * ((v01 - v00) * gy + (v11 - v10) * fy);
    sy += g * ((v10 - v00) * gx + (v11 - v01) * fx);
    if (Weighted) sw += grad[c] * ((v00 * w00 + v01 * w01) + (v10 * w10 + v11 * w11));
    q[t.j00[i]] += g * w00;
    q[t.j01[i]] += g * w01;
    q[t.j10[i]] += g * w10;
    q[t.j11[i]] += g * w11;
  }
  if (NV || channels >= L) {
    T both[2];
    sum_two(dx, dy, both);
    sx += both[0], sy += both[1];
    if (Weighted) sw += sum(dw);
  }
  return {sx, sy, sw};
}

}  // namespace OPENREC_ISA
}  // namespace openrec
