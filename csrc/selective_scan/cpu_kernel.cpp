// Selective scan on CPU: lanes are channels, so the recurrence runs down the time axis without a transposition.
// Idea: Gu & Dao, "Mamba" (state-spaces/mamba, Apache-2.0). Compiled once per instruction set.
//
//   h_t = exp(dt_t A) h_{t-1} + dt_t u_t B_t,   y_t = C_t . h_t + D u_t,   out_t = y_t silu(z_t)
//
// A task is one block of channels of one image. The backward pass saves nothing: it runs the states of a stretch of
// time again, keeping them in cache, and then sweeps back over it.
#include "../cpu/tile.h"

namespace openrec {
namespace OPENREC_ISA {
namespace {

constexpr int64_t kStepsAhead = 8;          // of prefetching
constexpr int64_t kStretch = 128;           // steps per block where tensors are not read in place
constexpr int64_t kPiece = 32;               // steps whose gradients of A, D and bias are summed on their own
constexpr int64_t kSavedBytes = 512 << 10;  // states that a backward stretch may keep: half of a usual L2 cache

// Vectors per block. float64 is there for checking gradients: one will do, and compiles in half the time.
template <class T>
constexpr int kMost = sizeof(T) == 4 ? 4 : 1;

// The forward pass has registers to spare for twice as many states where there are 32; rows are then read in longer pieces.
#if defined(__AVX512F__)
template <class T>
constexpr int kMostForward = 2 * kMost<T>;
#else
template <class T>
constexpr int kMostForward = kMost<T>;
#endif

// How the channels of a group are cut into blocks of `most` vectors, or of one where that wastes fewer lanes.
template <class T>
struct Cut {
  int64_t per_group, blocks, width;
  int vectors;

  explicit Cut(const ScanArgs& a, int most = kMost<T>) {
    per_group = a.dim / (a.groups ? a.groups : 1);
    const int64_t wide = most * kLanes<T>, narrow = kLanes<T>;
    const int64_t wide_blocks = (per_group + wide - 1) / wide, narrow_blocks = (per_group + narrow - 1) / narrow;
    const bool one = narrow_blocks * narrow < wide_blocks * wide;
    vectors = one ? 1 : most, width = one ? narrow : wide, blocks = one ? narrow_blocks : wide_blocks;
  }
  int64_t tasks(const ScanArgs& a) const { return a.batch * a.groups * blocks; }
};

template <class T>
Cut<T> forward_cut(const ScanArgs& a) {
  // Where time is contiguous, rows come from scratch memory, and narrow blocks keep it in the first-level cache.
  const bool fits = a.groups > 0 && a.u.channel == 1 && a.dim / a.groups % (kMostForward<T> * kLanes<T>) == 0;
  return Cut<T>(a, fits ? kMostForward<T> : kMost<T>);
}

template <class T>
int64_t forward_tasks(const ScanArgs& a) {
  return forward_cut<T>(a).tasks(a);
}
template <class T>
int64_t backward_tasks(const ScanArgs& a) {
  return Cut<T>(a).tasks(a);
}

// B or C of one image and group, in the order in which the scan runs.
template <class T>
struct Coefficients {
  const T* p;
  int64_t step, state;

  Coefficients(const ScanArgs& a, const Maps& m, int64_t image, int64_t group) : step(m.step), state(m.state) {
    p = (const T*)m.data + image * m.batch + group * m.group;
    if (a.reverse) p += (a.length - 1) * m.step, step = -m.step;
  }
  T at(int64_t t, int64_t n) const { return p[t * step + n * state]; }
};

// One task: its channels, and their parameters padded to whole vectors.
template <class T, int NV>
struct Task {
  static constexpr int64_t W = NV * kLanes<T>;
  int64_t image, group, block, channel, count;
  T *rate, *a, *d, *bias, *h;  // rate and a: [N][W], d and bias: [W], h: [N][W]

  static int64_t elements(const ScanArgs& a) { return W * (3 * a.state + 2); }

