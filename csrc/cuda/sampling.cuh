// Bilinear sampling with zero padding: the kernels behind dcnv3 and deform_sample.
//
// A problem has `queries` outputs per map, `points` samples per query and `groups` channel groups, each with its own sample
// positions. Two layouts: packed (channels last, dcnv3: a group is a run of neighbouring channels of a pixel) and planar
// (channels first, deform_sample). A sample at (x, y) in pixels counts when -1 <= x < cols and -1 <= y < rows; the derivative
// at a pixel is the one of the cell to its right and below (floor), as in torch's grid_sample. NaN and infinite positions
// fail these comparisons and read nothing.
//
// The gradient of the input is a gather, not a scatter: a block sorts the samples of its part of the map by the cell they
// fall into (counting sort in shared memory, ties in order of the sample's number), then each input pixel adds what the
// samples of its four cells send, in that order. So there are no float atomics, the sums are full fp32 (or fp64), and
// results are bitwise the same in every run.
#pragma once

#include "cuda/device.cuh"

namespace openrec::cuda {

constexpr int kSampleThreads = 256;
constexpr int kMaxBins = 6144;  // shared memory stays under 48 KB
template <class T>
constexpr int kSamplesPerThread = sizeof(T) == 8 ? 2 : 4;

template <class T>
struct SampleArgs {
  const T* value;
  const void* coord;   // pairs (x, y): offsets or normalised positions
  const void* weight;  // may be null: ones
  DType type, coord_type, weight_type;
  int64_t batch;
  int groups, width;  // width: channels per group
  int rows, cols;     // of the input map
  int queries, points;
  int vectors;  // channel vectors per group
  FastDiv by_points, by_vectors;
  // forward
  T* out;
  // backward
  const T* grad;
  T* grad_value;
  acc_t<T>* partial;  // running sums where a map takes several segments; null if none does
  void* grad_coord;
  void* grad_weight;
  int groups_per_block_log2, lanes_per_sample_log2;
  int segments, tile_rows, tile_cols, tiles_x, tiles;
  FastDiv by_block_vectors, by_tile_cols, by_tile_pixels;
};

// --------------------------------------------------------------------------------------------------- where samples lie
// dcnv3: a regular lattice of kernel points plus learned offsets, in pixels. Points run down the columns of the kernel.
template <class A>
struct Lattice {
  FastDiv out_cols, kernel_rows;
  int kernel_points;  // with the centre
  int centre;         // its number if it is left out, else kernel_points
  A origin_x, origin_y, stride_x, stride_y, dilation_x, dilation_y, scale;

  OPENREC_FN void place(int query, int point, A dx, A dy, A& x, A& y) const {
    int row = int(out_cols.quotient(uint32_t(query)));
    int col = query - row * int(out_cols.divisor);
    A kx = 0, ky = 0;
    if (kernel_points > 1) {
      int k = point + (point >= centre);
      int i = int(kernel_rows.quotient(uint32_t(k)));
      kx = A(i) * dilation_x;
      ky = A(k - i * int(kernel_rows.divisor)) * dilation_y;
    }
    x = (A(col) * stride_x + origin_x) + (kx + dx) * scale;
    y = (A(row) * stride_y + origin_y) + (ky + dy) * scale;
  }
  OPENREC_FN A slope_x() const { return scale; }
  OPENREC_FN A slope_y() const { return scale; }
};

// deform_sample: positions given as fractions of the map, pixel centres at (i + 0.5) / size.
template <class A>
struct Normalised {
  A cols, rows;

