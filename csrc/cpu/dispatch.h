// Chooses the kernels of the best instruction set this machine has, and runs their tasks on torch's thread pool.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdlib>

#include "args.h"

namespace openrec {

const Kernels& kernels();

// Scratch memory per thread, aligned to a cache line so that no vector straddles two.
template <class Args>
void run(const Kernel<Args>& kernel, const Args& args) {
  const int64_t tasks = kernel.tasks(args);
  if (tasks <= 0) return;
  const size_t bytes = (kernel.scratch(args) + 127) / 64 * 64;
  bool failed = false;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    void* scratch = std::aligned_alloc(64, bytes);
    if (scratch == nullptr) {
      failed = true;  // an exception must not leave a worker thread
      return;
    }
    kernel.run(args, begin, end, scratch);
    std::free(scratch);
  });
  STD_TORCH_CHECK(!failed, "openrec: out of memory for ", bytes, " bytes of scratch memory per thread");
}

}  // namespace openrec
