// Bilinear sampling of rows of channels: what deformable convolution and deform_sample share.
#pragma once

#include "simd.h"

namespace openrec {
namespace OPENREC_ISA {

// A map of rows: pixel (y, x) starts at `row * y + pixel * x` and holds the channels next to each other.
template <class S>
struct Plane {
  S* p;
  int64_t height, width, row, pixel;
};

// The four neighbours of a point: rows of channels and their weights. A neighbour outside the map is `outside`, a row
// of zeros (or, for gradients, a row that nobody reads), so that the arithmetic needs no branches.
template <class S, class T>
struct Taps {
  S *p00, *p01, *p10, *p11;  // (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1)
  T fy, fx;                  // distance from (y, x)
  bool inside;               // false: the point reads zero, and its gradients are zero
};

// NaN and infinity fail both comparisons, so no address is ever computed from them.
template <class S, class T>
OPENREC_INLINE Taps<S, T> taps(const Plane<S>& m, T y, T x, S* outside) {
  Taps<S, T> t;
  if (y >= 0 && x >= 0 && y < T(m.height - 1) && x < T(m.width - 1)) {
    const int64_t iy = int64_t(y), ix = int64_t(x);
    t.fy = y - T(iy), t.fx = x - T(ix);
    t.p00 = m.p + iy * m.row + ix * m.pixel;
    t.p01 = t.p00 + m.pixel, t.p10 = t.p00 + m.row, t.p11 = t.p10 + m.pixel;
    t.inside = true;
  } else if (y >= -1 && x >= -1 && y < T(m.height) && x < T(m.width)) {
    const int64_t iy = y < 0 ? -1 : int64_t(y), ix = x < 0 ? -1 : int64_t(x);
    t.fy = y - T(iy), t.fx = x - T(ix);
    const bool top = iy >= 0, bottom = iy + 1 < m.height, left = ix >= 0, right = ix + 1 < m.width;
    S* const base = m.p + iy * m.row + ix * m.pixel;
    t.p00 = top && left ? base : outside;
    t.p01 = top && right ? base + m.pixel : outside;
    t.p10 = bottom && left ? base + m.row : outside;
    t.p11 = bottom && right ? base + m.row + m.pixel : outside;
    t.inside = true;
  } else {
    t.p00 = t.p01 = t.p10 = t.p11 = outside;
    t.fy = t.fx = 0;
    t.inside = false;
  }
  return t;
}

template <class S, class T>
OPENREC_INLINE Vec<T> blend(const Taps<S, T>& t, int64_t c, T w00, T w01, T w10, T w11) {
  return load(t.p00 + c) * w00 + load(t.p01 + c) * w01 + load(t.p10 + c) * w10 + load(t.p11 + c) * w11;
}

// out[c] (+)= weight * sample. Vectors of channels, then single ones.
template <class S, class T, bool First>
OPENREC_INLINE void gather(const Taps<S, T>& t, T weight, int64_t channels, T* out) {
  constexpr int L = kLanes<T>;
  const T w11 = t.fy * t.fx * weight, w10 = t.fy * (1 - t.fx) * weight;
  const T w01 = (1 - t.fy) * t.fx * weight, w00 = (1 - t.fy) * (1 - t.fx) * weight;
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const Vec<T> v = blend(t, c, w00, w01, w10, w11);
    store(out + c, First ? v : load(out + c) + v);
  }
  for (; c < channels; ++c) {
    const T v = to_float(t.p00[c]) * w00 + to_float(t.p01[c]) * w01 + to_float(t.p10[c]) * w10 + to_float(t.p11[c]) * w11;
    out[c] = First ? v : out[c] + v;
  }
}

// The same neighbours in `sum`, the gradient of the map that starts at `value`.
template <class T>
OPENREC_INLINE Taps<T, T> moved(const Taps<T, T>& t, const T* value, T* sum, const T* zeros, T* nobody) {
  Taps<T, T> into = t;
  into.p00 = t.p00 == zeros ? nobody : sum + (t.p00 - value);
  into.p01 = t.p01 == zeros ? nobody : sum + (t.p01 - value);
  into.p10 = t.p10 == zeros ? nobody : sum + (t.p10 - value);
  into.p11 = t.p11 == zeros ? nobody : sum + (t.p11 - value);
  return into;
}

// Gradients of one point: d = {d_x, d_y, d_weight} in pixels, and the map's gradient added to the rows of `into`.
template <class T>
struct PointGradient {
  T x, y, weight;
};
template <class T>
OPENREC_INLINE PointGradient<T> scatter(const Taps<T, T>& t, const Taps<T, T>& into, T weight, int64_t channels,
                                        const T* grad) {
  constexpr int L = kLanes<T>;
  const T gy = 1 - t.fy, gx = 1 - t.fx;
  const T w11 = t.fy * t.fx, w10 = t.fy * gx, w01 = gy * t.fx, w00 = gy * gx;
  Vec<T> dx = {}, dy = {}, dw = {};
  T sx = 0, sy = 0, sw = 0;
  int64_t c = 0;
  for (; c + L <= channels; c += L) {
    const Vec<T> g = load(grad + c), g_weighted = g * weight;
    const Vec<T> v00 = load(t.p00 + c), v01 = load(t.p01 + c), v10 = load(t.p10 + c), v11 = load(t.p11 + c);
    const Vec<T> top = v01 - v00, bottom = v11 - v10, left = v10 - v00, right = v11 - v01;
    dx = dx + g_weighted * (top * gy + bottom * t.fy);
    dy = dy + g_weighted * (left * gx + right * t.fx);
    dw = dw + g * (v00 * w00 + v01 * w01 + v10 * w10 + v11 * w11);
    store(into.p00 + c, load(into.p00 + c) + g_weighted * w00);
    store(into.p01 + c, load(into.p01 + c) + g_weighted * w01);
    store(into.p10 + c, load(into.p10 + c) + g_weighted * w10);
    store(into.p11 + c, load(into.p11 + c) + g_weighted * w11);
  }
  for (; c < channels; ++c) {
    const T g = grad[c], g_weighted = g * weight;
    const T v00 = t.p00[c], v01 = t.p01[c], v10 = t.p10[c], v11 = t.p11[c];
    sx += g_weighted * ((v01 - v00) * gy + (v11 - v10) * t.fy);
    sy += g_weighted * ((v10 - v00) * gx + (v11 - v01) * t.fx);
    sw += g * (v00 * w00 + v01 * w01 + v10 * w10 + v11 * w11);
    into.p00[c] += g_weighted * w00;
    into.p01[c] += g_weighted * w01;
    into.p10[c] += g_weighted * w10;
    into.p11[c] += g_weighted * w11;
  }
  if (channels >= L) sx += sum(dx), sy += sum(dy), sw += sum(dw);
  return {sx, sy, sw};
}

}  // namespace OPENREC_ISA
}  // namespace openrec
