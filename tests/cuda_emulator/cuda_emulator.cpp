// The scheduler of cuda_emulator.h: switches between the fibers of one block.
#include "cuda_emulator.h"

#if defined(__x86_64__)
// Saves the callee-saved registers on this stack, continues on the other.
asm(R"(
.text
.globl openrec_switch_stack
.hidden openrec_switch_stack
openrec_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
extern "C" void openrec_switch_stack(void** save, void* to);
#else
#error "cuda_emulator switches stacks on x86-64 only"
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#define BEFORE_SWITCH(save, bottom, size) __sanitizer_start_switch_fiber(save, bottom, size)
#define AFTER_SWITCH(save) __sanitizer_finish_switch_fiber(save, nullptr, nullptr)
#else
#define BEFORE_SWITCH(save, bottom, size) (void)0
#define AFTER_SWITCH(save) (void)0
#endif

namespace cuda_emulator {

Machine& machine() {
  static Machine m;
  return m;
}

namespace {

#if defined(__SANITIZE_ADDRESS__)
void* main_fake_stack = nullptr;
const void* main_stack_bottom = nullptr;
size_t main_stack_size = 0;
#endif

void to_main(bool dying) {
  Machine& m = machine();
  Fiber* self = m.current;
  void* fake = nullptr;
  (void)fake;
  (void)dying;
  BEFORE_SWITCH(dying ? nullptr : &fake, main_stack_bottom, main_stack_size);
  openrec_switch_stack(&self->stack_pointer, m.main_stack_pointer);
  AFTER_SWITCH(fake);
}

void entry() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &main_stack_bottom, &main_stack_size);
#endif
  m.body(m.body_argument);
  m.current->state = State::kDone;
  to_main(true);
  std::abort();
}

void prepare(Fiber& f, char* stack) {
  auto top = reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t(15);
  auto* sp = reinterpret_cast<void**>(top) - 2;
  *sp = reinterpret_cast<void*>(&entry);  // popped by ret; the stack is then 8 off 16, as after a call
  for (int i = 0; i < 6; ++i) *--sp = nullptr;
  f.stack_pointer = sp;
}

void resume(Fiber& f) {
  Machine& m = machine();
  m.current = &f;
  BEFORE_SWITCH(&main_fake_stack, m.stacks.data() + size_t(f.linear) * kStack, kStack);
  openrec_switch_stack(&m.main_stack_pointer, f.stack_pointer);
  AFTER_SWITCH(main_fake_stack);
}

[[noreturn]] void diverged(const char* what) {
  Machine& m = machine();
  std::fprintf(stderr, "cuda_emulator: %s in block (%u, %u, %u): not all threads arrive\n", what, m.block_index.x,
               m.block_index.y, m.block_index.z);
  std::abort();
}

}  // namespace

void yield_to_scheduler(State state) {
  machine().current->state = state;
  to_main(false);
}

void run_block(void (*body)(void*), void* argument) {
  Machine& m = machine();
  const char* order_name = std::getenv("OPENREC_EMULATOR_ORDER");
  m.order = order_name ? std::atoi(order_name) : 0;
  int threads = int(m.block_dim.x * m.block_dim.y * m.block_dim.z);
  int warps = (threads + kWarp - 1) / kWarp;
  m.body = body;
  m.body_argument = argument;
  m.fibers.assign(threads, Fiber{});
  if (m.stacks.size() < size_t(threads) * kStack) m.stacks = std::vector<char>(size_t(threads) * kStack);
  m.exchange.assign(size_t(warps) * 2 * kWarp, 0);
  std::vector<int> order(threads);
  for (int i = 0; i < threads; ++i) order[i] = m.order == 1 ? threads - 1 - i : i;
  if (m.order > 1) {
    uint64_t s = uint64_t(m.order) * 0x9e3779b97f4a7c15ull + 1;
    for (int i = threads - 1; i > 0; --i) {
      s = s * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(order[i], order[int((s >> 33) % uint64_t(i + 1))]);
    }
  }
  for (int i = 0; i < threads; ++i) {
    Fiber& f = m.fibers[i];
    f.linear = i;
    f.state = State::kReady;
    f.thread = dim3(unsigned(i) % m.block_dim.x, unsigned(i) / m.block_dim.x % m.block_dim.y,
                    unsigned(i) / (m.block_dim.x * m.block_dim.y));
    prepare(f, m.stacks.data() + size_t(i) * kStack);
  }
  for (;;) {
    bool ran = false;
    for (int i : order)
      if (m.fibers[i].state == State::kReady) resume(m.fibers[i]), ran = true;
    if (ran) {  // release warps whose lanes have all arrived
      for (int w = 0; w < warps; ++w) {
        int at_warp = 0, lanes = 0;
        for (int i = w * kWarp; i < threads && i < (w + 1) * kWarp; ++i) {
          ++lanes;
          at_warp += m.fibers[i].state == State::kAtWarp;
        }
        if (at_warp == lanes)
          for (int i = w * kWarp; i < w * kWarp + lanes; ++i) m.fibers[i].state = State::kReady;
        else if (at_warp)
          diverged("warp shuffle");
      }
      continue;
    }
    int at_block = 0, done = 0;
    for (const Fiber& f : m.fibers) at_block += f.state == State::kAtBlock, done += f.state == State::kDone;
    if (done == threads) return;
    if (at_block != threads) diverged("__syncthreads");
    for (Fiber& f : m.fibers) f.state = State::kReady;
  }
}

}  // namespace cuda_emulator
