// Deformable convolution v3 on CPU, channels last: lanes are the channels of a group.
// Idea: Wang et al., "InternImage" (OpenGVLab/InternImage, MIT). Compiled once per instruction set.
#include "../cpu/bilinear.h"

namespace openrec {
namespace OPENREC_ISA {
namespace {

// Where the undisplaced kernel stands, as InternImage places it: the scale stretches the kernel about its centre.
template <class T>
struct Grid {
  const DcnArgs& a;
  T scale;
  int64_t centre_h, centre_w;

  explicit Grid(const DcnArgs& args) : a(args), scale(T(args.scale)) {
    centre_h = a.dilation_h * (a.kernel_h - 1) / 2, centre_w = a.dilation_w * (a.kernel_w - 1) / 2;
  }
  T start_y(int64_t oy) const { return T(centre_h - a.pad_h + oy * a.stride_h) - T(centre_h) * scale; }
  T start_x(int64_t ox) const { return T(centre_w - a.pad_w + ox * a.stride_w) - T(centre_w) * scale; }
  // Point p of the kernel: columns outside, rows inside, the centre left out if asked.
  void step(int64_t p, T& y, T& x) const {
    if (a.remove_center && p >= a.kernel_h * a.kernel_w / 2) ++p;
    x = T(p / a.kernel_h * a.dilation_w), y = T(p % a.kernel_h * a.dilation_h);
  }
};

template <class S>
Plane<S> plane(const DcnArgs& a, int64_t image, int64_t group, const S* zeros) {
  S* p = (S*)a.input + image * a.input_batch + group * a.channels;
  return {p, a.height, a.width, a.input_row, a.input_pixel, distance<S>(p, zeros)};
}

// ------------------------------------------------------------------------------------------------------------ forward

int64_t forward_tasks(const DcnArgs& a) { return a.batch * a.out_height; }  // one row of output pixels each

template <class T>
size_t forward_scratch(const DcnArgs& a) {
  return sizeof(T) * size_t(3 * a.channels + 4 * a.points);
}

template <class T, class S>
OPENREC_INLINE void store_row(S* out, const T* row, int64_t channels) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) store(out + c, load(row + c));
  for (; c < channels; ++c) from_float(out + c, row[c]);
}

// Kernel of one point without a mask: the adaptive scan. NV: vectors per group where they are whole, else 0.
template <class T, class S, int NV>
void forward_row_one(const DcnArgs& a, int64_t image, int64_t oy, const S* zeros, T* row) {
  constexpr int L = kLanes<T>;
  const Grid<T> grid(a);
  const T y0 = grid.start_y(oy);
  const T* off = (const T*)a.offset + (image * a.out_height + oy) * a.out_width * a.group * 2;
  S* out = (S*)a.out + (image * a.out_height + oy) * a.out_width * a.group * a.channels;
  const Plane<S> first = plane<S>(a, image, 0, zeros);
  for (int64_t ox = 0; ox < a.out_width; ++ox) {
    const T x0 = grid.start_x(ox);
    Plane<S> m = first;
    for (int64_t g = 0; g < a.group; ++g, off += 2, out += a.channels) {
      const Taps<T> t = taps<S, T>(m, y0 + off[1] * grid.scale, x0 + off[0] * grid.scale);
      __builtin_prefetch(m.p + (oy + 2) * m.row + ox * m.pixel);  // most offsets are small: the rows to come
      if (NV) {
        const Corners<T> w(t);
        OPENREC_UNROLL for (int v = 0; v < NV; ++v) store(out + v * L, blend<S, T>(m.p + v * L, t, w));
      } else {
        gather<S, T, false>(m, t, T(1), a.channels, row);
        store_row(out, row, a.channels);
      }
      m.p += a.channels, m.outside -= a.channels;
    }
  }
}

template <class T, class S>
void forward_row(const DcnArgs& a, int64_t image, int64_t oy, const S* zeros, T* row) {
  const Grid<T> grid(a);
  const T y0 = grid.start_y(oy);
  T* const steps = row + a.channels;  // [P][2]: undisplaced points
  for (int64_t p = 0; p < a.points; ++p) grid.step(p, steps[2 * p + 1], steps[2 * p]);
  int64_t at = (image * a.out_height + oy) * a.out_width * a.group;  // (pixel, group) index
  for (int64_t ox = 0; ox < a.out_width; ++ox) {
    const T x0 = grid.start_x(ox);
    for (int64_t g = 0; g < a.group; ++g, ++at) {
      const Plane<S> m = plane<S>(a, image, g, zeros);
      const T* off = (const T*)a.offset + at * a.points * 2;
      const T* mask = a.mask ? (const T*)a.mask + at * a.points : nullptr;
      memset(row, 0, sizeof(T) * size_t(a.channels));
      for (int64_t p = 0; p < a.points; ++p) {
        const T y = y0 + (steps[2 * p + 1] + off[2 * p + 1]) * grid.scale;
        const T x = x0 + (steps[2 * p] + off[2 * p]) * grid.scale;
        gather<S, T, true>(m, taps<S, T>(m, y, x), mask ? mask[p] : T(1), a.channels, row);
      }
      store_row((S*)a.out + at * a.channels, row, a.channels);
    }
  }
}

template <class T, class S>
void forward_typed(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  S* const zeros = (S*)scratch;  // [c], then a row of c sums and the points
  T* const row = (T*)scratch + a.channels;
  memset(zeros, 0, sizeof(S) * size_t(a.channels));
  const bool one = a.points == 1 && !a.mask && a.kernel_h * a.kernel_w == 1;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / a.out_height, oy = i % a.out_height;
    if (!one)
      forward_row<T, S>(a, image, oy, zeros, row);
    else if (a.channels == kLanes<T>)
      forward_row_one<T, S, 1>(a, image, oy, zeros, row);
    else if (a.channels == 2 * kLanes<T>)
      forward_row_one<T, S, 2>(a, image, oy, zeros, row);
    else if (a.channels == 4 * kLanes<T>)
      forward_row_one<T, S, 4>(a, image, oy, zeros, row);
    else
      forward_row_one<T, S, 0>(a, image, oy, zeros, row);
  }
}

