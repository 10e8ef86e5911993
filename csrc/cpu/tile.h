// Moves blocks of a [batch, time, channel] tensor with any strides and storage type to rows of the compute type and back.
#pragma once

#include "simd.h"

namespace openrec {
namespace OPENREC_ISA {

// Storage types that vectors of T load and store directly.
template <class T, class S>
struct Direct {
  static constexpr bool value = sizeof(T) == 4 ? sizeof(S) <= 4 : sizeof(S) == 8;
};

// `width` rows long in memory, of which `count` channels are real; the others are filled with zeros.
struct Block {
  int64_t image, channel, count, width;
  int64_t step, steps, length;  // first time step, number of steps, steps of the whole sequence
  bool reverse;

  int64_t physical(int64_t i) const { return reverse ? length - 1 - step - i : step + i; }
};

template <class T, class S>
OPENREC_INLINE T read_one(const S* p) {
  return T(to_float(*p));
}
OPENREC_INLINE void write_one(double* p, double x) { *p = x; }
OPENREC_INLINE void write_one(float* p, double x) { *p = float(x); }
OPENREC_INLINE void write_one(bf16* p, double x) { from_float(p, float(x)); }
OPENREC_INLINE void write_one(f16* p, double x) { from_float(p, float(x)); }

template <class T, class S, bool Load>
OPENREC_INLINE void move_square(T* rows, const Block& k, S* p, int64_t channel_stride, int64_t i, int64_t c) {
  constexpr int n = kLanes<T>;
  Vec<T> square[n];
  const int64_t first = k.reverse ? k.physical(i + n - 1) : k.physical(i);
  if constexpr (Load) {
    for (int j = 0; j < n; ++j) {
      const S* q = p + (c + j) * channel_stride + first;
      square[j] = load(q);
      __builtin_prefetch(q + n * channel_stride);  // a square is a line of many rows: the hardware foresees none of them
    }
    transpose(square);
    for (int j = 0; j < n; ++j) store(rows + (i + (k.reverse ? n - 1 - j : j)) * k.width + c, square[j]);
  } else {
    for (int j = 0; j < n; ++j) square[j] = load(rows + (i + (k.reverse ? n - 1 - j : j)) * k.width + c);
    transpose(square);
    for (int j = 0; j < n; ++j) store(p + (c + j) * channel_stride + first, square[j]);
  }
}

template <class T, class S, bool Load>
void move_block(T* rows, const Block& k, const Sequence& s) {
  constexpr int n = kLanes<T>;
  S* p = (S*)s.data + k.image * s.batch + k.channel * s.channel;
  const bool along_channels = s.channel == 1, along_time = s.step == 1;
  const int64_t steps = along_channels || !along_time || !Direct<T, S>::value ? 0 : k.steps / n * n;
  const int64_t squares = k.count / n * n;
  if constexpr (Direct<T, S>::value) {
    for (int64_t c = 0; c < squares; c += n)  // along time inside: lines of one row follow each other in memory
      for (int64_t i = 0; i < steps; i += n) move_square<T, S, Load>(rows, k, p, s.channel, i, c);
  }
  for (int64_t i = 0; i < k.steps; ++i) {
    T* row = rows + i * k.width;
    S* q = p + k.physical(i) * s.step;
    int64_t c = i < steps ? squares : 0;
    if constexpr (Direct<T, S>::value) {
      if (along_channels)
        for (; c + n <= k.count; c += n) {
          if constexpr (Load) {
            __builtin_prefetch(q + c + (k.reverse ? -8 : 8) * s.step);
            store(row + c, load(q + c));
          } else
            store(q + c, load(row + c));
        }
    }
    for (; c < k.count; ++c) {
      if constexpr (Load)
        row[c] = read_one<T>(q + c * s.channel);
      else
        write_one(q + c * s.channel, row[c]);
    }
    if constexpr (Load)
      for (; c < k.width; ++c) row[c] = 0;
  }
}

template <class T, bool Load>
void move(T* rows, const Block& k, const Sequence& s) {
  switch (s.dtype) {
    case DType::f32: return move_block<T, float, Load>(rows, k, s);
    case DType::bf16: return move_block<T, bf16, Load>(rows, k, s);
    case DType::f16: return move_block<T, f16, Load>(rows, k, s);
    case DType::f64:
      if constexpr (sizeof(T) == 8) move_block<T, double, Load>(rows, k, s);
  }
}

// One row per time step; `stride` elements apart, negative when time runs backwards.
template <class T>
struct Rows {
  T* p;
  int64_t stride;

  T* at(int64_t i) const { return p + i * stride; }
};

// Rows of the tensor itself where they are whole and in the compute type, else of `scratch`.
template <class T>
OPENREC_INLINE bool in_place(const Block& k, const Sequence& s) {
  return s.channel == 1 && k.count == k.width && s.dtype == (sizeof(T) == 4 ? DType::f32 : DType::f64);
}
template <class T>
OPENREC_INLINE Rows<T> rows_of(const Block& k, const Sequence& s, T* scratch) {
  if (!s.data) return {nullptr, 0};
  if (!in_place<T>(k, s)) return {scratch, k.width};
  T* p = (T*)s.data + k.image * s.batch + k.channel + k.physical(0) * s.step;
  return {p, k.reverse ? -s.step : s.step};
}
template <class T>
OPENREC_INLINE Rows<T> read_rows(const Block& k, const Sequence& s, T* scratch) {
  if (s.data && !in_place<T>(k, s)) move<T, true>(scratch, k, s);
  return rows_of(k, s, scratch);
}
template <class T>
OPENREC_INLINE void write_rows(const Block& k, const Sequence& s, T* scratch) {
  if (s.data && !in_place<T>(k, s)) move<T, false>(scratch, k, s);
}

}  // namespace OPENREC_ISA
}  // namespace openrec
