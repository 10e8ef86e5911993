// Vectors of one instruction set, written once with the compiler's vector extensions.
//
// A kernel file is compiled once per instruction set with OPENREC_ISA set to its name, and everything in it lives in
// namespace openrec::OPENREC_ISA: an inline function shared between two of those objects could be merged by the linker
// into its AVX-512 version, which would then run on a machine without AVX-512. For the same reason no standard library
// template is used here.
//
// Not compiled with -ffast-math: NaN must pass through, and rounding by adding a large number must not be optimised away.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "args.h"

namespace openrec {
namespace OPENREC_ISA {

#define OPENREC_INLINE static inline __attribute__((always_inline))
#define OPENREC_METHOD inline __attribute__((always_inline))
// Loops over the vectors of a block: unrolled, their arrays become registers and their latencies overlap.
#define OPENREC_UNROLL _Pragma("GCC unroll 8")

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t mask __attribute__((vector_size(kBytes)));
  typedef int32_t lane;
  typedef uint16_t half_bits __attribute__((vector_size(kBytes / 2)));
  typedef uint32_t bits __attribute__((vector_size(kBytes)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t mask __attribute__((vector_size(kBytes)));
  typedef int64_t lane;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using Mask = typename VecOf<T>::mask;
template <class T>
using Lane = typename VecOf<T>::lane;
template <class T>
constexpr int kLanes = kBytes / int(sizeof(T));

OPENREC_INLINE Vec<float> splat(float x) { return x - Vec<float>{}; }  // x - 0 keeps -0 and NaN
OPENREC_INLINE Vec<double> splat(double x) { return x - Vec<double>{}; }

// ---------------------------------------------------------------- loads and stores with conversion to the compute type

// float16 and bfloat16 travel as their bits.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

OPENREC_INLINE float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float out;
  memcpy(&out, &bits, 4);
  return out;
}
OPENREC_INLINE float to_float(f16 x) {
  const uint32_t sign = uint32_t(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
  uint32_t bits;
  float out;
  if (rest >= 0x7c00) {  // infinity and NaN
    bits = sign | 0x7f800000 | (rest & 0x3ff) << 13;
  } else if (rest >= 0x400) {
    bits = sign | ((rest << 13) + (112u << 23));
  } else {  // denormal: rest * 2^-24 is exact
    out = float(rest) * 5.9604644775390625e-8f;
    memcpy(&bits, &out, 4);
    bits |= sign;
  }
  memcpy(&out, &bits, 4);
  return out;
}
OPENREC_INLINE float to_float(float x) { return x; }
OPENREC_INLINE double to_float(double x) { return x; }

OPENREC_INLINE void from_float(bf16* out, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  out->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
OPENREC_INLINE void from_float(f16* out, float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
  if (rest > 0x7f800000) {
    out->bits = uint16_t(sign | 0x7e00);
  } else if (rest >= 0x477ff000) {  // rounds to 65536 or more
    out->bits = uint16_t(sign | 0x7c00);
  } else if (rest < 0x38800000) {  // denormal: adding 0.5 leaves the rounded value in the last bits
    float magnitude;
    memcpy(&magnitude, &rest, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    out->bits = uint16_t(sign | (bits - 0x3f000000));
  } else {
    out->bits = uint16_t(sign | ((rest - (112u << 23) + 0xfff + (rest >> 13 & 1)) >> 13));
  }
}
OPENREC_INLINE void from_float(float* out, float x) { *out = x; }
OPENREC_INLINE void from_float(double* out, double x) { *out = x; }

OPENREC_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  memcpy(&v, p, kBytes);
  return v;
}
OPENREC_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  memcpy(&v, p, kBytes);
  return v;
}
OPENREC_INLINE Vec<float> load(const bf16* p) {
  VecOf<float>::half_bits h;
  memcpy(&h, p, kBytes / 2);
  return (Vec<float>)(__builtin_convertvector(h, VecOf<float>::bits) << 16);
}
OPENREC_INLINE Vec<float> load(const f16* p) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(__F16C__)
  return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  Vec<float> v = {};
  for (int i = 0; i < kLanes<float>; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

OPENREC_INLINE void store(float* p, Vec<float> v) { memcpy(p, &v, kBytes); }
OPENREC_INLINE void store(double* p, Vec<double> v) { memcpy(p, &v, kBytes); }
OPENREC_INLINE void store(bf16* p, Vec<float> v) {
  typedef VecOf<float>::bits Bits;
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const VecOf<float>::mask nan = v != v;
  const Bits out = (rounded & ~(Bits)nan) | ((Bits)nan & 0x7fc0);
  const VecOf<float>::half_bits h = __builtin_convertvector(out, VecOf<float>::half_bits);
  memcpy(p, &h, kBytes / 2);
}
OPENREC_INLINE void store(f16* p, Vec<float> v) {
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__F16C__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kLanes<float>; ++i) from_float(p + i, v[i]);
#endif
}

// ------------------------------------------------------------------------------------------------------- arithmetic

// Sum of all lanes. The order differs between instruction sets and never between runs.
typedef float Quad __attribute__((vector_size(16)));
typedef double Two __attribute__((vector_size(16)));
OPENREC_INLINE float sum_quad(Quad v) {
#if defined(__clang__)
  return (v[0] + v[2]) + (v[1] + v[3]);
#else
  typedef int32_t Index __attribute__((vector_size(16)));
  v = v + __builtin_shuffle(v, Index{2, 3, 0, 1});
  return v[0] + v[1];
#endif
}
OPENREC_INLINE float sum(Vec<float> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#elif defined(__AVX2__)
  return sum_quad((Quad)_mm256_castps256_ps128((__m256)v) + (Quad)_mm256_extractf128_ps((__m256)v, 1));
#else
  return sum_quad(v);
#endif
}
OPENREC_INLINE double sum(Vec<double> v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_pd((__m512d)v);
#elif defined(__AVX2__)
  const Two s = (Two)_mm256_castpd256_pd128((__m256d)v) + (Two)_mm256_extractf128_pd((__m256d)v, 1);
  return s[0] + s[1];
#else
  return v[0] + v[1];
#endif
}

// Two sums at once, for little more than the price of one.
OPENREC_INLINE void sum_two(Vec<float> a, Vec<float> b, float* out) {
#if defined(__AVX2__)
#if defined(__AVX512F__)
  const __m256 x = _mm256_add_ps(_mm512_castps512_ps256((__m512)a), _mm512_extractf32x8_ps((__m512)a, 1));
  const __m256 y = _mm256_add_ps(_mm512_castps512_ps256((__m512)b), _mm512_extractf32x8_ps((__m512)b, 1));
#else
  const __m256 x = (__m256)a, y = (__m256)b;
#endif
  __m256 s = _mm256_add_ps(_mm256_permute2f128_ps(x, y, 0x20), _mm256_permute2f128_ps(x, y, 0x31));
  s = _mm256_add_ps(s, _mm256_permute_ps(s, 0x4e));  // a in the lower four, b in the upper
  s = _mm256_add_ps(s, _mm256_permute_ps(s, 0xb1));
  out[0] = _mm256_cvtss_f32(s), out[1] = _mm_cvtss_f32(_mm256_extractf128_ps(s, 1));
#else
  out[0] = sum(a), out[1] = sum(b);
#endif
}
OPENREC_INLINE void sum_two(Vec<double> a, Vec<double> b, double* out) { out[0] = sum(a), out[1] = sum(b); }

// max(x, low) and min(x, high) that keep NaN.
OPENREC_INLINE Vec<float> at_least(Vec<float> x, float low) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_max_ps(_mm512_set1_ps(low), (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_max_ps(_mm_set1_ps(low), (__m128)x);
#else
  return x < low ? splat(low) : x;
#endif
}
OPENREC_INLINE Vec<float> at_most(Vec<float> x, float high) {
#if defined(__AVX512F__)
  return (Vec<float>)_mm512_min_ps(_mm512_set1_ps(high), (__m512)x);
#elif defined(__AVX2__)
  return (Vec<float>)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_min_ps(_mm_set1_ps(high), (__m128)x);
#else
  return x > high ? splat(high) : x;
#endif
}

// x split into the nearest whole number n and the rest, for -127 <= x <= 128, and p * 2^n. Results below the smallest
// normal number are 0. Without AVX-512, n lies in the last bits of `n`, where adding a large number has put it.
struct Split {
  Vec<float> n;

#if defined(__AVX512F__)
  explicit Split(Vec<float> x) : n((Vec<float>)_mm512_roundscale_ps((__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)) {}
  Vec<float> whole() const { return n; }
  Vec<float> scale(Vec<float> p) const { return (Vec<float>)_mm512_scalef_ps((__m512)p, (__m512)n); }
#else
  explicit Split(Vec<float> x) : n(x + 12582912.0f) {}
  Vec<float> whole() const { return n - 12582912.0f; }
  Vec<float> scale(Vec<float> p) const { return p * (Vec<float>)(((VecOf<float>::mask)n + 127) << 23); }
#endif
};

constexpr float kLog2e = 1.44269504088896340736f;

// 2^x, relative error 1e-7.
OPENREC_INLINE Vec<float> exp2(Vec<float> x) {
  x = at_least(x, -127.0f);
#if !defined(__AVX512F__)
  x = at_most(x, 128.0f);
#endif
  const Split split(x);
  const Vec<float> r = x - split.whole();
  // Even and odd powers in pairs: half the latency of Horner's rule, and the scan waits for latency.
  const Vec<float> r2 = r * r;
  Vec<float> p = r2 * 1.532431524e-4f + (r * 1.339095860e-3f + 9.618517561e-3f);
  p = p * r2 + (r * 5.550359590e-2f + 2.402264759e-1f);
  p = (p * r + 6.931471825e-1f) * r + 1.0f;  // one rounding at the end, not two
  return split.scale(p);
}

// e^-|x|, with the low half of ln 2 carried along: the steps of a scan start near softplus(-7) = 1e-3.
OPENREC_INLINE Vec<float> exp_minus_magnitude(Vec<float> x) {
  x = at_least((Vec<float>)((VecOf<float>::mask)x | int32_t(0x80000000)), -87.0f);
  const Split split(x * kLog2e);
  const Vec<float> n = split.whole();
  Vec<float> r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  const Vec<float> r2 = r * r;
  Vec<float> p = r2 * 1.381461322e-3f + (r * 8.368709902e-3f + 4.166838737e-2f);
  p = p * r2 + (r * 1.666652069e-1f + 4.999999345e-1f);
  p = (p * r2 + r) + 1.0f;
  return split.scale(p);
}

// log(1 + y) = y + y^2 Q(y) for y in [0, 1], relative error 1e-7 also for tiny y; a division would cost more.
OPENREC_INLINE Vec<float> log1p_unit(Vec<float> y) {
  const Vec<float> y2 = y * y;
  Vec<float> q = (y * 5.364820110e-3f - 3.006577677e-2f) * y2 + (y * 7.920451258e-2f - 1.375380059e-1f);
  q = q * y2 + (y * 1.915365421e-1f - 2.485716351e-1f);
  q = q * y2 + (y * 3.332132260e-1f - 4.999964796e-1f);
  return q * y2 + y;
}

// Decay factors are 2^(delta * A log2(e)) in float32, where one multiplication is saved, and e^(delta * A) in float64.
OPENREC_INLINE float decay_rate(float a) { return a * kLog2e; }
OPENREC_INLINE double decay_rate(double a) { return a; }
OPENREC_INLINE Vec<float> decay(Vec<float> x) { return exp2(x); }
OPENREC_INLINE Vec<double> decay(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = ::exp(x[i]);
  return x;
}

// log(1 + e^x), the identity above 20 as in PyTorch.
OPENREC_INLINE Vec<float> softplus(Vec<float> x) { return at_least(x, 0.0f) + log1p_unit(exp_minus_magnitude(x)); }
OPENREC_INLINE Vec<double> softplus(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = x[i] > 20.0 ? x[i] : ::log1p(::exp(x[i]));
  return x;
}

// The same and its derivative, sigmoid(x).
OPENREC_INLINE Vec<float> softplus(Vec<float> x, Vec<float>& slope) {
  const Vec<float> y = exp_minus_magnitude(x);
  slope = (x > 0.0f ? splat(1.0f) : y) / (1.0f + y);
  return at_least(x, 0.0f) + log1p_unit(y);
}
OPENREC_INLINE Vec<double> softplus(Vec<double> x, Vec<double>& slope) {
  for (int i = 0; i < kLanes<double>; ++i) slope[i] = x[i] > 20.0 ? 1.0 : 1.0 / (1.0 + ::exp(-x[i]));
  return softplus(x);
}

// 1 / (1 + e^-x)
OPENREC_INLINE Vec<float> sigmoid(Vec<float> x) {
  const Vec<float> y = exp_minus_magnitude(x);
  return (x > 0.0f ? splat(1.0f) : y) / (1.0f + y);
}
OPENREC_INLINE Vec<double> sigmoid(Vec<double> x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = 1.0 / (1.0 + ::exp(-x[i]));
  return x;
}

// ------------------------------------------------------------------------------------------------------- whole numbers

OPENREC_INLINE Mask<float> load(const int32_t* p) {
  Mask<float> v;
  memcpy(&v, p, kBytes);
  return v;
}
OPENREC_INLINE Mask<double> load(const int64_t* p) {
  Mask<double> v;
  memcpy(&v, p, kBytes);
  return v;
}

// The lanes of `index` where `valid`, else `other`, as 64-bit numbers.
OPENREC_INLINE void store_index(int64_t* out, Mask<float> index, Mask<float> valid, int64_t other) {
#if defined(__AVX512F__)
  const __m512i none = _mm512_set1_epi64(other);
  const __mmask16 k = _mm512_movepi32_mask((__m512i)valid);
  _mm512_storeu_si512(out, _mm512_mask_cvtepi32_epi64(none, __mmask8(k), _mm512_castsi512_si256((__m512i)index)));
  _mm512_storeu_si512(out + 8, _mm512_mask_cvtepi32_epi64(none, __mmask8(k >> 8), _mm512_extracti64x4_epi64((__m512i)index, 1)));
#elif defined(__AVX2__)
  const __m256i none = _mm256_set1_epi64x(other);
  for (int h = 0; h < 2; ++h) {
    const __m128i i = h ? _mm256_extracti128_si256((__m256i)index, 1) : _mm256_castsi256_si128((__m256i)index);
    const __m128i k = h ? _mm256_extracti128_si256((__m256i)valid, 1) : _mm256_castsi256_si128((__m256i)valid);
    _mm256_storeu_si256((__m256i*)(out + 4 * h), _mm256_blendv_epi8(none, _mm256_cvtepi32_epi64(i), _mm256_cvtepi32_epi64(k)));
  }
#else
  for (int i = 0; i < kLanes<float>; ++i) out[i] = valid[i] ? index[i] : other;
#endif
}
OPENREC_INLINE void store_index(int64_t* out, Mask<double> index, Mask<double> valid, int64_t other) {
  const Mask<double> v = (index & valid) | (~valid & other);
  memcpy(out, &v, kBytes);
}

// Pairs (x, y) of kLanes points in memory order to one vector of each.
template <class T>
OPENREC_INLINE void load_pairs(const T* p, Vec<T>& x, Vec<T>& y) {
  const Vec<T> a = load(p), b = load(p + kLanes<T>);
#if defined(__clang__)
  for (int i = 0; i < kLanes<T>; ++i) x[i] = p[2 * i], y[i] = p[2 * i + 1];
  (void)a, (void)b;
#else
  Mask<T> even, odd;
  for (int i = 0; i < kLanes<T>; ++i) even[i] = 2 * i, odd[i] = 2 * i + 1;
  x = __builtin_shuffle(a, b, even), y = __builtin_shuffle(a, b, odd);
#endif
}

// ------------------------------------------------------------------------------------------------------ transposition

// Interleaves blocks of Half lanes: afterwards a holds the even blocks of (a, b), b the odd ones.
template <class T, int Half>
OPENREC_INLINE void exchange(Vec<T>& a, Vec<T>& b) {
  typedef typename VecOf<T>::mask Mask;
  Mask low, high;
  for (int i = 0; i < kLanes<T>; ++i) {
    const bool odd = (i / Half) % 2;
    low[i] = odd ? kLanes<T> + i - Half : i;
    high[i] = odd ? kLanes<T> + i : i + Half;
  }
#if defined(__clang__)
  Vec<T> x, y;
  for (int i = 0; i < kLanes<T>; ++i) {
    x[i] = low[i] < kLanes<T> ? a[low[i]] : b[low[i] - kLanes<T>];
    y[i] = high[i] < kLanes<T> ? a[high[i]] : b[high[i] - kLanes<T>];
  }
#else
  const Vec<T> x = __builtin_shuffle(a, b, low), y = __builtin_shuffle(a, b, high);
#endif
  a = x;
  b = y;
}

template <class T, int Half>
OPENREC_INLINE void exchange_all(Vec<T>* rows) {
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & Half)) exchange<T, Half>(rows[i], rows[i + Half]);
}

// A square of kLanes x kLanes in registers.
OPENREC_INLINE void transpose(Vec<float>* rows) {
#if defined(__AVX512F__)
  exchange_all<float, 8>(rows);
#endif
#if defined(__AVX2__)
  exchange_all<float, 4>(rows);
#endif
  exchange_all<float, 2>(rows);
  exchange_all<float, 1>(rows);
}
OPENREC_INLINE void transpose(Vec<double>* rows) {
#if defined(__AVX512F__)
  exchange_all<double, 4>(rows);
#endif
#if defined(__AVX2__)
  exchange_all<double, 2>(rows);
#endif
  exchange_all<double, 1>(rows);
}

}  // namespace OPENREC_ISA
}  // namespace openrec
