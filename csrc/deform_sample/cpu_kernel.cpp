// Bilinear samples of planar maps [c, H, W] at free points, on CPU. Compiled once per instruction set.
//
// A task is one map. It is turned to channels-last in scratch memory first, so that a neighbour is one row of channels
// (a gather per channel would touch one cache line per number), and the result is turned back.
#include "../cpu/bilinear.h"

namespace openrec {
namespace OPENREC_ISA {
namespace {

// `points` and `weight` are those of a query; without weights a query is one point.
int64_t tasks(const SampleArgs& a) { return a.maps; }

template <class T>
size_t forward_scratch(const SampleArgs& a) {
  return sizeof(T) * size_t(a.channels * (a.height * a.width + a.queries + 2));
}
template <class T>
size_t backward_scratch(const SampleArgs& a) {
  return sizeof(T) * size_t(a.channels * (2 * a.height * a.width + a.queries + 2));
}

// [rows][columns] of S to [columns][rows] of T, in squares that fit the first-level cache.
template <class T, class S>
void turn(T* out, const S* in, int64_t rows, int64_t columns) {
  constexpr int64_t n = 16;
  for (int64_t i = 0; i < rows; i += n)
    for (int64_t j = 0; j < columns; j += n)
      for (int64_t r = i; r < rows && r < i + n; ++r)
        for (int64_t c = j; c < columns && c < j + n; ++c) {
          if constexpr (sizeof(T) >= sizeof(float) && sizeof(S) <= sizeof(T))
            out[c * rows + r] = to_float(in[r * columns + c]);
          else
            from_float(out + c * rows + r, in[r * columns + c]);
        }
}

// Positions of kLanes points from the k-th of a map on, in pixels; the map's last vector is read from a copy.
template <class T>
OPENREC_INLINE void positions(const SampleArgs& a, const T* loc, int64_t left, Vec<T>& y, Vec<T>& x) {
  T last[2 * kLanes<T>];
  if (left < kLanes<T>) {
    memset(last, 0, sizeof last);
    memcpy(last, loc, sizeof(T) * 2 * size_t(left));
    loc = last;
  }
  load_pairs(loc, x, y);
  x = x * T(a.width) - T(0.5), y = y * T(a.height) - T(0.5);
}
template <class T>
OPENREC_INLINE Vec<T> weights(const T* weight, int64_t left) {
  if (!weight) return splat(T(1));
  T last[kLanes<T>];
  if (left < kLanes<T>) {
    memset(last, 0, sizeof last);
    memcpy(last, weight, sizeof(T) * size_t(left));
    weight = last;
  }
  return load(weight);
}

template <class T, class S>
void forward_task(const SampleArgs& a, int64_t map, T* value) {
  constexpr int L = kLanes<T>;
  const int64_t n = a.channels, pixels = a.height * a.width, count = a.queries * a.points, first = map * count;
  T* out = value + (pixels + 1) * n;  // one row more than pixels: zeros
  turn(value, (const S*)a.value + map * n * pixels, n, pixels);
  memset(value + pixels * n, 0, sizeof(T) * size_t((a.queries + 1) * n));
  const Plane<T> m = {value, a.height, a.width, a.width * n, n, pixels * n};
  Taps<T> t;
  int64_t p = 0;
  for (int64_t k = 0; k < count; k += L) {
    Vec<T> y, x;
    positions<T>(a, (const T*)a.loc + 2 * (first + k), count - k, y, x);
    find_taps<T, T>(m, y, x, Mask<T>{}, weights(a.weight ? (const T*)a.weight + first + k : nullptr, count - k), t);
    const int points = count - k < L ? int(count - k) : L;
    for (int i = 0; i < points; ++i) {
      gather<T, T, true>(value, t, i, n, out);
      if (++p == a.points) p = 0, out += n;
    }
  }
  turn((S*)a.out + map * n * a.queries, value + (pixels + 1) * n, a.queries, n);
}

template <class T, class S, bool Weighted>
void backward_task(const SampleArgs& a, int64_t map, T* value) {
  constexpr int L = kLanes<T>;
  const int64_t n = a.channels, pixels = a.height * a.width, count = a.queries * a.points;
  T *const sums = value + (pixels + 1) * n, *grad = sums + (pixels + 1) * n;
  turn(value, (const S*)a.value + map * n * pixels, n, pixels);
  turn(grad, (const S*)a.grad + map * n * a.queries, n, a.queries);
  memset(value + pixels * n, 0, sizeof(T) * size_t((pixels + 2) * n));
  const Plane<T> m = {value, a.height, a.width, a.width * n, n, pixels * n};
  GradientTaps<T> t;
  int64_t p = 0;
  for (int64_t k = 0; k < count; k += L) {
    const int64_t first = map * count + k;
    Vec<T> y, x;
    positions<T>(a, (const T*)a.loc + 2 * first, count - k, y, x);
    find_taps<T>(m, m.outside, y, x, Mask<T>{}, t);
    const int points = count - k < L ? int(count - k) : L;
    for (int i = 0; i < points; ++i) {
      const T weight = Weighted ? ((const T*)a.weight)[first + i] : T(1);
      const PointGradient<T> d = scatter<T, Weighted, 0>(value, sums, t, i, weight, n, grad);
      ((T*)a.dloc)[2 * (first + i)] = d.x * T(a.width);
      ((T*)a.dloc)[2 * (first + i) + 1] = d.y * T(a.height);
      if (Weighted) ((T*)a.dweight)[first + i] = d.weight;
      if (++p == a.points) p = 0, grad += n;
    }
  }
  turn((S*)a.dvalue + map * n * pixels, sums, pixels, n);
}

template <class T, class S, bool Forward>
void run_typed(const SampleArgs& a, int64_t begin, int64_t end, T* scratch) {
  for (int64_t i = begin; i < end; ++i) {
    if constexpr (Forward)
      forward_task<T, S>(a, i, scratch);
    else if (a.weight)
      backward_task<T, S, true>(a, i, scratch);
    else
      backward_task<T, S, false>(a, i, scratch);
  }
}

template <class T, bool Forward>
void run(const SampleArgs& a, int64_t begin, int64_t end, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    run_typed<double, double, Forward>(a, begin, end, (double*)scratch);
  } else {
    if (a.dtype == DType::bf16) return run_typed<float, bf16, Forward>(a, begin, end, (float*)scratch);
    if (a.dtype == DType::f16) return run_typed<float, f16, Forward>(a, begin, end, (float*)scratch);
    run_typed<float, float, Forward>(a, begin, end, (float*)scratch);
  }
}

template <class T>
Pair<SampleArgs> pair() {
  return {{tasks, forward_scratch<T>, run<T, true>}, {tasks, backward_scratch<T>, run<T, false>}};
}

}  // namespace

Pair<SampleArgs> sample_f32() { return pair<float>(); }
Pair<SampleArgs> sample_f64() { return pair<double>(); }

}  // namespace OPENREC_ISA
}  // namespace openrec
