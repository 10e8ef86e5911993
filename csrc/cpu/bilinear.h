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
};

// Element distance between two places in different arrays.
template <class S>
OPENREC_INLINE int64_t distance(const S* from, const S* to) {
  return int64_t((intptr_t)to - (intptr_t)from) / int64_t(sizeof(S));
}

// The four neighbours of a point, as distances from the plane's start, and its place between them.
template <class T>
struct Taps {
  int64_t i00, i01, i10, i11;  // (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)
  T fy, fx;                    // distance from (y, x)
};

// Lower neighbour of x on an axis of `size` pixels, -2 and `size` meaning far outside; NaN is far outside.
template <class T>
OPENREC_INLINE int64_t lower(T x, int64_t size, T& fraction) {
  const T near = x >= T(-1) ? (x < T(size) ? x : T(size)) : T(-2);
  int32_t i = int32_t(near);
  i -= T(i) > near;
  fraction = near - T(i);
  return i;
}

template <class S, class T>
OPENREC_INLINE Taps<T> taps(const Plane<S>& m, T y, T x) {
  Taps<T> t;
  const int64_t iy = lower(y, m.height, t.fy), ix = lower(x, m.width, t.fx);
  const bool top = uint64_t(iy) < uint64_t(m.height), bottom = uint64_t(iy + 1) < uint64_t(m.height);
  const bool left = uint64_t(ix) < uint64_t(m.width), right = uint64_t(ix + 1) < uint64_t(m.width);
  const int64_t first = iy * m.row + ix * m.pixel;
  t.i00 = top & left ? first : m.outside;
  t.i01 = top & right ? first + m.pixel : m.outside;
  t.i10 = bottom & left ? first + m.row : m.outside;
  t.i11 = bottom & right ? first + m.row + m.pixel : m.outside;
  return t;
}

template <class T>
struct Corners {
  T w00, w01, w10, w11;

  explicit Corners(const Taps<T>& t) {
    w11 = t.fy * t.fx, w10 = t.fy - w11, w01 = t.fx - w11, w00 = (1 - t.fy) - w01;
  }
};

template <class S, class T>
OPENREC_INLINE Vec<T> blend(const S* p, const Taps<T>& t, const Corners<T>& w) {
  return (load(p + t.i00) * w.w00 + load(p + t.i01) * w.w01) + (load(p + t.i10) * w.w10 + load(p + t.i11) * w.w11);
}
template <class S, class T>
OPENREC_INLINE T blend_one(const S* p, const Taps<T>& t, const Corners<T>& w) {
  return (to_float(p[t.i00]) * w.w00 + to_float(p[t.i01]) * w.w01) + (to_float(p[t.i10]) * w.w10 + to_float(p[t.i11]) * w.w11);
}

// out[c] += weight * sample (or = without Add): vectors of channels, then single ones.
template <class S, class T, bool Add>
OPENREC_INLINE void gather(const Plane<S>& m, const Taps<T>& t, T weight, int64_t channels, T* out) {
  constexpr int L = kLanes<T>;
  const Corners<T> w(t);
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const Vec<T> v = blend<S, T>(m.p + c, t, w) * weight;
    store(out + c, Add ? load(out + c) + v : v);
  }
  for (; c < channels; ++c) {
    const T v = blend_one<S, T>(m.p + c, t, w) * weight;
    out[c] = Add ? out[c] + v : v;
  }
}

// Gradients of one point in pixels; the map's gradient is added to `sums`, laid out like `m` but for the row that takes
// what falls outside, which stands `nobody` elements from it.
template <class T>
struct PointGradient {
  T x, y, weight;
};
template <class T, bool Weighted>
OPENREC_INLINE PointGradient<T> scatter(const Plane<T>& m, T* sums, int64_t nobody, const Taps<T>& t, T weight,
                                        int64_t channels, const T* grad) {
  constexpr int L = kLanes<T>;
  const Corners<T> w(t);
  const int64_t j00 = t.i00 == m.outside ? nobody : t.i00, j01 = t.i01 == m.outside ? nobody : t.i01;
  const int64_t j10 = t.i10 == m.outside ? nobody : t.i10, j11 = t.i11 == m.outside ? nobody : t.i11;
  const T gy = 1 - t.fy, gx = 1 - t.fx;
  Vec<T> dx = {}, dy = {}, dw = {};
  T sx = 0, sy = 0, sw = 0;
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const T* const p = m.p + c;
    T* const q = sums + c;
    Vec<T> g = load(grad + c);
    const Vec<T> v00 = load(p + t.i00), v01 = load(p + t.i01), v10 = load(p + t.i10), v11 = load(p + t.i11);
    if (Weighted) {
      dw = dw + g * ((v00 * w.w00 + v01 * w.w01) + (v10 * w.w10 + v11 * w.w11));
      g = g * weight;
    }
    dx = dx + g * ((v01 - v00) * gy + (v11 - v10) * t.fy);
    dy = dy + g * ((v10 - v00) * gx + (v11 - v01) * t.fx);
    store(q + j00, load(q + j00) + g * w.w00);
    store(q + j01, load(q + j01) + g * w.w01);
    store(q + j10, load(q + j10) + g * w.w10);
    store(q + j11, load(q + j11) + g * w.w11);
  }
  for (; c < channels; ++c) {
    const T* const p = m.p + c;
    T* const q = sums + c;
    const T g = grad[c] * weight, v00 = p[t.i00], v01 = p[t.i01], v10 = p[t.i10], v11 = p[t.i11];
    sx += g * ((v01 - v00) * gy + (v11 - v10) * t.fy);
    sy += g * ((v10 - v00) * gx + (v11 - v01) * t.fx);
    if (Weighted) sw += grad[c] * ((v00 * w.w00 + v01 * w.w01) + (v10 * w.w10 + v11 * w.w11));
    q[j00] += g * w.w00;
    q[j01] += g * w.w01;
    q[j10] += g * w.w10;
    q[j11] += g * w.w11;
  }
  if (channels >= L) {
    T both[2];
    sum_two(dx, dy, both);
    sx += both[0], sy += both[1];
    if (Weighted) sw += sum(dw);
  }
  return {sx, sy, sw};
}

}  // namespace OPENREC_ISA
}  // namespace openrec