  OPENREC_FN void place(int, int, A u, A v, A& x, A& y) const {
    x = u * cols - A(0.5);
    y = v * rows - A(0.5);
  }
  OPENREC_FN A slope_x() const { return cols; }
  OPENREC_FN A slope_y() const { return rows; }
};

template <class A>
struct Tap {
  int x0, y0;  // upper left pixel, -1 at the earliest
  A fx, fy;    // distance from it
  bool inside;
};

template <class A>
OPENREC_FN Tap<A> tap_at(A x, A y, int rows, int cols) {
  Tap<A> t;
  t.inside = x >= A(-1) && x < A(cols) && y >= A(-1) && y < A(rows);
  x = t.inside ? x : A(0);
  y = t.inside ? y : A(0);
  A left = floor(x), top = floor(y);
  t.x0 = int(left);
  t.y0 = int(top);
  t.fx = x - left;
  t.fy = y - top;
  return t;
}

// Number of sample (query, point) of group g of batch b in the coordinate and weight tensors.
template <bool kPlanar, class T>
OPENREC_FN int64_t sample_number(const SampleArgs<T>& p, int64_t b, int g, int query, int points, int point) {
  if (kPlanar) return ((b * p.groups + g) * p.queries + query) * int64_t(points) + point;
  return ((b * p.queries + query) * p.groups + g) * int64_t(points) + point;
}

// ------------------------------------------------------------------------------------------ V channels of a map's pixels
template <class T, int V, bool kPlanar>
struct Channels {
  using A = acc_t<T>;
  int64_t pixel_stride, channel_stride;
  int64_t first;  // of pixel 0
  int count;      // channels left of this vector on (planar only)

  OPENREC_FN Channels(int64_t b, int g, int vector, int groups, int width, int pixels) {
    if (kPlanar) {
      pixel_stride = 1;
      channel_stride = pixels;
      first = ((b * groups + g) * width + vector * V) * int64_t(pixels);
      count = width - vector * V;
    } else {
      pixel_stride = int64_t(groups) * width;
      channel_stride = 1;
      first = b * pixels * pixel_stride + int64_t(g) * width + vector * V;
      count = V;
    }
  }
  template <class U>
  OPENREC_FN void load(const U* base, DType type, int pixel, acc_t<U> (&x)[V]) const {
    const int64_t at = first + pixel * pixel_stride;
    if constexpr (kPlanar || V == 1) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = i < count ? fetch(base, at + i * channel_stride, type) : acc_t<U>(0);
    } else {
      Packed<U, V> v;
      v.load(base + at);
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = v.get(i);
    }
  }
  template <class U>
  OPENREC_FN void store(U* base, DType type, int pixel, const acc_t<U> (&x)[V]) const {
    const int64_t at = first + pixel * pixel_stride;
    if constexpr (kPlanar || V == 1) {
#pragma unroll
      for (int i = 0; i < V; ++i)
        if (i < count) put(base, at + i * channel_stride, type, x[i]);
    } else {
      Packed<U, V> v;
      v.set(x);
      v.store(base + at);
    }
  }
};

// The values at the four corners of a tap, zero outside the map; packed ones stay packed until used, to save registers.
template <class T, int V, bool kPlanar>
struct Corners {
  using A = acc_t<T>;
  static constexpr bool kVector = !kPlanar && V > 1;
  Packed<std::conditional_t<kVector, T, float>, kVector ? V : 1> packed[kVector ? 4 : 1];
  A single[4][kVector ? 1 : V];

  OPENREC_FN void load(const T* base, DType type, const Channels<T, V, kPlanar>& c, const Tap<A>& t, int rows, int cols) {
    const int pixel = t.y0 * cols + t.x0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool ok = t.inside && (k & 1 ? t.x0 + 1 < cols : t.x0 >= 0) && (k & 2 ? t.y0 + 1 < rows : t.y0 >= 0);
      const int64_t at = c.first + (pixel + (k & 1) + (k & 2 ? cols : 0)) * c.pixel_stride;
      if constexpr (kVector) {
        packed[k].clear();
        if (ok) packed[k].load(base + at);
      } else {
#pragma unroll
        for (int i = 0; i < V; ++i) single[k][i] = ok && i < c.count ? fetch(base, at + i * c.channel_stride, type) : A(0);
      }
    }
  }
  OPENREC_FN A get(int k, int i) const {
    if constexpr (kVector)
      return packed[k].get(i);
    else
      return single[k][i];
  }
};

