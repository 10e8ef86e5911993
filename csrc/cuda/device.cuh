// What every kernel needs: number types, packed loads and stores, accurate exp / softplus, index helpers.
//
// Compiled by nvcc, without torch headers and without cuda_fp16.h / cuda_bf16.h (they cost seconds per architecture and
// the few conversions used are single instructions). With OPENREC_EMULATE_CUDA the same source is compiled by the host
// compiler and run thread by thread on the CPU: that is how the kernels are tested where there is no GPU
// (tests/cuda_emulator).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cuda/types.h"

#ifdef OPENREC_EMULATE_CUDA
#include "cuda_emulator.h"
#else
#include <cuda_runtime.h>
#define OPENREC_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<grid, block, shared_bytes, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define OPENREC_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

#ifdef OPENREC_EMULATE_CUDA
#define OPENREC_FN inline
#else
#define OPENREC_FN __device__ __forceinline__
#endif

namespace openrec::cuda {

// Stand-ins of single instructions when emulated; only declared here (nvcc's host pass reads the names).
#ifndef OPENREC_EMULATE_CUDA
__device__ float host_half_to_float(uint16_t bits);
__device__ uint16_t host_float_to_half(float x);
__device__ float host_exp2(float x);
__device__ float host_log2(float x);
#endif

struct half_t {
  uint16_t bits;
};
struct bf16_t {
  uint16_t bits;
};

// Arithmetic type: float, except double for double.
template <class T>
using acc_t = std::conditional_t<std::is_same<T, double>::value, double, float>;

// ---------------------------------------------------------------------------------------------------- bits and numbers
OPENREC_FN uint32_t bits_of(float x) {
#ifdef __CUDA_ARCH__
  return __float_as_uint(x);
#else
  uint32_t r;
  __builtin_memcpy(&r, &x, 4);
  return r;
#endif
}

OPENREC_FN float float_of(uint32_t b) {
#ifdef __CUDA_ARCH__
  return __uint_as_float(b);
#else
  float r;
  __builtin_memcpy(&r, &b, 4);
  return r;
#endif
}

OPENREC_FN float to_acc(float x) { return x; }
OPENREC_FN double to_acc(double x) { return x; }
OPENREC_FN float to_acc(bf16_t x) { return float_of(uint32_t(x.bits) << 16); }
OPENREC_FN float to_acc(half_t x) {
#ifdef __CUDA_ARCH__
  float r;
  asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x.bits));
  return r;
#else
  return host_half_to_float(x.bits);
#endif
}

template <class T>
struct Cast;
template <>
struct Cast<float> {
  static OPENREC_FN float from(float x) { return x; }
};
template <>
struct Cast<double> {
  static OPENREC_FN double from(double x) { return x; }
};
template <>
struct Cast<half_t> {
  static OPENREC_FN half_t from(float x) {
#ifdef __CUDA_ARCH__
    half_t r;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
#else
    return half_t{host_float_to_half(x)};
#endif
  }
};
template <>
struct Cast<bf16_t> {
  static OPENREC_FN bf16_t from(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    bf16_t r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(x));
    return r;
#else
    uint32_t b = bits_of(x);
    bool nan = (b & 0x7fffffffu) > 0x7f800000u;
    uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;  // nearest, ties to even
    return bf16_t{uint16_t(nan ? 0x7fffu : rounded)};
#endif
  }
};

// Two neighbours in one 32-bit word.
template <class T>
OPENREC_FN float low_of(uint32_t w) {
  return to_acc(T{uint16_t(w & 0xffffu)});
}
template <>
OPENREC_FN float low_of<bf16_t>(uint32_t w) {
  return float_of(w << 16);
}
template <class T>
OPENREC_FN float high_of(uint32_t w) {
  return to_acc(T{uint16_t(w >> 16)});
}
template <>
OPENREC_FN float high_of<bf16_t>(uint32_t w) {
  return float_of(w & 0xffff0000u);
}
template <class T>
OPENREC_FN uint32_t pack2(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t r;
  if (std::is_same<T, bf16_t>::value)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
  return r;
#else
  return uint32_t(Cast<T>::from(low).bits) | (uint32_t(Cast<T>::from(high).bits) << 16);
#endif
}

// ------------------------------------------------------------------------------------------------------- packed values
// N neighbouring values as they lie in memory, held in as few registers as possible.
template <class T, int N>
struct Packed {
  static constexpr int kBytes = N * int(sizeof(T));
  static constexpr int kWords = (kBytes + 3) / 4;
  static constexpr bool kNarrow = sizeof(T) == 2;
  uint32_t word[kWords];

