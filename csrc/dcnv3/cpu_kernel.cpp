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

// The points of `pixels` pixels of an output row in memory order, (pixel, group, point): what neither the row nor the
// image changes. A single pixel's x is 0: its place is told to `positions`.
template <class T>
struct RowPoints {
  int64_t count;  // points; the arrays end on whole vectors
  T *x, *step_x, *step_y;
  Lane<T>* channel;

  static int64_t room(int64_t count) { return (count + kLanes<T> - 1) / kLanes<T> * kLanes<T>; }
  static size_t bytes(int64_t count) { return size_t(room(count)) * 4 * sizeof(T); }

  RowPoints(const DcnArgs& a, int64_t pixels, int64_t groups, void* scratch) : count(pixels * groups * a.points) {
    const int64_t n = room(count);
    x = (T*)scratch, step_x = x + n, step_y = step_x + n, channel = (Lane<T>*)(step_y + n);
    memset(scratch, 0, bytes(count));
    const Grid<T> grid(a);
    for (int64_t k = 0; k < count; ++k) {
      x[k] = pixels > 1 ? grid.start_x(k / (groups * a.points)) : T(0);
      grid.step(k % a.points, step_y[k], step_x[k]);
      channel[k] = Lane<T>(k / a.points % groups * a.channels);
    }
  }
  // Positions of kLanes points from k on; `offset` belongs to point k. The last vector of a row is read from a copy.
  OPENREC_METHOD void positions(int64_t k, const T* offset, T y0, T x0, T scale, Vec<T>& py, Vec<T>& px) const {
    T last[2 * kLanes<T>];
    if (count - k < kLanes<T>) {
      memset(last, 0, sizeof last);
      memcpy(last, offset, sizeof(T) * 2 * size_t(count - k));
      offset = last;
    }
    Vec<T> dx, dy;
    load_pairs(offset, dx, dy);
    py = y0 + (load(step_y + k) + dy) * scale;
    px = (load(x + k) + x0) + (load(step_x + k) + dx) * scale;
  }
  OPENREC_METHOD Vec<T> weights(int64_t k, const T* mask) const {
    if (!mask) return splat(T(1));
    T last[kLanes<T>];
    if (count - k < kLanes<T>) {
      memset(last, 0, sizeof last);
      memcpy(last, mask, sizeof(T) * size_t(count - k));
      mask = last;
    }
    return load(mask);
  }
};

// ------------------------------------------------------------------------------------------------------------ forward

int64_t forward_tasks(const DcnArgs& a) { return a.batch * a.out_height; }  // one row of output pixels each

template <class T>
size_t forward_scratch(const DcnArgs& a) {
  return RowPoints<T>::bytes(a.out_width * a.group * a.points) + sizeof(T) * size_t(2 * a.channels);
}

template <class T, class S>
OPENREC_INLINE void store_row(S* out, const T* row, int64_t channels) {
  constexpr int L = kLanes<T>;
  int64_t c = 0;
  for (; c + L <= channels; c += L) store(out + c, load(row + c));
  for (; c < channels; ++c) from_float(out + c, row[c]);
}

// NV: vectors per group where they are whole, else 0. One: a kernel of one point, the adaptive scan.
template <class T, class S, int NV, bool One>
void forward_row(const DcnArgs& a, const RowPoints<T>& points, int64_t image, int64_t oy, const S* zeros, T* row) {
  constexpr int L = kLanes<T>;
  const Grid<T> grid(a);
  const T y0 = grid.start_y(oy), x0 = a.out_width > 1 ? T(0) : grid.start_x(0);
  const int64_t first = (image * a.out_height + oy) * points.count, n = a.channels;
  const T* const offset = (const T*)a.offset + 2 * first;
  const T* const mask = a.mask ? (const T*)a.mask + first : nullptr;
  S* out = (S*)a.out + first / a.points * n;
  S* const p = (S*)a.input + image * a.input_batch;
  const Plane<S> m = {p, a.height, a.width, a.input_row, a.input_pixel, distance<S>(p, zeros)};
  const S* const to_come = p + (oy + 2) * m.row;  // most offsets are small
  Taps<T> t;
  Vec<T> sum[NV ? NV : 1] = {};
  int64_t left = a.points;
  if (!NV && !One) memset(row, 0, sizeof(T) * size_t(n));
  for (int64_t k = 0; k < points.count; k += L) {
    Vec<T> y, x;
    points.positions(k, offset + 2 * k, y0, x0, grid.scale, y, x);
    find_taps<S, T>(m, y, x, load(points.channel + k), points.weights(k, mask ? mask + k : nullptr), t);
    const int count = points.count - k < L ? int(points.count - k) : L;
    for (int i = 0; i < count; ++i) {
      if (One) __builtin_prefetch(to_come + (k + i) * n);
      if (NV) {
        OPENREC_UNROLL for (int v = 0; v < NV; ++v) {
          const Vec<T> s = blend<S, T>(p + v * L, t, i);
          sum[v] = One ? s : sum[v] + s;
        }
      } else {
        gather<S, T, !One>(p, t, i, n, row);
      }
      if (!One && --left > 0) continue;
      OPENREC_UNROLL for (int v = 0; v < NV; ++v) store(out + v * L, sum[v]), sum[v] = Vec<T>{};
      if (!NV) {
        store_row(out, row, n);
        if (!One) memset(row, 0, sizeof(T) * size_t(n));
      }
      out += n, left = a.points;
    }
  }
}