// ------------------------------------------------------------------------------------------------------------- forward
// Packed: x of the block runs over channel vectors of a pixel, y over pixels. Planar: x over queries, z of the grid over
// channel vectors. y of the grid: maps (strided, so that any number fits the grid's 65535).
// Blocks per multiprocessor to leave registers for; sm_75 holds 1024 threads.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kOnePointBlocks = 4;
#else
constexpr int kOnePointBlocks = 5;
#endif
template <bool kPlanar, bool kOnePoint>
constexpr int kSampleForwardBlocks = kOnePoint ? kOnePointBlocks : (kPlanar ? 3 : 4);

// kOnePoint: one sample per query and no weights.
template <class T, int V, bool kPlanar, bool kOnePoint, class Place>
__global__ void __launch_bounds__(kSampleThreads, kSampleForwardBlocks<kPlanar, kOnePoint>) sample_forward(const SampleArgs<T> p, const Place place) {
  using A = acc_t<T>;
  const int query = kPlanar ? int(blockIdx.x * blockDim.x + threadIdx.x) : int(blockIdx.x * blockDim.y + threadIdx.y);
  if (query >= p.queries) return;
  const int64_t maps = kPlanar ? p.batch * p.groups : p.batch;
  const int vectors = kPlanar ? p.vectors : p.vectors * p.groups;
  const int first_vector = kPlanar ? int(blockIdx.z) : int(threadIdx.x);
  const int vector_step = kPlanar ? int(gridDim.z) : int(blockDim.x);
  for (int64_t map = blockIdx.y; map < maps; map += gridDim.y) {
    const int64_t b = kPlanar ? map / p.groups : map;
    for (int vector = first_vector; vector < vectors; vector += vector_step) {
      const int g = kPlanar ? int(map - b * p.groups) : int(p.by_vectors.quotient(uint32_t(vector)));
      const int v = kPlanar ? vector : vector - g * p.vectors;
      const Channels<T, V, kPlanar> from(b, g, v, p.groups, p.width, p.rows * p.cols);
      A sum[V];
#pragma unroll
      for (int i = 0; i < V; ++i) sum[i] = A(0);
      const int points = kOnePoint ? 1 : p.points;
      int64_t number = sample_number<kPlanar>(p, b, g, query, points, 0);
      for (int k = 0; k < points; ++k, ++number) {
        A dx, dy, x, y;
        read_pair<A>(p.coord, number, p.coord_type, dx, dy);
        place.place(query, k, dx, dy, x, y);
        const Tap<A> t = tap_at(x, y, p.rows, p.cols);
        if (!t.inside) continue;
        const A m = !kOnePoint && p.weight ? read_any<A>(p.weight, number, p.weight_type) : A(1);
        Corners<T, V, kPlanar> corner;
        corner.load(p.value, p.type, from, t, p.rows, p.cols);
        const A top = (A(1) - t.fy) * m, bottom = t.fy * m;
        const A w[4] = {top * (A(1) - t.fx), top * t.fx, bottom * (A(1) - t.fx), bottom * t.fx};
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] += w[j] * corner.get(j, i);
      }
      Channels<T, V, kPlanar>(b, g, v, p.groups, p.width, p.queries).store(p.out, p.type, query, sum);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ backward
template <class A>
struct Entry {  // a sample as its pixels see it
  int query;
  A fx, fy, weight;
};

// Gradients of positions and weights of the samples of one segment: each sample is shared by some neighbouring lanes.
template <class T, int V, bool kPlanar, class Place>
OPENREC_FN void position_gradients(const SampleArgs<T>& p, const Place& place, int64_t b, int first_group, int first_sample,
                                   int end_sample) {
  using A = acc_t<T>;
  const int lanes = 1 << p.lanes_per_sample_log2, sub = int(threadIdx.x) & (lanes - 1);
  const int group_mask = (1 << p.groups_per_block_log2) - 1;
  const int count = (end_sample - first_sample) << p.groups_per_block_log2;
  const int step = kSampleThreads >> p.lanes_per_sample_log2;
  for (int start = 0; start < count; start += step) {
    const int id = start + (int(threadIdx.x) >> p.lanes_per_sample_log2);
    const int sample = first_sample + (id >> p.groups_per_block_log2), g = first_group + (id & group_mask);
    const bool exists = id < count && g < p.groups;
    const int query = exists ? int(p.by_points.quotient(uint32_t(sample))) : 0;
    const int point = exists ? sample - query * p.points : 0;
    const int64_t number = sample_number<kPlanar>(p, b, exists ? g : 0, query, p.points, point);
    A gx = 0, gy = 0, gw = 0;
    if (exists) {
      A dx, dy, x, y;
      read_pair<A>(p.coord, number, p.coord_type, dx, dy);
      place.place(query, point, dx, dy, x, y);
      const Tap<A> t = tap_at(x, y, p.rows, p.cols);
      if (t.inside) {
        A dot[4] = {0, 0, 0, 0};
        for (int v = sub; v < p.vectors; v += lanes) {
          Corners<T, V, kPlanar> corner;
          corner.load(p.value, p.type, Channels<T, V, kPlanar>(b, g, v, p.groups, p.width, p.rows * p.cols), t, p.rows, p.cols);
          A up[V];
          Channels<T, V, kPlanar>(b, g, v, p.groups, p.width, p.queries).load(p.grad, p.type, query, up);
#pragma unroll
          for (int j = 0; j < 4; ++j)
#pragma unroll
            for (int i = 0; i < V; ++i) dot[j] += up[i] * corner.get(j, i);
        }
        const A m = p.weight ? read_any<A>(p.weight, number, p.weight_type) : A(1);
        const A ux = A(1) - t.fx, uy = A(1) - t.fy;
        gx = (uy * (dot[1] - dot[0]) + t.fy * (dot[3] - dot[2])) * (m * place.slope_x());
        gy = (ux * (dot[2] - dot[0]) + t.fx * (dot[3] - dot[1])) * (m * place.slope_y());
        gw = uy * (ux * dot[0] + t.fx * dot[1]) + t.fy * (ux * dot[2] + t.fx * dot[3]);
      }
    }
    for (int o = lanes >> 1; o > 0; o >>= 1) {
      gx += __shfl_xor_sync(0xffffffffu, gx, o);
      gy += __shfl_xor_sync(0xffffffffu, gy, o);
      gw += __shfl_xor_sync(0xffffffffu, gw, o);
    }
    if (exists && sub == 0) {
      write_pair<A>(p.grad_coord, number, p.coord_type, gx, gy);
      if (p.grad_weight) write_any<A>(p.grad_weight, number, p.weight_type, gw);
    }
  }
}

template <bool kPlanar, class T, class Place>
OPENREC_FN Tap<acc_t<T>> tap_of(const SampleArgs<T>& p, const Place& place, int64_t b, int g, int sample,
                                int* query_out = nullptr, acc_t<T>* weight_out = nullptr) {
  using A = acc_t<T>;
  const int query = int(p.by_points.quotient(uint32_t(sample))), point = sample - query * p.points;
  const int64_t number = sample_number<kPlanar>(p, b, g, query, p.points, point);
  A dx, dy, x, y;
  read_pair<A>(p.coord, number, p.coord_type, dx, dy);
  place.place(query, point, dx, dy, x, y);
  if (query_out) {
    *query_out = query;
    *weight_out = p.weight ? read_any<A>(p.weight, number, p.weight_type) : A(1);
  }
  return tap_at(x, y, p.rows, p.cols);
}

// counts[0 .. n) -> their exclusive running sum, counts[n] -> the total. `sums` holds one number per warp.
OPENREC_FN void exclusive_scan(int* counts, int n, int* sums) {
  const int per = (n + kSampleThreads - 1) / kSampleThreads;
  const int begin = int(threadIdx.x) * per, end = begin + per < n ? begin + per : n;
  const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
  int mine = 0;
  for (int i = begin; i < end; ++i) mine += counts[i];
  int upto = mine;
#pragma unroll
  for (int o = 1; o < 32; o <<= 1) {
    int other = __shfl_up_sync(0xffffffffu, upto, o);
    if (lane >= o) upto += other;
  }
  if (lane == 31) sums[warp] = upto;
  __syncthreads();
  int before = upto - mine;
  for (int w = 0; w < warp; ++w) before += sums[w];
  for (int i = begin; i < end; ++i) {
    int c = counts[i];
    counts[i] = before;
    before += c;
  }
  if (threadIdx.x == kSampleThreads - 1) counts[n] = before;
}

// Blocks per multiprocessor to leave registers for.
template <class T, bool kPlanar>
constexpr int kSampleBackwardBlocks = sizeof(acc_t<T>) == 8 || std::is_same<T, any_t>::value ? 2
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
                                      : sizeof(T) == 2 && !kPlanar                          ? 4
#endif
                                                                                            : 3;

// One block: some groups of one map, one tile of its pixels. Segments of samples one after the other.
template <class T, int V, bool kPlanar, class Place>
__global__ void __launch_bounds__(kSampleThreads, kSampleBackwardBlocks<T, kPlanar>) sample_backward(const SampleArgs<T> p, const Place place) {
  using A = acc_t<T>;
  constexpr int kPer = kSamplesPerThread<T>, kCapacity = kPer * kSampleThreads;
  OPENREC_DYNAMIC_SHARED(shared);
  Entry<A>* const entries = reinterpret_cast<Entry<A>*>(shared);
  int* const unsorted = reinterpret_cast<int*>(entries + kCapacity);
  int* const sums = unsorted + kCapacity;
  int* const start = sums + kSampleThreads / 32;

  const int group_log2 = p.groups_per_block_log2, block_groups = 1 << group_log2;
  const int tile = int(blockIdx.x) % p.tiles, first_group = int(blockIdx.x) / p.tiles * block_groups;
  const int tile_y = tile / p.tiles_x * p.tile_rows, tile_x = tile % p.tiles_x * p.tile_cols;
  const int cell_rows = p.tile_rows + 1, cell_cols = p.tile_cols + 1;
  const int bins = block_groups * cell_rows * cell_cols;
  const int all = p.queries * p.points, per_segment = kCapacity >> group_log2;
  const int block_vectors = block_groups * p.vectors, tile_pixels = p.tile_rows * p.tile_cols;

  for (int64_t b = blockIdx.y; b < p.batch; b += gridDim.y) {
    for (int segment = 0; segment < p.segments; ++segment) {
      const int first = segment * per_segment;
      const int end = all - first < per_segment ? all : first + per_segment;
      if (segment % p.tiles == tile) position_gradients<T, V, kPlanar>(p, place, b, first_group, first, end);

      // Sort this segment's samples by cell.
      for (int i = int(threadIdx.x); i <= bins; i += kSampleThreads) start[i] = 0;
      __syncthreads();
      int bin[kPer], slot[kPer];
#pragma unroll
      for (int j = 0; j < kPer; ++j) {
        const int id = j * kSampleThreads + int(threadIdx.x);
        const int sample = first + (id >> group_log2), local = id & (block_groups - 1), g = first_group + local;
        bin[j] = -1;
        if (sample < end && g < p.groups) {
          const Tap<A> t = tap_of<kPlanar>(p, place, b, g, sample);
          const int cy = t.y0 + 1 - tile_y, cx = t.x0 + 1 - tile_x;
          if (t.inside && cy >= 0 && cy < cell_rows && cx >= 0 && cx < cell_cols) {
            bin[j] = (local * cell_rows + cy) * cell_cols + cx;
            slot[j] = atomicAdd(&start[bin[j]], 1);
          }
        }
      }
      __syncthreads();
      exclusive_scan(start, bins, sums);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPer; ++j)
        if (bin[j] >= 0) unsorted[start[bin[j]] + slot[j]] = j * kSampleThreads + int(threadIdx.x);
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kPer; ++j) {  // the arrival order above is by chance: order each cell's samples by number
        if (bin[j] >= 0) {
          const int from = start[bin[j]], to = start[bin[j] + 1], id = j * kSampleThreads + int(threadIdx.x);
          int rank = from;
          for (int i = from; i < to; ++i) rank += unsorted[i] < id;
          const int sample = first + (id >> group_log2), g = first_group + (id & (block_groups - 1));
          Entry<A> entry;
          const Tap<A> t = tap_of<kPlanar>(p, place, b, g, sample, &entry.query, &entry.weight);
          entry.fx = t.fx, entry.fy = t.fy;
          entries[rank] = entry;
        }
      }
      __syncthreads();

      // Each pixel and channel vector of the tile collects.
      for (int item = int(threadIdx.x); item < tile_pixels * block_vectors; item += kSampleThreads) {
        int pixel, local, v;
        if (kPlanar) {
          v = int(p.by_tile_pixels.quotient(uint32_t(item)));
          pixel = item - v * tile_pixels;
          local = 0;
        } else {
          pixel = int(p.by_block_vectors.quotient(uint32_t(item)));
          v = item - pixel * block_vectors;
          local = int(p.by_vectors.quotient(uint32_t(v)));
          v -= local * p.vectors;
        }
        const int ly = int(p.by_tile_cols.quotient(uint32_t(pixel))), lx = pixel - ly * p.tile_cols;
        const int y = tile_y + ly, x = tile_x + lx, g = first_group + local;
        if (y >= p.rows || x >= p.cols || g >= p.groups) continue;
        const Channels<T, V, kPlanar> to(b, g, v, p.groups, p.width, p.rows * p.cols);
        const Channels<T, V, kPlanar> from(b, g, v, p.groups, p.width, p.queries);
        const int at = y * p.cols + x;
        A sum[V];
        if (segment == 0) {
#pragma unroll
          for (int i = 0; i < V; ++i) sum[i] = A(0);
        } else {
          to.load(p.partial, p.type, at, sum);
        }
#pragma unroll
        for (int below = 0; below < 2; ++below) {  // cells that end at this pixel, then cells that begin at it
          const int cell = (local * cell_rows + ly + below) * cell_cols + lx;
          const int middle = start[cell + 1], stop = start[cell + 2];
          for (int e = start[cell]; e < stop; ++e) {
            const Entry<A> s = entries[e];
            const A wy = below ? A(1) - s.fy : s.fy, wx = e < middle ? s.fx : A(1) - s.fx;
            const A w = s.weight * wy * wx;
            A up[V];
            from.load(p.grad, p.type, s.query, up);
#pragma unroll
            for (int i = 0; i < V; ++i) sum[i] += w * up[i];
          }
        }
        if (segment + 1 == p.segments)
          to.store(p.grad_value, p.type, at, sum);
        else
          to.store(p.partial, p.type, at, sum);
      }
      __syncthreads();
    }
  }
}

