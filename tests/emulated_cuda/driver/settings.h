// How the emulated device behaves; from the environment.
#pragma once

#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

#include <cstddef>
#include <cstdint>
#include <string>

namespace emulated {

struct Settings {
  std::string kernels;  // path of the host build of the kernels; empty: none
  std::string report;   // path of the report that is written as the process ends; empty: none
  int architecture = 87;
  bool lazy = true;
  bool integrated = false;
  bool log = false;
  size_t memory_bytes = size_t{512} << 20;
  uint64_t fail_after_launches = 0;  // 0: never
  int fail_with = CUDA_ERROR_LAUNCH_FAILED;
};

// Refuses CUDA_ERROR_INVALID_VALUE for a value that is none of its variable's.
Settings settings_from_environment();

}  // namespace emulated
