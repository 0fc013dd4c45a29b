// Arguments of a launch, in the two ways a program can pass them.
#pragma once

#include "launch.h"

namespace emulated {

// Copies the arguments into the launch. Refuses a wrong size, and addresses of host memory that
// kernels cannot use: here they could, on a GPU they cannot.
void set_arguments(Launch& launch, void** pointers, void** extra);

}  // namespace emulated
