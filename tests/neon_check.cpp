// The CPU kernels of one instruction set against each other: float32 must agree with float64 on the same numbers.
// Built for a foreign processor and run in an emulator by test_neon.py; needs nothing of torch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cpu/args.h"

namespace openrec {
namespace OPENREC_ISA {
Kernels kernels();
}
}  // namespace openrec

using namespace openrec;

static double uniform() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }
static int failures = 0;

template <class T>
struct Array {
  std::vector<T> v;
  Array() = default;
  explicit Array(size_t n) : v(n) {}
  T* p() { return v.data(); }
};

// The same random numbers, exact in float32, in both types.
struct Both {
  Array<float> f;
  Array<double> d;
  explicit Both(size_t n, double scale = 1, double shift = 0) : f(n), d(n) {
    for (size_t i = 0; i < n; ++i) d.v[i] = f.v[i] = float(uniform() * scale + shift);
  }
  template <class T>
  T* at() {
    if constexpr (sizeof(T) == 4)
      return (T*)f.p();
    else
      return (T*)d.p();
  }
};

template <class Args>
static void run(const Kernel<Args>& k, const Args& a) {
  void* scratch = std::aligned_alloc(64, (k.scratch(a) + 127) / 64 * 64);
  k.run(a, 0, k.tasks(a), scratch);
  std::free(scratch);
}

static void compare(const char* name, const std::vector<float>& f, const std::vector<double>& d, double limit) {
  double worst = 0, largest = 1e-3;
  for (double x : d) largest = std::fmax(largest, std::fabs(x));
  for (size_t i = 0; i < d.size(); ++i) worst = std::fmax(worst, std::isfinite(f[i]) ? std::fabs(f[i] - d[i]) : 1e30);
  const bool ok = worst <= limit * largest;
  std::printf("%-24s %.1e %s\n", name, worst / largest, ok ? "ok" : "WRONG");
  failures += !ok;
}

template <class T>
static Sequence sequence(T* p, int64_t dim, int64_t length, bool channels_last) {
  return {p, sizeof(T) == 4 ? DType::f32 : DType::f64, dim * length, channels_last ? dim : 1, channels_last ? 1 : length};
}

static void scan(const Kernels& k, int64_t dim, int64_t length, int64_t state, bool channels_last) {
  const int64_t batch = 2, e = batch * dim * length, m = batch * length * state;
  Both u(e), delta(e, 1, -2), z(e), grad(e), A(dim * state, 0.5, -1), B(m), C(m), D(dim), bias(dim);
  Array<float> outs_f[9];
  Array<double> outs_d[9];
  const auto go = [&](auto zero, auto* outs, const Pair<ScanArgs>& pair, int64_t blocks_of) {
    using T = decltype(zero);
    const size_t sizes[] = {size_t(e), size_t(e), size_t(e), size_t(e), size_t(blocks_of * m), size_t(blocks_of * m),
                            size_t(batch * dim * state), size_t(batch * dim), size_t(batch * dim)};
    for (int i = 0; i < 9; ++i) outs[i].v.assign(sizes[i], T(0));
    ScanArgs a = {};
    a.batch = batch, a.dim = dim, a.length = length, a.state = state, a.groups = 1, a.softplus = true;
    a.u = sequence(u.at<T>(), dim, length, channels_last), a.delta = sequence(delta.at<T>(), dim, length, channels_last);
    a.z = sequence(z.at<T>(), dim, length, channels_last), a.out = sequence(outs[0].p(), dim, length, channels_last);
    a.B = {B.at<T>(), length * state, state, 0, 1}, a.C = {C.at<T>(), length * state, state, 0, 1};
    a.A = A.at<T>(), a.D = D.at<T>(), a.bias = bias.at<T>();
    run(pair.forward, a);
    a.grad = sequence(grad.at<T>(), dim, length, channels_last), a.du = sequence(outs[1].p(), dim, length, channels_last);
    a.ddelta = sequence(outs[2].p(), dim, length, channels_last), a.dz = sequence(outs[3].p(), dim, length, channels_last);
    a.dB = outs[4].p(), a.dC = outs[5].p(), a.dA = outs[6].p(), a.dD = outs[7].p(), a.dbias = outs[8].p();
    run(pair.backward, a);
    for (int i : {4, 5}) {  // partial sums of the channel blocks
      for (int64_t b = 1; b < blocks_of; ++b)
        for (int64_t j = 0; j < m; ++j) outs[i].v[j] += outs[i].v[b * m + j];
      outs[i].v.resize(m);
    }
  };
  ScanArgs shape = {};
  shape.batch = batch, shape.dim = dim, shape.length = length, shape.state = state, shape.groups = 1;
  go(float(0), outs_f, k.scan_f32, k.scan_blocks(shape, false));
  go(double(0), outs_d, k.scan_f64, k.scan_blocks(shape, true));
  const char* names[] = {"scan out", "scan du", "scan ddelta", "scan dz", "scan dB", "scan dC", "scan dA", "scan dD", "scan dbias"};
  for (int i = 0; i < 9; ++i) compare(names[i], outs_f[i].v, outs_d[i].v, 3e-6);
}