  OPENREC_FN void clear() {
#pragma unroll
    for (int i = 0; i < kWords; ++i) word[i] = 0;
  }

  // p must be aligned to min(16, kBytes) bytes.
  OPENREC_FN void load(const T* p) {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i) {
        uint4 v = reinterpret_cast<const uint4*>(p)[i];
        word[4 * i] = v.x, word[4 * i + 1] = v.y, word[4 * i + 2] = v.z, word[4 * i + 3] = v.w;
      }
    } else if constexpr (kBytes == 8) {
      uint2 v = *reinterpret_cast<const uint2*>(p);
      word[0] = v.x, word[1] = v.y;
    } else if constexpr (kBytes == 4) {
      word[0] = *reinterpret_cast<const uint32_t*>(p);
    } else {
      static_assert(kBytes == 2, "sizes are powers of two");
      word[0] = *reinterpret_cast<const uint16_t*>(p);
    }
  }

  OPENREC_FN void store(T* p) const {
    if constexpr (kBytes % 16 == 0) {
#pragma unroll
      for (int i = 0; i < kBytes / 16; ++i)
        reinterpret_cast<uint4*>(p)[i] = make_uint4(word[4 * i], word[4 * i + 1], word[4 * i + 2], word[4 * i + 3]);
    } else if constexpr (kBytes == 8) {
      *reinterpret_cast<uint2*>(p) = make_uint2(word[0], word[1]);
    } else if constexpr (kBytes == 4) {
      *reinterpret_cast<uint32_t*>(p) = word[0];
    } else {
      *reinterpret_cast<uint16_t*>(p) = uint16_t(word[0]);
    }
  }

  OPENREC_FN acc_t<T> get(int i) const {
    if constexpr (kNarrow) {
      return (i & 1) ? high_of<T>(word[i / 2]) : low_of<T>(word[i / 2]);
    } else if constexpr (sizeof(T) == 4) {
      return float_of(word[i]);
    } else {
      uint64_t b = uint64_t(word[2 * i]) | (uint64_t(word[2 * i + 1]) << 32);
#ifdef __CUDA_ARCH__
      return __longlong_as_double(static_cast<long long>(b));
#else
      double r;
      __builtin_memcpy(&r, &b, 8);
      return r;
#endif
    }
  }

  // All N values at once: conversions to 16 bits go in pairs.
  OPENREC_FN void set(const acc_t<T> (&x)[N]) {
    if constexpr (kNarrow) {
      if constexpr (N == 1) {
        word[0] = Cast<T>::from(x[0]).bits;
      } else {
#pragma unroll
        for (int i = 0; i < kWords; ++i) word[i] = pack2<T>(x[2 * i], x[2 * i + 1]);
      }
    } else if constexpr (sizeof(T) == 4) {
#pragma unroll
      for (int i = 0; i < N; ++i) word[i] = bits_of(x[i]);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        uint64_t b;
#ifdef __CUDA_ARCH__
        b = static_cast<uint64_t>(__double_as_longlong(x[i]));
#else
        __builtin_memcpy(&b, &x[i], 8);
#endif
        word[2 * i] = uint32_t(b), word[2 * i + 1] = uint32_t(b >> 32);
      }
    }
  }

  // The values in opposite order.
  OPENREC_FN void flip() {
    uint32_t old[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) old[i] = word[i];
    if constexpr (kNarrow && N > 1) {
#pragma unroll
      for (int i = 0; i < kWords; ++i) word[i] = (old[kWords - 1 - i] >> 16) | (old[kWords - 1 - i] << 16);
    } else {
      constexpr int kEach = kWords / N;
#pragma unroll
      for (int i = 0; i < N; ++i)
#pragma unroll
        for (int k = 0; k < kEach; ++k) word[i * kEach + k] = old[(N - 1 - i) * kEach + k];
    }
  }
};

