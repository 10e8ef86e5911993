// Names shared by the host side and the kernels. Plain C++: no torch, no CUDA header.
#pragma once

#include <cstdint>

namespace openrec::cuda {

enum class DType : int { kFloat = 0, kDouble = 1, kHalf = 2, kBFloat16 = 3 };

// A CUDA error code (0 is success), and its text.
const char* error_text(int code);

// Sets bytes to zero in stream order; returns a CUDA error code.
int fill_zero(void* p, int64_t bytes, void* stream);

}  // namespace openrec::cuda