// --------------------------------------------------------------------------------------------------------- launch side
inline int floor_log2(int64_t n) {
  int r = 0;
  while ((n >> (r + 1)) > 0) ++r;
  return r;
}

// Fills in how a backward launch divides its work.
template <class T, bool kPlanar>
void plan_backward(SampleArgs<T>& p) {
  const int64_t capacity = int64_t(kSamplesPerThread<T>) * kSampleThreads, all = int64_t(p.queries) * p.points;
  const int64_t cells = (int64_t(p.rows) + 1) * (p.cols + 1);
  int log2 = 0;
  if (!kPlanar)  // neighbouring groups together, up to 256 bytes of a pixel, while one segment holds them all
    while ((2 << log2) <= p.groups && (all << (log2 + 1)) <= capacity && (cells << (log2 + 1)) <= kMaxBins &&
           (int64_t(p.width) * sizeof(T) << (log2 + 1)) <= 256)
      ++log2;
  p.groups_per_block_log2 = log2;
  if ((cells << log2) <= kMaxBins) {
    p.tile_rows = p.rows, p.tile_cols = p.cols;
  } else if (p.cols + 1 <= kMaxBins / 2) {
    p.tile_cols = p.cols, p.tile_rows = kMaxBins / (p.cols + 1) - 1;
  } else {
    p.tile_cols = kMaxBins / 2 - 1, p.tile_rows = 1;
  }
  p.tiles_x = int(ceil_div(p.cols, p.tile_cols));
  p.tiles = p.tiles_x * int(ceil_div(p.rows, p.tile_rows));
  p.segments = int(ceil_div(all << log2, capacity));
  const int share = floor_log2(p.vectors);
  p.lanes_per_sample_log2 = kPlanar ? 0 : (share < 5 ? share : 5);
  p.by_block_vectors = FastDiv(uint32_t(p.vectors << log2));
  p.by_tile_cols = FastDiv(uint32_t(p.tile_cols));
  p.by_tile_pixels = FastDiv(uint32_t(p.tile_rows * p.tile_cols));
}

