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

template <class T>
OPENREC_INLINE Taps<T> taps_at(const SampleArgs& a, const Plane<T>& m, const T* loc) {
  return taps<T, T>(m, loc[1] * T(a.height) - T(0.5), loc[0] * T(a.width) - T(0.5));
}

template <class T, class S>
void forward_task(const SampleArgs& a, int64_t map, T* value) {
  const int64_t n = a.channels, pixels = a.height * a.width;
  T* const out = value + (pixels + 1) * n;  // one row more than pixels: zeros
  turn(value, (const S*)a.value + map * n * pixels, n, pixels);
  memset(value + pixels * n, 0, sizeof(T) * size_t((a.queries + 1) * n));
  const Plane<T> m = {value, a.height, a.width, a.width * n, n, pixels * n};
  for (int64_t q = 0; q < a.queries; ++q)
    for (int64_t p = 0; p < a.points; ++p) {
      const int64_t point = (map * a.queries + q) * a.points + p;
      const T weight = a.weight ? ((const T*)a.weight)[point] : T(1);
      gather<T, T, true>(m, taps_at(a, m, (const T*)a.loc + 2 * point), weight, n, out + q * n);
    }
  turn((S*)a.out + map * n * a.queries, out, a.queries, n);
}

template <class T, class S, bool Weighted>
void backward_task(const SampleArgs& a, int64_t map, T* value) {
  const int64_t n = a.channels, pixels = a.height * a.width;
  T *const sums = value + (pixels + 1) * n, *const grad = sums + (pixels + 1) * n;
  turn(value, (const S*)a.value + map * n * pixels, n, pixels);
  turn(grad, (const S*)a.grad + map * n * a.queries, n, a.queries);
  memset(value + pixels * n, 0, sizeof(T) * size_t((pixels + 2) * n));
  const Plane<T> m = {value, a.height, a.width, a.width * n, n, pixels * n};
  for (int64_t q = 0; q < a.queries; ++q)
    for (int64_t p = 0; p < a.points; ++p) {
      const int64_t point = (map * a.queries + q) * a.points + p;
      const T weight = Weighted ? ((const T*)a.weight)[point] : T(1);
      const Taps<T> t = taps_at(a, m, (const T*)a.loc + 2 * point);
      const PointGradient<T> d = scatter<T, Weighted>(m, sums, m.outside, t, weight, n, grad + q * n);
      ((T*)a.dloc)[2 * point] = d.x * T(a.width);
      ((T*)a.dloc)[2 * point + 1] = d.y * T(a.height);
      if (Weighted) ((T*)a.dweight)[point] = d.weight;
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