// Numbers whose storage type is known at run time only, the same for a whole launch: any of the float-like types when the
// arithmetic is in float, double when it is in double.
template <class A>
OPENREC_FN A read_any(const void* p, int64_t i, DType type) {
  if constexpr (std::is_same<A, double>::value) {
    return static_cast<const double*>(p)[i];
  } else {
    if (type == DType::kFloat) return static_cast<const float*>(p)[i];
    const uint16_t bits = static_cast<const uint16_t*>(p)[i];
    return type == DType::kHalf ? to_acc(half_t{bits}) : to_acc(bf16_t{bits});
  }
}
template <class A>
OPENREC_FN void write_any(void* p, int64_t i, DType type, A x) {
  if constexpr (std::is_same<A, double>::value) {
    static_cast<double*>(p)[i] = x;
  } else {
    if (type == DType::kFloat)
      static_cast<float*>(p)[i] = x;
    else
      static_cast<uint16_t*>(p)[i] = type == DType::kHalf ? Cast<half_t>::from(x).bits : Cast<bf16_t>::from(x).bits;
  }
}

// Neighbours 2 i and 2 i + 1.
template <class A>
OPENREC_FN void read_pair(const void* p, int64_t i, DType type, A& x, A& y) {
  if (std::is_same<A, double>::value || type == DType::kFloat) {
    Packed<A, 2> v;
    v.load(static_cast<const A*>(p) + 2 * i);
    x = v.get(0), y = v.get(1);
  } else {
    const uint32_t w = static_cast<const uint32_t*>(p)[i];
    const bool half = type == DType::kHalf;
    x = half ? low_of<half_t>(w) : low_of<bf16_t>(w);
    y = half ? high_of<half_t>(w) : high_of<bf16_t>(w);
  }
}
template <class A>
OPENREC_FN void write_pair(void* p, int64_t i, DType type, A x, A y) {
  if (std::is_same<A, double>::value || type == DType::kFloat) {
    Packed<A, 2> v;
    v.set({x, y});
    v.store(static_cast<A*>(p) + 2 * i);
  } else {
    static_cast<uint32_t*>(p)[i] = type == DType::kHalf ? pack2<half_t>(float(x), float(y)) : pack2<bf16_t>(float(x), float(y));
  }
}

// Stands for "float, half or bfloat16, see DType" where speed is not worth a kernel for each.
struct any_t {};
template <class T>
OPENREC_FN acc_t<T> fetch(const T* p, int64_t i, DType type) {
  if constexpr (std::is_same<T, any_t>::value)
    return read_any<float>(p, i, type);
  else
    return to_acc(p[i]);
}
template <class T>
OPENREC_FN void put(T* p, int64_t i, DType type, acc_t<T> x) {
  if constexpr (std::is_same<T, any_t>::value)
    write_any<float>(p, i, type, x);
  else
    p[i] = Cast<T>::from(x);
}

// --------------------------------------------------------------------------------------------------------------- maths
// Fast: for 16-bit storage, where 1e-5 relative is far below the rounding of the inputs. Otherwise exact to about 1 ulp.

// e^x for float, about 1 ulp, from 2 multiply-adds of range reduction and a polynomial: no special function unit, whose
// 2 ulp would add up over a long scan. Results below 2^-126 become 0. NaN stays NaN.
OPENREC_FN float exact_exp(float x) {
  const float kLog2e = 1.44269504088896341f;
  const float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  float clipped = x < -87.33654f ? -87.33654f : x;
  clipped = clipped > 88.8f ? 88.8f : clipped;
  float shifted = clipped * kLog2e + kMagic;
  float n = shifted - kMagic;
  float f = clipped - n * 0.693145751953125f;  // ln 2, high part: exact products for |n| < 2^9
  f = f - n * 1.42860682030941723e-6f;         // low part
  float p = 1.f / 5040.f;
  p = p * f + 1.f / 720.f;
  p = p * f + 1.f / 120.f;
  p = p * f + 1.f / 24.f;
  p = p * f + 1.f / 6.f;
  p = p * f + 0.5f;
  p = p * f + 1.f;
  p = p * f + 1.f;
  float scale = float_of((bits_of(shifted) << 23) + 0x3f800000u);
  float y = p * scale;
  return x < -87.33654f ? 0.f : y;
}

OPENREC_FN float fast_exp2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return host_exp2(x);
#endif
}

OPENREC_FN float fast_log2(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return host_log2(x);
#endif
}

OPENREC_FN float fast_rcp(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return 1.f / x;
#endif
}

// 1 / x to about 1 ulp for x in [1, 3].
OPENREC_FN float near_rcp(float x) {
  float r = fast_rcp(x);
  return r + r * (1.f - x * r);
}

template <class A>
struct SoftplusAndSlope {
  A value;  // log(1 + e^z), z above 20 (as torch's softplus)
  A slope;  // its derivative: sigmoid(z), 1 above 20
};