inline unsigned grid_y(int64_t maps) { return unsigned(maps < 65535 ? maps : 65535); }

template <class T, int V, bool kPlanar, class Place>
int launch_sample_forward(SampleArgs<T> p, const Place& place, void* stream) {
  p.vectors = int(ceil_div(p.width, V));
  p.by_vectors = FastDiv(uint32_t(p.vectors));
  p.by_points = FastDiv(uint32_t(p.points));
  dim3 block, grid;
  if (kPlanar) {
    block = dim3(128);
    grid = dim3(unsigned(ceil_div(p.queries, 128)), grid_y(p.batch * p.groups), grid_y(p.vectors));
  } else {
    int x = p.vectors * p.groups < kSampleThreads ? p.vectors * p.groups : kSampleThreads, y = kSampleThreads / x;
    block = dim3(unsigned(x), unsigned(y));
    grid = dim3(unsigned(ceil_div(p.queries, y)), grid_y(p.batch));
  }
  auto* kernel = &sample_forward<T, V, kPlanar, false, Place>;
  if constexpr (V > 1 && !kPlanar)
    if (p.points == 1 && p.weight == nullptr) kernel = &sample_forward<T, V, kPlanar, true, Place>;
  OPENREC_LAUNCH(kernel, grid, block, 0, stream, p, place);
  return int(cudaGetLastError());
}

