// Says which kernel touched memory that is not there, before the process ends over it.
#pragma once

namespace emulated {

// While it lives, a segmentation fault is reported with the kernel's name and the address. The
// process ends as it would have: there is no way back out of a fault in the middle of a kernel.
class KernelFaults {
 public:
  explicit KernelFaults(const char* kernel);
  ~KernelFaults();
  KernelFaults(const KernelFaults&) = delete;
  KernelFaults& operator=(const KernelFaults&) = delete;
};

}  // namespace emulated