template <class T>
void forward(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    forward_typed<double, double>(a, begin, end, scratch);
  } else {
    if (a.dtype == DType::bf16) return forward_typed<float, bf16>(a, begin, end, scratch);
    if (a.dtype == DType::f16) return forward_typed<float, f16>(a, begin, end, scratch);
    forward_typed<float, float>(a, begin, end, scratch);
  }
}

// ----------------------------------------------------------------------------------------------------------- backward

// A task owns some groups of one image and with them all pixels whose gradients its points can reach: no atomics, and
// every pixel's sum runs in the order of the output. As many groups as fit the second-level cache: then rows are read
// whole, and neighbouring pixels, which add to the same rows, do not wait for each other's stores.
constexpr int64_t kPlaneBytes = 512 << 10;
constexpr int64_t kFewImages = 8;  // below, the groups are needed to keep all threads busy

int64_t groups_per_task(const DcnArgs& a, int64_t bytes) {
  const int64_t plane = 2 * a.height * a.width * a.channels * bytes;
  const int64_t fit = plane > 0 ? kPlaneBytes / plane : a.group;
  return a.batch < kFewImages || fit < 1 ? 1 : fit < a.group ? fit : a.group;
}
template <class T>
int64_t backward_tasks(const DcnArgs& a) {
  const int64_t groups = groups_per_task(a, sizeof(T));
  return a.batch * ((a.group + groups - 1) / groups);
}

template <class T>
size_t backward_scratch(const DcnArgs& a) {
  const int64_t width = groups_per_task(a, sizeof(T)) * a.channels;
  return sizeof(T) * size_t((2 * a.height * a.width + 1) * width + 3 * a.channels + 2 * a.points);
}

template <class T, class S>
OPENREC_INLINE void load_row(T* row, const S* in, int64_t channels) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) store(row + c, load(in + c));
  for (; c < channels; ++c) row[c] = to_float(in[c]);
}

// The map of a task's groups and its gradient in the compute type: the tensors themselves where they are in it and laid
// out alike, else copies.
template <class T, class S>
struct BackwardPlanes {
  Plane<T> value;
  T* sums;
  int64_t nobody;  // from sums
  bool in_place;
  int64_t width;

