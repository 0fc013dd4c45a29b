// Launching kernels.
#pragma once

#include "state.h"

namespace emulated {

// One launch: everything is copied when it is submitted or captured.
struct Launch {
  std::shared_ptr<Function> function;
  unsigned grid[3] = {};
  unsigned block[3] = {};
  unsigned dynamic_shared = 0;
  std::vector<unsigned char> arguments;  // packed as in the cubin
  std::vector<void*> argument_pointers;  // to each of them
};

}  // namespace emulated
