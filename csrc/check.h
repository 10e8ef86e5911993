// What every operator's host code needs: tensors with known types, and checks that print both sides.
// Python checks arguments first and with better words; these guard against raw calls, whose wrong sizes would otherwise
// mean reading out of bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "cpu/args.h"

namespace openrec {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline DType dtype_of(const char* op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return DType::f32;
    case ScalarType::Double: return DType::f64;
    case ScalarType::BFloat16: return DType::bf16;
    case ScalarType::Half: return DType::f16;
    default: STD_TORCH_CHECK(false, op, ": ", name, " must be float16, bfloat16, float32 or float64");
  }
  return DType::f32;
}

inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }
inline bool is_double(const OptionalTensor& t) { return t && is_double(*t); }

inline void check_size(const char* op, const char* name, const Tensor& t, int64_t axis, int64_t expected) {
  STD_TORCH_CHECK(t.size(axis) == expected, op, ": ", name, " must have ", expected, " entries on axis ", axis, ", got ",
                  t.size(axis));
}

inline void check_rank(const char* op, const char* name, const Tensor& t, int64_t expected) {
  STD_TORCH_CHECK(t.dim() == expected, op, ": ", name, " must have ", expected, " axes, got ", t.dim());
}

inline Tensor as_type(const Tensor& t, ScalarType type) {
  return t.scalar_type() == type ? t : torch::stable::to(t, type);
}

// In `type` and contiguous, as a copy only where needed.
inline Tensor dense(const Tensor& t, ScalarType type) { return torch::stable::contiguous(as_type(t, type)); }
inline OptionalTensor dense(const OptionalTensor& t, ScalarType type) {
  return t ? OptionalTensor(dense(*t, type)) : std::nullopt;
}

inline Tensor nothing(const Tensor& like) { return torch::stable::new_empty(like, {0}); }

}  // namespace openrec