  Task(const ScanArgs& args, const Cut<T>& cut, int64_t task, T*& scratch) {
    block = task % cut.blocks;
    group = task / cut.blocks % args.groups;
    image = task / cut.blocks / args.groups;
    channel = group * cut.per_group + block * W;
    count = cut.per_group - block * W < W ? cut.per_group - block * W : W;
    rate = scratch, a = rate + args.state * W, h = a + args.state * W, d = h + args.state * W, bias = d + W;
    scratch = bias + W;
    for (int64_t i = 0; i < W; ++i) {
      const bool real = i < count;
      d[i] = real && args.D ? ((const T*)args.D)[channel + i] : T(0);
      bias[i] = real && args.bias ? ((const T*)args.bias)[channel + i] : T(0);
      for (int64_t n = 0; n < args.state; ++n) {
        a[n * W + i] = real ? ((const T*)args.A)[(channel + i) * args.state + n] : T(0);
        rate[n * W + i] = decay_rate(a[n * W + i]);
        h[n * W + i] = 0;
      }
    }
  }
  Block at(const ScanArgs& args, int64_t step, int64_t steps) const {
    return {image, channel, count, W, step, steps, args.length, args.reverse};
  }
};

// ------------------------------------------------------------------------------------------------------------ forward

template <class T, int NV, bool One>
OPENREC_INLINE void forward_steps(const Task<T, NV>& task, bool soft, int64_t states, int64_t steps, Rows<T> u,
                                  Rows<T> delta, Rows<T> z, Rows<T> out, Coefficients<T> B, Coefficients<T> C,
                                  int64_t first) {
  constexpr int L = kLanes<T>, Q = NV < kMost<T> ? NV : kMost<T>;  // vectors that are worked on together
  Vec<T> h[NV], dt[Q], x[Q], y[Q];
  if (One) OPENREC_UNROLL for (int v = 0; v < NV; ++v) h[v] = load(task.h + v * L);
  for (int64_t i = 0; i < steps; ++i) {
    OPENREC_UNROLL for (int q = 0; q < NV; q += Q) {
      const T *pu = u.at(i) + q * L, *pd = delta.at(i) + q * L;
      OPENREC_UNROLL for (int v = 0; v < Q; ++v) {
        dt[v] = load(pd + v * L) + load(task.bias + (q + v) * L);
        __builtin_prefetch(pu + kStepsAhead * u.stride + v * L);  // rows of a block are pieces of rows in memory
        __builtin_prefetch(pd + kStepsAhead * delta.stride + v * L);
      }
      if (soft) OPENREC_UNROLL for (int v = 0; v < Q; ++v) dt[v] = softplus(dt[v]);
      OPENREC_UNROLL for (int v = 0; v < Q; ++v) {
        x[v] = load(pu + v * L);
        y[v] = load(task.d + (q + v) * L) * x[v];
        x[v] = x[v] * dt[v];
      }
      if (One) {
        const T b = B.at(first + i, 0), c = C.at(first + i, 0);
        OPENREC_UNROLL for (int v = 0; v < Q; ++v) {
          h[q + v] = decay(dt[v] * load(task.rate + (q + v) * L)) * h[q + v] + x[v] * b;
          y[v] = y[v] + h[q + v] * c;
        }
      } else {
        for (int64_t n = 0; n < states; ++n) {
          const T b = B.at(first + i, n), c = C.at(first + i, n);
          T* const ph = task.h + n * task.W + q * L;
          const T* const rate = task.rate + n * task.W + q * L;
          OPENREC_UNROLL for (int v = 0; v < Q; ++v) {
            const Vec<T> hn = decay(dt[v] * load(rate + v * L)) * load(ph + v * L) + x[v] * b;
            store(ph + v * L, hn);
            y[v] = y[v] + hn * c;
          }
        }
      }
      if (z.p) OPENREC_UNROLL for (int v = 0; v < Q; ++v) {
          const Vec<T> gate = load(z.at(i) + (q + v) * L);
          y[v] = y[v] * (gate * sigmoid(gate));
        }
      OPENREC_UNROLL for (int v = 0; v < Q; ++v) store(out.at(i) + (q + v) * L, y[v]);
    }
  }
  if (One) OPENREC_UNROLL for (int v = 0; v < NV; ++v) store(task.h + v * L, h[v]);
}

template <class T, int NV>
void forward_task(const ScanArgs& a, const Cut<T>& cut, int64_t index, T* scratch) {
  Task<T, NV> task(a, cut, index, scratch);
  constexpr int64_t W = Task<T, NV>::W;
  const Coefficients<T> B(a, a.B, task.image, task.group), C(a, a.C, task.image, task.group);
  const Block all = task.at(a, 0, a.length);
  const bool direct = in_place<T>(all, a.u) && in_place<T>(all, a.delta) && in_place<T>(all, a.out) &&
                      (!a.z.data || in_place<T>(all, a.z));
  const int64_t stretch = direct ? a.length : kStretch;
  for (int64_t t = 0; t < a.length; t += stretch) {
    const Block k = task.at(a, t, a.length - t < stretch ? a.length - t : stretch);
    const Rows<T> u = read_rows(k, a.u, scratch), delta = read_rows(k, a.delta, scratch + kStretch * W);
    const Rows<T> z = read_rows(k, a.z, scratch + 2 * kStretch * W);
    T* const result = scratch + 3 * kStretch * W;
    const Rows<T> out = rows_of(k, a.out, result);
    if (a.state == 1)
      forward_steps<T, NV, true>(task, a.softplus, 1, k.steps, u, delta, z, out, B, C, t);
    else
      forward_steps<T, NV, false>(task, a.softplus, a.state, k.steps, u, delta, z, out, B, C, t);
    write_rows(k, a.out, result);
  }
  if (a.last)
    for (int64_t i = 0; i < task.count; ++i)
      for (int64_t n = 0; n < a.state; ++n)
        ((T*)a.last)[(task.image * a.dim + task.channel + i) * a.state + n] = task.h[n * W + i];
}

template <class T>
size_t forward_scratch(const ScanArgs& a) {
  const int64_t width = forward_cut<T>(a).width;
  return sizeof(T) * size_t(width * (3 * a.state + 2 + 4 * kStretch));
}

template <class T>
void forward(const ScanArgs& a, int64_t begin, int64_t end, void* scratch) {
  const Cut<T> cut = forward_cut<T>(a);
  for (int64_t i = begin; i < end; ++i) {
    if (cut.vectors == 1)
      forward_task<T, 1>(a, cut, i, (T*)scratch);
    else if (cut.vectors == kMost<T>)
      forward_task<T, kMost<T>>(a, cut, i, (T*)scratch);
    else
      forward_task<T, kMostForward<T>>(a, cut, i, (T*)scratch);
  }
}

// ----------------------------------------------------------------------------------------------------------- backward

// What the sweep back needs of one step: dt and its slope [W], decay factors and the states before the step [N][W].
template <class T>
int64_t saved_per_step(const ScanArgs& a, int64_t width) {
  return (2 * a.state + 2) * width;
}
template <class T>
int64_t backward_stretch(const ScanArgs& a, int64_t width) {
  const int64_t fit = kSavedBytes / int64_t(sizeof(T)) / saved_per_step<T>(a, width);
  const int64_t steps = fit < 8 ? 8 : fit;
  return a.length < steps ? a.length : steps;
}

// Runs the states on over a stretch and, if `saved` is given, keeps what the sweep needs.
template <class T, int NV>
OPENREC_INLINE void advance(const Task<T, NV>& task, bool soft, int64_t states, int64_t steps, Rows<T> u, Rows<T> delta,
                            Coefficients<T> B, int64_t first, T* saved) {
  constexpr int L = kLanes<T>;
  constexpr int64_t W = Task<T, NV>::W;
  for (int64_t i = 0; i < steps; ++i) {
    const T *pu = u.at(i), *pd = delta.at(i);
    T* const row = saved ? saved + i * (2 * states + 2) * W : nullptr;
    OPENREC_UNROLL for (int v = 0; v < NV; ++v) {
      Vec<T> dt = load(pd + v * L) + load(task.bias + v * L), slope = {};
      __builtin_prefetch(pu + kStepsAhead * u.stride + v * L);
      __builtin_prefetch(pd + kStepsAhead * delta.stride + v * L);
      if (soft) dt = softplus(dt, slope);
      const Vec<T> dx = dt * load(pu + v * L);
      if (row) store(row + v * L, dt), store(row + W + v * L, slope);
      for (int64_t n = 0; n < states; ++n) {
        T* ph = task.h + n * W + v * L;
        const Vec<T> h = load(ph), a = decay(dt * load(task.rate + n * W + v * L));
        if (row) store(row + (2 + 2 * n) * W + v * L, a), store(row + (3 + 2 * n) * W + v * L, h);
        store(ph, a * h + dx * B.at(first + i, n));
      }
    }
  }
}

// Sums over time of one task, and the gradient that arrives from the step after.
template <class T, int NV>
struct Sums {
  T *carry, *da, *total_da, *dd, *dbias;  // [N][W], [N][W], [N][W], [W], [W]