template <class T, class S, int NV>
void forward_rows(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  const RowPoints<T> points(a, a.out_width, a.group, scratch);
  T* const row = (T*)((char*)scratch + RowPoints<T>::bytes(points.count));  // [c] sums, then [c] zeros
  S* const zeros = (S*)(row + a.channels);
  memset(zeros, 0, sizeof(S) * size_t(a.channels));
  for (int64_t i = begin; i < end; ++i) {
    if (a.points == 1)
      forward_row<T, S, NV, true>(a, points, i / a.out_height, i % a.out_height, zeros, row);
    else
      forward_row<T, S, NV, false>(a, points, i / a.out_height, i % a.out_height, zeros, row);
  }
}

template <class T, class S>
void forward_typed(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  constexpr int L = kLanes<T>;
  if (a.channels == L) return forward_rows<T, S, 1>(a, begin, end, scratch);
  if (a.channels == 2 * L) return forward_rows<T, S, 2>(a, begin, end, scratch);
  if (a.channels == 4 * L) return forward_rows<T, S, 4>(a, begin, end, scratch);
  forward_rows<T, S, 0>(a, begin, end, scratch);
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

// Points that stand next to each other in memory: a row of pixels where the task has all groups, else a pixel.
int64_t pixels_in_line(const DcnArgs& a, int64_t groups) { return groups == a.group ? a.out_width : 1; }

template <class T>
size_t backward_scratch(const DcnArgs& a) {
  const int64_t groups = groups_per_task(a, sizeof(T)), width = groups * a.channels;
  return RowPoints<T>::bytes(pixels_in_line(a, groups) * groups * a.points) +
         sizeof(T) * size_t(2 * a.height * a.width * width + 3 * a.channels);
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

template <class T, class S, bool Masked, int NV>
void backward_task(const DcnArgs& a, int64_t image, int64_t group, int64_t groups, void* scratch) {
  constexpr int L = kLanes<T>;
  const int64_t n = a.channels, pixels = pixels_in_line(a, groups);
  const RowPoints<T> points(a, pixels, groups, scratch);
  T* const zeros = (T*)((char*)scratch + RowPoints<T>::bytes(points.count));  // [c], then the row of nobody, then one more
  T* const row = zeros + 2 * n;
  memset(zeros, 0, sizeof(T) * size_t(2 * n));
  const Grid<T> grid(a);
  const BackwardPlanes<T, S> planes(a, image, group, groups, zeros, row + n);
  const Plane<T>& m = planes.value;
  GradientTaps<T> t;
  for (int64_t oy = 0; oy < a.out_height; ++oy) {
    const T y0 = grid.start_y(oy);
    for (int64_t ox = 0; ox < a.out_width; ox += pixels) {
      const int64_t line = ((image * a.out_height + oy) * a.out_width + ox) * a.group + group;  // (pixel, group) index
      const T x0 = pixels > 1 ? T(0) : grid.start_x(ox);
      int64_t at = line, p = 0;
      for (int64_t k = 0; k < points.count; k += L) {
        const int64_t first = line * a.points + k;
        Vec<T> y, x;
        points.positions(k, (const T*)a.offset + 2 * first, y0, x0, grid.scale, y, x);
        find_taps<T>(m, planes.nobody, y, x, load(points.channel + k), t);
        const int count = points.count - k < L ? int(points.count - k) : L;
        for (int i = 0; i < count; ++i) {
          __builtin_prefetch(m.p + (oy * a.stride_h + 2) * m.row + (k + i) * n);
          const T* g = (const T*)a.grad + at * n;
          if (sizeof(S) != sizeof(T)) {
            if (p == 0) load_row(row, (const S*)a.grad + at * n, n);
            g = row;
          }
          const T weight = Masked ? ((const T*)a.mask)[first + i] : T(1);
          const PointGradient<T> d = scatter<T, Masked, NV>(m.p, planes.sums, t, i, weight, n, g);
          ((T*)a.doffset)[(first + i) * 2] = d.x * grid.scale;
          ((T*)a.doffset)[(first + i) * 2 + 1] = d.y * grid.scale;
          if (Masked) ((T*)a.dmask)[first + i] = d.weight;
          if (++p == a.points) p = 0, ++at;
        }
      }
    }
  }
  planes.finish(a, image, group);
}

template <class T, class S, int NV>
void backward_tasks_of(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  const int64_t groups = groups_per_task(a, sizeof(T)), per_image = (a.group + groups - 1) / groups;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t image = i / per_image, first = i % per_image * groups;
    const int64_t count = a.group - first < groups ? a.group - first : groups;
    if (a.mask)
      backward_task<T, S, true, NV>(a, image, first, count, scratch);
    else
      backward_task<T, S, false, NV>(a, image, first, count, scratch);
  }
}

template <class T, class S>
void backward_typed(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  constexpr int L = kLanes<T>;
  if (a.channels == L) return backward_tasks_of<T, S, 1>(a, begin, end, scratch);
  if (a.channels == 2 * L) return backward_tasks_of<T, S, 2>(a, begin, end, scratch);
  backward_tasks_of<T, S, 0>(a, begin, end, scratch);
}

template <class T>
void backward(const DcnArgs& a, int64_t begin, int64_t end, void* scratch) {
  if constexpr (sizeof(T) == 8) {
    backward_typed<double, double>(a, begin, end, scratch);
  } else {
    if (a.dtype == DType::bf16) return backward_typed<float, bf16>(a, begin, end, scratch);
    if (a.dtype == DType::f16) return backward_typed<float, f16>(a, begin, end, scratch);
    backward_typed<float, float>(a, begin, end, scratch);
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
