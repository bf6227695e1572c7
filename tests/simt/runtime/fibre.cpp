// The switch is written by hand for x86-64 and aarch64, where it takes a few nanoseconds; elsewhere, and where SIMT_UCONTEXT is in
// the environment, ucontext serves, whose switch calls the system. AddressSanitizer must be told of every switch.
#include "fibre.h"

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "sanitizer.h"

#if defined(__linux__) && (defined(__x86_64__) || defined(__aarch64__))
#define SIMT_SWITCH_BY_HAND 1
extern "C" void simt_switch(void** save, void* load);
#if defined(__x86_64__)
// The registers that a call preserves, and the control words of both floating point units.
asm(R"(
.text
.globl simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  subq $8, %rsp
  stmxcsr (%rsp)
  fnstcw 4(%rsp)
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  ldmxcsr (%rsp)
  fldcw 4(%rsp)
  addq $8, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
.section .note.GNU-stack,"",@progbits
.text
)");
#else
asm(R"(
.text
.globl simt_switch
.type simt_switch, %function
simt_switch:
  sub sp, sp, #176
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mrs x9, fpcr
  str x9, [sp, #160]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldr x9, [sp, #160]
  msr fpcr, x9
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #176
  ret
.size simt_switch, .-simt_switch
.section .note.GNU-stack,"",%progbits
.text
)");
#endif
#else
#define SIMT_SWITCH_BY_HAND 0
#endif

namespace simt {

namespace {

Fibre* running = nullptr;
void* scheduler_context = nullptr;
// What AddressSanitizer keeps of the scheduler's own stack.
void* scheduler_fake_stack = nullptr;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;

// Only what is touched takes memory. Sanitizers make frames several times larger than they are.
constexpr size_t usable_bytes = 512 * 1024;

char* new_stack() {
  const size_t page = size_t(sysconf(_SC_PAGESIZE));
  void* whole = mmap(nullptr, page + usable_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (whole == MAP_FAILED || mprotect(whole, page, PROT_NONE) != 0) {
    std::perror("simt: a fibre's stack");
    std::_Exit(69);
  }
  return static_cast<char*>(whole) + page;
}

const bool by_hand = SIMT_SWITCH_BY_HAND != 0 && std::getenv("SIMT_UCONTEXT") == nullptr;

// What the first switch to a fibre loads; its last address is `main`.
void* first_frame([[maybe_unused]] char* end, [[maybe_unused]] void (*main)()) {
#if SIMT_SWITCH_BY_HAND && defined(__x86_64__)
  auto* top = reinterpret_cast<uintptr_t*>(end);
  // Control words (their defaults), six registers, and the address to return to, at which the stack pointer is 8 off a multiple of
  // 16, as at the start of every function.
  *--top = 0;
  *--top = reinterpret_cast<uintptr_t>(main);
  for (int i = 0; i < 6; ++i) *--top = 0;
  *--top = uintptr_t(0x037f) << 32 | 0x1f80;
  return top;
#elif SIMT_SWITCH_BY_HAND
  auto* top = reinterpret_cast<uintptr_t*>(end) - 22;
  for (int i = 0; i < 22; ++i) top[i] = 0;
  top[11] = reinterpret_cast<uintptr_t>(main);  // x30
  return top;
#else
  return nullptr;
#endif
}

void* first_context(void* old, char* stack, void (*main)()) {
  auto* context = static_cast<ucontext_t*>(old == nullptr ? std::malloc(sizeof(ucontext_t)) : old);
  getcontext(context);
  context->uc_stack.ss_sp = stack;
  context->uc_stack.ss_size = usable_bytes;
  context->uc_link = nullptr;
  makecontext(context, main, 0);
  return context;
}

void change(void*& save, void* load) {
#if SIMT_SWITCH_BY_HAND
  if (by_hand) return simt_switch(&save, load);
#endif
  if (save == nullptr) save = std::malloc(sizeof(ucontext_t));
  swapcontext(static_cast<ucontext_t*>(save), static_cast<ucontext_t*>(load));
}

}  // namespace

size_t Fibre::stack_bytes() { return usable_bytes; }

void Fibre::prepare(void (*entry)(void*), void* argument) {
  entry_ = entry;
  argument_ = argument;
  fake_stack_ = nullptr;
  if (stack_ == nullptr) stack_ = new_stack();
  sanitizer::unpoison(stack_, usable_bytes);  // from what earlier frames left
  if (by_hand) context_ = first_frame(stack_ + usable_bytes, &Fibre::main);
  else context_ = first_context(context_, stack_, &Fibre::main);
}

void Fibre::main() {
  sanitizer::finish_switch(nullptr, &scheduler_stack, &scheduler_stack_bytes);
  running->entry_(running->argument_);
  std::abort();  // entry ends by suspend(true)
}

void Fibre::resume() {
  running = this;
  sanitizer::start_switch(&scheduler_fake_stack, stack_, usable_bytes);
  change(scheduler_context, context_);
  sanitizer::finish_switch(scheduler_fake_stack, nullptr, nullptr);
  running = nullptr;
}

void Fibre::suspend(bool finished) {
  sanitizer::start_switch(finished ? nullptr : &fake_stack_, scheduler_stack, scheduler_stack_bytes);
  change(context_, scheduler_context);
  sanitizer::finish_switch(fake_stack_, &scheduler_stack, &scheduler_stack_bytes);
}

}  // namespace simt