template <class T>
struct Maths;  // by storage type

struct FastMaths {
  // The factor put into A once, so that decay(delta, rate) is e^(delta A).
  static OPENREC_FN float rate(float a) { return a * 1.44269504088896341f; }
  static OPENREC_FN float decay(float delta, float rate) { return fast_exp2(delta * rate); }
  static OPENREC_FN float sigmoid(float z) { return fast_rcp(1.f + fast_exp2(z * -1.44269504088896341f)); }
  static OPENREC_FN SoftplusAndSlope<float> softplus(float z) {
    float y = fast_exp2(fabsf(z) * -1.44269504088896341f);
    float w = 1.f + y;
    float tail = y < 0.015625f ? y * (1.f - y * (0.5f - y * 0.33333333f)) : fast_log2(w) * 0.693147180559945309f;
    float r = fast_rcp(w);
    SoftplusAndSlope<float> s;
    s.value = fmaxf(z, 0.f) + tail;  // tail is NaN where z is
    s.slope = z < 0.f ? y * r : r;
    return s;
  }
};
template <>
struct Maths<half_t> : FastMaths {};
template <>
struct Maths<bf16_t> : FastMaths {};

template <>
struct Maths<float> {
  static OPENREC_FN float rate(float a) { return a; }
  static OPENREC_FN float decay(float delta, float rate) { return exact_exp(delta * rate); }
  static OPENREC_FN float sigmoid(float z) {
    float y = exact_exp(-fabsf(z));
    float r = near_rcp(1.f + y);
    return z < 0.f ? y * r : r;
  }
  // log(1 + y) = 2 atanh(y / (2 + y)): relative accuracy for small y too, where log(1 + y) has none.
  static OPENREC_FN SoftplusAndSlope<float> softplus(float z) {
    float y = exact_exp(-fabsf(z));
    float s = y * near_rcp(2.f + y);
    float q = s * s;
    float p = 1.f / 15.f;
    p = p * q + 1.f / 13.f;
    p = p * q + 1.f / 11.f;
    p = p * q + 1.f / 9.f;
    p = p * q + 1.f / 7.f;
    p = p * q + 1.f / 5.f;
    p = p * q + 1.f / 3.f;
    float twice = s + s;
    float tail = (p * q) * twice + twice;
    float r = near_rcp(1.f + y);
    SoftplusAndSlope<float> out;
    out.value = z > 20.f ? z : (z > 0.f ? z : 0.f) + tail;
    out.slope = z > 20.f ? 1.f : (z < 0.f ? y * r : r);
    return out;
  }
};

template <>
struct Maths<double> {
  static OPENREC_FN double rate(double a) { return a; }
  static OPENREC_FN double decay(double delta, double rate) { return exp(delta * rate); }
  static OPENREC_FN double sigmoid(double z) { return 1.0 / (1.0 + exp(-z)); }
  static OPENREC_FN SoftplusAndSlope<double> softplus(double z) {
    SoftplusAndSlope<double> out;
    double y = exp(z);
    out.value = z > 20.0 ? z : log1p(y);
    out.slope = z > 20.0 ? 1.0 : 1.0 / (1.0 + 1.0 / y);
    return out;
  }
};

// ------------------------------------------------------------------------------------------------------------- indices
// n / d for 0 <= n < 2^31 without a division (Granlund and Montgomery, 1994).
struct FastDiv {
  uint32_t divisor, multiplier, shift;

  FastDiv() = default;
  explicit FastDiv(uint32_t d) : divisor(d), shift(0) {
    while ((uint64_t(1) << shift) < d) ++shift;
    multiplier = uint32_t(((uint64_t(1) << 32) * ((uint64_t(1) << shift) - d)) / d + 1);
  }
  OPENREC_FN uint32_t quotient(uint32_t n) const {
#ifdef __CUDA_ARCH__
    uint32_t high = __umulhi(n, multiplier);
#else
    uint32_t high = uint32_t((uint64_t(n) * multiplier) >> 32);
#endif
    return (high + n) >> shift;
  }
};

// x, but the compiler does not know: what is computed from the result is computed anew instead of being kept in registers
// (addresses, above all) from where x was used before.
template <class I>
OPENREC_FN I renewed(I x) {
  static_assert(sizeof(I) == 4, "a 32-bit integer");
#ifdef __CUDA_ARCH__
  asm volatile("" : "+r"(x));
#endif
  return x;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace openrec::cuda
