// Device functions of csrc/cuda as C functions, so that Python tests can look at them one by one.
#include "cuda/sampling.cuh"

using namespace openrec::cuda;

extern "C" {

uint32_t probe_quotient(uint32_t n, uint32_t d) { return FastDiv(d).quotient(n); }

void probe_exp(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = exact_exp(x[i]);
}

// kind 0: float, 1: the fast version of 16-bit storage.
void probe_softplus(const float* x, float* value, float* slope, int64_t n, int kind) {
  for (int64_t i = 0; i < n; ++i) {
    auto s = kind ? FastMaths::softplus(x[i]) : Maths<float>::softplus(x[i]);
    value[i] = s.value;
    slope[i] = s.slope;
  }
}

void probe_to_bfloat16(const float* x, uint16_t* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) y[i] = Cast<bf16_t>::from(x[i]).bits;
}

// Where channel vector `vector` (of 8) of group g lies at a pixel, packed and planar (of 4).
int64_t probe_packed_offset(int64_t b, int g, int vector, int groups, int width, int pixels, int pixel) {
  Channels<bf16_t, 8, false> c(b, g, vector, groups, width, pixels);
  return c.first + pixel * c.pixel_stride;
}
int64_t probe_planar_offset(int64_t b, int g, int vector, int groups, int width, int pixels, int pixel) {
  Channels<bf16_t, 4, true> c(b, g, vector, groups, width, pixels);
  return c.first + pixel * c.pixel_stride;
}
int64_t probe_sample_number(int64_t b, int g, int query, int point, int groups, int queries, int points, int planar) {
  SampleArgs<float> p{};
  p.groups = groups, p.queries = queries;
  return planar ? sample_number<true>(p, b, g, query, points, point) : sample_number<false>(p, b, g, query, points, point);
}

// How a backward launch is divided: out = {groups per block, tile rows, tile columns, tiles, segments, shared cells}.
void probe_plan(int groups, int width, int rows, int cols, int queries, int points, int32_t* out) {
  SampleArgs<bf16_t> p{};
  p.groups = groups, p.width = width, p.rows = rows, p.cols = cols, p.queries = queries, p.points = points;
  p.vectors = (width + 7) / 8;
  plan_backward<bf16_t, false>(p);
  out[0] = 1 << p.groups_per_block_log2, out[1] = p.tile_rows, out[2] = p.tile_cols, out[3] = p.tiles;
  out[4] = p.segments, out[5] = out[0] * (p.tile_rows + 1) * (p.tile_cols + 1);
}
}