  BackwardPlanes(const DcnArgs& a, int64_t image, int64_t group, int64_t groups, T* zeros, T* scratch) {
    const int64_t n = a.channels, pixel = a.group * n, pixels = a.height * a.width;
    width = groups * n;
    const S* source = (const S*)a.input + image * a.input_batch + group * n;
    in_place = sizeof(S) == sizeof(T) && a.input_pixel == pixel && a.input_row == pixel * a.width;
    if (in_place) {
      sums = (T*)a.dinput + image * pixels * pixel + group * n;
      value = {(T*)source, a.height, a.width, a.input_row, a.input_pixel, 0};
    } else {
      sums = scratch + pixels * width;
      value = {scratch, a.height, a.width, a.width * width, width, 0};
      for (int64_t y = 0; y < a.height; ++y)
        for (int64_t x = 0; x < a.width; ++x)
          load_row(scratch + (y * a.width + x) * width, source + y * a.input_row + x * a.input_pixel, width);
    }
    value.outside = distance<T>(value.p, zeros), nobody = distance<T>(sums, zeros + n);
    for (int64_t i = 0; i < pixels; ++i) memset(sums + i * value.pixel, 0, sizeof(T) * size_t(width));
  }
  void finish(const DcnArgs& a, int64_t image, int64_t group) const {
    const int64_t pixels = a.height * a.width;
    for (int64_t i = 0; i < pixels && !in_place; ++i)
      store_row((S*)a.dinput + ((image * pixels + i) * a.group + group) * a.channels, sums + i * width, width);
  }
};

template <class T, class S, bool Masked>
void backward_task(const DcnArgs& a, int64_t image, int64_t group, int64_t groups, T* scratch) {
  const int64_t n = a.channels;
  T *const zeros = scratch, *const row = scratch + 2 * n, *const steps = row + n;
  memset(zeros, 0, sizeof(T) * size_t(2 * n));
  const Grid<T> grid(a);
  for (int64_t p = 0; p < a.points; ++p) grid.step(p, steps[2 * p + 1], steps[2 * p]);
  const BackwardPlanes<T, S> planes(a, image, group, groups, zeros, steps + 2 * a.points);
  for (int64_t oy = 0; oy < a.out_height; ++oy) {
    const T y0 = grid.start_y(oy);
    for (int64_t ox = 0; ox < a.out_width; ++ox) {
      const T x0 = grid.start_x(ox);
      for (int64_t i = 0; i < groups; ++i) {
        Plane<T> m = planes.value;
        m.p += i * n, m.outside -= i * n;
        __builtin_prefetch(m.p + (oy * a.stride_h + 2) * m.row + ox * a.stride_w * m.pixel);
        const int64_t at = ((image * a.out_height + oy) * a.out_width + ox) * a.group + group + i;
        const T* g = (const T*)a.grad + at * n;
        if (sizeof(S) != sizeof(T)) load_row(row, (const S*)a.grad + at * n, n), g = row;
        for (int64_t p = 0; p < a.points; ++p) {
          const int64_t point = at * a.points + p;
          const T* off = (const T*)a.offset + point * 2;
          const T y = y0 + (steps[2 * p + 1] + off[1]) * grid.scale, x = x0 + (steps[2 * p] + off[0]) * grid.scale;
          const T weight = Masked ? ((const T*)a.mask)[point] : T(1);
          const PointGradient<T> d =
              scatter<T, Masked>(m, planes.sums + i * n, planes.nobody - i * n, taps<T, T>(m, y, x), weight, n, g);
          ((T*)a.doffset)[point * 2] = d.x * grid.scale;
          ((T*)a.doffset)[point * 2 + 1] = d.y * grid.scale;
          if (Masked) ((T*)a.dmask)[point] = d.weight;
        }
      }
    }
  }
  planes.finish(a, image, group);
}

template <class T, class S>
void backward_typed(const DcnArgs& a, int64_t begin, int64_t end, T* scratch) {
  const int64_t groups = groups_per_task(a, sizeof(T)), per_image = (a.group + groups - 1) / groups;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / per_image, first = i % per_image * groups;
    const int64_t count = a.group - first < groups ? a.group - first : groups;
    if (a.mask)
      backward_task<T, S, true>(a, image, first, count, scratch);
    else
      backward_task<T, S, false>(a, image, first, count, scratch);
  }
}

template <class T>
void backward(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    backward_typed<double, double>(a, begin, end, (double*)scratch);
  } else {
    if (a.dtype == DType::bf16) return backward_typed<float, bf16>(a, begin, end, (float*)scratch);
    if (a.dtype == DType::f16) return backward_typed<float, f16>(a, begin, end, (float*)scratch);
    backward_typed<float, float>(a, begin, end, (float*)scratch);
  }
}

template <class T>
Pair<DcnArgs> pair() {
  return {{forward_tasks, forward_scratch<T>, forward<T>}, {backward_tasks<T>, backward_scratch<T>, backward<T>}};
}

}  // namespace

Pair<DcnArgs> dcn_f32() { return pair<float>(); }
Pair<DcnArgs> dcn_f64() { return pair<double>(); }

}  // namespace OPENREC_ISA
}  // namespace openrec