template <class T, int V, bool kPlanar, class Place>
int launch_sample_backward(SampleArgs<T> p, const Place& place, void* stream) {
  p.vectors = int(ceil_div(p.width, V));
  p.by_vectors = FastDiv(uint32_t(p.vectors));
  p.by_points = FastDiv(uint32_t(p.points));
  plan_backward<T, kPlanar>(p);
  const int block_groups = 1 << p.groups_per_block_log2, capacity = kSamplesPerThread<T> * kSampleThreads;
  const int bins = block_groups * (p.tile_rows + 1) * (p.tile_cols + 1);
  const size_t shared = capacity * (sizeof(Entry<acc_t<T>>) + 4) + (kSampleThreads / 32 + bins + 2) * 4;
  const dim3 grid(unsigned(p.tiles * ceil_div(p.groups, block_groups)), grid_y(p.batch));
  auto* kernel = &sample_backward<T, V, kPlanar, Place>;
  OPENREC_LAUNCH(kernel, grid, dim3(kSampleThreads), shared, stream, p, place);
  return int(cudaGetLastError());
}

// True when the backward pass of this problem needs running sums of its own (bytes of arithmetic type per input value).
inline bool needs_partial(bool narrow, int64_t queries, int64_t points) {
  return narrow && queries * points > int64_t(kSamplesPerThread<half_t>) * kSampleThreads;
}

}  // namespace openrec::cuda
