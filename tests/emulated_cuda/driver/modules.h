// Modules: loaded cubins, and their kernels joined with those of the host build.
#pragma once

#include "cubin.h"
#include "emulated_kernel.h"
#include "state.h"

namespace emulated {

struct Module {
  CUmodule handle = nullptr;
  Context* context = nullptr;
  Cubin cubin;
};

struct Function {
  CUfunction handle = nullptr;
  std::shared_ptr<Module> module;
  CubinKernel kernel;
  const EmulatedKernel* host = nullptr;  // what runs
  int dynamic_shared_limit = 0;          // bytes
};

// Shared memory of a block that a kernel may use without asking, and at most, on this device.
constexpr int kSharedPerBlock = 48 << 10;
int shared_per_block_when_asked();

}  // namespace emulated
