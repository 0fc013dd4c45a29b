// What a cubin says about itself and its kernels.
#pragma once

#include <string>
#include <vector>

namespace emulated {

struct CubinParameter {
  unsigned offset = 0;
  unsigned bytes = 0;
};

struct CubinKernel {
  std::string name;
  std::vector<CubinParameter> parameters;
  unsigned parameter_bytes = 0;
  unsigned registers = 0;
  unsigned static_shared = 0;
  unsigned most_threads = 1024;  // less with __launch_bounds__
};

struct Cubin {
  int architecture = 0;  // 87 for sm_87
  std::vector<CubinKernel> kernels;

  const CubinKernel* kernel(const std::string& name) const;
};

// Refuses what is not a cubin. The image's own figures of its extent are believed: the driver is
// told an address and no size.
Cubin parse_cubin(const void* image);

// Whether a device of architecture `device` runs code made for `code`: the same major version and
// no newer minor one, except that the integrated GPUs of the Jetson and Drive boards and the
// others do not run each other's code.
bool runs_on(int code, int device);

}  // namespace emulated