static void dcn(const Kernels& k, int64_t channels, int64_t kernel, bool masked) {
  const int64_t batch = 2, h = 5, w = 7, group = 3, points = kernel * kernel, n = batch * h * w * group;
  Both input(n * channels), offset(n * points * 2, 3), mask(n * points), grad(n * channels);
  Array<float> outs_f[4];
  Array<double> outs_d[4];
  const auto go = [&](auto zero, auto* outs, const Pair<DcnArgs>& pair) {
    using T = decltype(zero);
    outs[0].v.assign(n * channels, 0), outs[1].v.assign(n * channels, 0);
    outs[2].v.assign(n * points * 2, 0), outs[3].v.assign(n * points, 0);
    DcnArgs a = {};
    a.batch = batch, a.height = a.out_height = h, a.width = a.out_width = w, a.group = group, a.channels = channels;
    a.kernel_h = a.kernel_w = kernel, a.stride_h = a.stride_w = a.dilation_h = a.dilation_w = 1;
    a.pad_h = a.pad_w = kernel / 2, a.points = points, a.scale = 1, a.dtype = sizeof(T) == 4 ? DType::f32 : DType::f64;
    a.input = input.at<T>(), a.input_batch = h * w * group * channels, a.input_row = w * group * channels;
    a.input_pixel = group * channels, a.offset = offset.at<T>(), a.mask = masked ? mask.at<T>() : nullptr, a.out = outs[0].p();
    run(pair.forward, a);
    a.grad = grad.at<T>(), a.dinput = outs[1].p(), a.doffset = outs[2].p(), a.dmask = outs[3].p();
    run(pair.backward, a);
  };
  go(float(0), outs_f, k.dcn_f32);
  go(double(0), outs_d, k.dcn_f64);
  const char* names[] = {"dcnv3 out", "dcnv3 dinput", "dcnv3 doffset", "dcnv3 dmask"};
  for (int i = 0; i < 3 + masked; ++i) compare(names[i], outs_f[i].v, outs_d[i].v, 3e-6);
}

static void sample(const Kernels& k, int64_t channels) {
  const int64_t maps = 3, h = 4, w = 6, queries = 5, points = 3, n = maps * queries * points;
  Both value(maps * channels * h * w), loc(n * 2, 0.7, 0.5), weight(n), grad(maps * channels * queries);
  Array<float> outs_f[4];
  Array<double> outs_d[4];
  const auto go = [&](auto zero, auto* outs, const Pair<SampleArgs>& pair) {
    using T = decltype(zero);
    outs[0].v.assign(maps * channels * queries, 0), outs[1].v.assign(maps * channels * h * w, 0);
    outs[2].v.assign(n * 2, 0), outs[3].v.assign(n, 0);
    SampleArgs a = {maps, channels, h, w, queries, points, sizeof(T) == 4 ? DType::f32 : DType::f64};
    a.value = value.at<T>(), a.loc = loc.at<T>(), a.weight = weight.at<T>(), a.out = outs[0].p();
    run(pair.forward, a);
    a.grad = grad.at<T>(), a.dvalue = outs[1].p(), a.dloc = outs[2].p(), a.dweight = outs[3].p();
    run(pair.backward, a);
  };
  go(float(0), outs_f, k.sample_f32);
  go(double(0), outs_d, k.sample_f64);
  const char* names[] = {"sample out", "sample dvalue", "sample dloc", "sample dweight"};
  for (int i = 0; i < 4; ++i) compare(names[i], outs_f[i].v, outs_d[i].v, 3e-6);
}

int main() {
  std::srand(1);
  const Kernels k = OPENREC_ISA::kernels();
  for (int64_t state : {1, 3})
    for (int64_t dim : {5, 16, 40})
      for (bool channels_last : {false, true}) scan(k, dim, 37, state, channels_last);
  for (int64_t channels : {3, 4, 8, 16}) dcn(k, channels, 1, false), dcn(k, channels, 3, true), sample(k, channels);
  std::printf("%s: %d wrong\n", k.name, failures);
  return failures != 0;
}