  static int64_t elements(const ScanArgs& a) { return Task<T, NV>::W * (3 * a.state + 2); }
  Sums(const ScanArgs& a, const Task<T, NV>& task, T*& scratch) {
    constexpr int64_t W = Task<T, NV>::W;
    carry = scratch, da = carry + a.state * W, total_da = da + a.state * W;
    dd = total_da + a.state * W, dbias = dd + W;
    memset(scratch, 0, sizeof(T) * size_t(elements(a)));
    scratch += elements(a);
    if (a.grad_last)
      for (int64_t i = 0; i < task.count; ++i)
        for (int64_t n = 0; n < a.state; ++n)
          carry[n * W + i] = ((const T*)a.grad_last)[(task.image * a.dim + task.channel + i) * a.state + n];
  }
};

template <class T>
struct Streams {
  Rows<T> u, z, grad, du, ddelta, dz;

  Streams from(int64_t i) const {
    Streams s = *this;
    s.u.p += i * u.stride, s.z.p += i * z.stride, s.grad.p += i * grad.stride;
    s.du.p += i * du.stride, s.ddelta.p += i * ddelta.stride, s.dz.p += i * dz.stride;
    return s;
  }
};

template <class T, int NV, bool One>
OPENREC_INLINE void sweep(const Task<T, NV>& task, const Sums<T, NV>& s, bool soft, int64_t many, int64_t steps,
                          const Streams<T>& r, Coefficients<T> B, Coefficients<T> C, int64_t first, const T* saved,
                          T* dB, T* dC, int64_t map_step) {
  constexpr int L = kLanes<T>;
  constexpr int64_t W = Task<T, NV>::W;
  const int64_t states = One ? 1 : many;
  Vec<T> carry[NV], da[NV] = {}, dd[NV] = {}, dbias[NV] = {};
  OPENREC_UNROLL for (int v = 0; v < NV; ++v) carry[v] = load(s.carry + v * L);
  for (int64_t i = steps - 1; i >= 0; --i) {
    const T* const row = saved + i * (2 * states + 2) * W;
    T *const gb = dB + i * map_step, *const gc = dC + i * map_step;
    Vec<T> sum_b = {}, sum_c = {};
    OPENREC_UNROLL for (int v = 0; v < NV; ++v) {
      const Vec<T> x = load(r.u.at(i) + v * L), dt = load(row + v * L), direct = load(task.d + v * L), dx = dt * x;
      Vec<T> g = load(r.grad.at(i) + v * L);
      __builtin_prefetch(r.grad.at(i - kStepsAhead) + v * L);
      if (r.z.p) {  // through the gate first: out = y * z * sigmoid(z)
        Vec<T> y = direct * x;
        for (int64_t n = 0; n < states; ++n) {
          const Vec<T> a = load(row + (2 + 2 * n) * W + v * L), before = load(row + (3 + 2 * n) * W + v * L);
          y = y + (a * before + dx * B.at(first + i, n)) * C.at(first + i, n);
        }
        const Vec<T> gate = load(r.z.at(i) + v * L), open = sigmoid(gate);
        store(r.dz.at(i) + v * L, g * y * (open * (T(1) + gate * (T(1) - open))));
        g = g * (gate * open);
      }
      Vec<T> d_input = {}, d_step = {};  // gradients of dt * u and, through the decay, of dt
      for (int64_t n = 0; n < states; ++n) {
        const T b = B.at(first + i, n), c = C.at(first + i, n);
        const Vec<T> a = load(row + (2 + 2 * n) * W + v * L), before = load(row + (3 + 2 * n) * W + v * L);
        const Vec<T> h = a * before + dx * b;
        Vec<T>& back = carry[v];
        if (!One) back = load(s.carry + n * W + v * L);
        const Vec<T> dh = g * c + back;
        back = a * dh;
        const Vec<T> d_exponent = back * before;
        d_input = d_input + dh * b;
        d_step = d_step + d_exponent * load(task.a + n * W + v * L);
        if (One) {
          da[v] = da[v] + d_exponent * dt;
          sum_b = sum_b + dh * dx, sum_c = sum_c + g * h;
        } else {
          store(s.carry + n * W + v * L, back);
          store(s.da + n * W + v * L, load(s.da + n * W + v * L) + d_exponent * dt);
          const T nb = sum(dh * dx), nc = sum(g * h);
          gb[n] = v ? gb[n] + nb : nb, gc[n] = v ? gc[n] + nc : nc;
        }
      }
      store(r.du.at(i) + v * L, g * direct + d_input * dt);
      Vec<T> d_delta = d_input * x + d_step;
      if (soft) d_delta = d_delta * load(row + W + v * L);
      store(r.ddelta.at(i) + v * L, d_delta);
      dd[v] = dd[v] + g * x, dbias[v] = dbias[v] + d_delta;
    }
    if (One) gb[0] = sum(sum_b), gc[0] = sum(sum_c);
  }
  OPENREC_UNROLL for (int v = 0; v < NV; ++v) {
    if (One) store(s.carry + v * L, carry[v]), store(s.da + v * L, da[v]);
    store(s.dd + v * L, load(s.dd + v * L) + dd[v]);
    store(s.dbias + v * L, load(s.dbias + v * L) + dbias[v]);
  }
  for (int64_t i = 0; i < states * W; i += L) {
    store(s.total_da + i, load(s.total_da + i) + load(s.da + i));
    store(s.da + i, Vec<T>{});
  }
}

template <class T, int NV>
void backward_task(const ScanArgs& a, const Cut<T>& cut, int64_t index, T* scratch) {
  constexpr int64_t W = Task<T, NV>::W;
  Task<T, NV> task(a, cut, index, scratch);
  Sums<T, NV> sums(a, task, scratch);
  const Coefficients<T> B(a, a.B, task.image, task.group), C(a, a.C, task.image, task.group);
  const int64_t stretch = backward_stretch<T>(a, W), stretches = (a.length + stretch - 1) / stretch;
  T* const starts = scratch;  // [stretches][N][W]: states at the start of each stretch
  T* const saved = starts + stretches * a.state * W;
  T* const streams = saved + stretch * saved_per_step<T>(a, W);
  const int64_t stream = stretch * W;
  const size_t state_bytes = sizeof(T) * size_t(a.state * W);
  const int64_t map_row = a.groups * a.state, map_step = a.reverse ? -map_row : map_row;

  for (int64_t s = 0; s + 1 < stretches; ++s) {
    const Block k = task.at(a, s * stretch, stretch);
    memcpy(starts + s * a.state * W, task.h, state_bytes);
    const Rows<T> u = read_rows(k, a.u, streams), delta = read_rows(k, a.delta, streams + stream);
    advance<T, NV>(task, a.softplus, a.state, k.steps, u, delta, B, k.step, nullptr);
  }
  for (int64_t s = stretches - 1; s >= 0; --s) {
    const int64_t first = s * stretch;
    const Block k = task.at(a, first, a.length - first < stretch ? a.length - first : stretch);
    if (s + 1 < stretches) memcpy(task.h, starts + s * a.state * W, state_bytes);
    Streams<T> r;
    r.u = read_rows(k, a.u, streams);
    const Rows<T> delta = read_rows(k, a.delta, streams + stream);
    r.grad = read_rows(k, a.grad, streams + 2 * stream), r.z = read_rows(k, a.z, streams + 3 * stream);
    T *const du = streams + 4 * stream, *const ddelta = streams + 5 * stream, *const dz = streams + 6 * stream;
    r.du = rows_of(k, a.du, du), r.ddelta = rows_of(k, a.ddelta, ddelta), r.dz = rows_of(k, a.dz, dz);
    const int64_t at = ((task.block * a.batch + task.image) * a.length + k.physical(0)) * map_row + task.group * a.state;
    T *const dB = (T*)a.dB + at, *const dC = (T*)a.dC + at;
    advance<T, NV>(task, a.softplus, a.state, k.steps, r.u, delta, B, first, saved);
    // In pieces, each with sums of its own: a sum of a few sums loses fewer digits than one long one.
    for (int64_t end = k.steps; end > 0; end -= kPiece) {
      const int64_t begin = end > kPiece ? end - kPiece : 0;
      const Streams<T> piece = r.from(begin);
      const T* const kept = saved + begin * saved_per_step<T>(a, W);
      if (a.state == 1)
        sweep<T, NV, true>(task, sums, a.softplus, 1, end - begin, piece, B, C, first + begin, kept,
                           dB + begin * map_step, dC + begin * map_step, map_step);
      else
        sweep<T, NV, false>(task, sums, a.softplus, a.state, end - begin, piece, B, C, first + begin, kept,
                            dB + begin * map_step, dC + begin * map_step, map_step);
    }
    write_rows(k, a.du, du), write_rows(k, a.ddelta, ddelta), write_rows(k, a.dz, dz);
  }
  for (int64_t i = 0; i < task.count; ++i) {
    const int64_t c = task.image * a.dim + task.channel + i;
    for (int64_t n = 0; n < a.state; ++n) ((T*)a.dA)[c * a.state + n] = sums.total_da[n * W + i];
    ((T*)a.dD)[c] = sums.dd[i];
    ((T*)a.dbias)[c] = sums.dbias[i];
  }
}

template <class T>
size_t backward_scratch(const ScanArgs& a) {
  const int64_t width = Cut<T>(a).width, stretch = backward_stretch<T>(a, width);
  if (!stretch) return 0;
  const int64_t stretches = (a.length + stretch - 1) / stretch;
  const int64_t fixed = width * (6 * a.state + 4) + stretches * a.state * width;
  return sizeof(T) * size_t(fixed + stretch * (saved_per_step<T>(a, width) + 7 * width));
}

template <class T>
void backward(const ScanArgs& a, int64_t begin, int64_t end, void* scratch) {
  const Cut<T> cut(a);
  for (int64_t i = begin; i < end; ++i)
    cut.vectors == 1 ? backward_task<T, 1>(a, cut, i, (T*)scratch) : backward_task<T, kMost<T>>(a, cut, i, (T*)scratch);
}

}  // namespace

int64_t scan_blocks(const ScanArgs& a, bool is_double) {
  return is_double ? Cut<double>(a).blocks : Cut<float>(a).blocks;
}

template <class T>
static Pair<ScanArgs> pair() {
  return {{forward_tasks<T>, forward_scratch<T>, forward<T>},
          {backward_tasks<T>, backward_scratch<T>, backward<T>}};
}
Pair<ScanArgs> scan_f32() { return pair<float>(); }
Pair<ScanArgs> scan_f64() { return pair<double>(); }

}  // namespace OPENREC_ISA
}  // namespace openrec
