// A function that says so and fails for each one that pycuda links. Weak: where the driver has the
// function, that one is taken. The list is made from the built pycuda: SYMBOL(cu...).
// Without cuda.h, whose declarations have arguments.

#include <cstdio>

namespace {

constexpr int kNotSupported = 801;  // CUDA_ERROR_NOT_SUPPORTED

int refuse(const char* function) {
  std::fprintf(stderr, "[emulated CUDA] %s: not emulated\n", function);
  return kNotSupported;
}

}  // namespace

#define SYMBOL(NAME) \
  extern "C" __attribute__((weak, visibility("default"))) int NAME() { return refuse(#NAME); }
#include "linked_symbols.inc"
#undef SYMBOL
