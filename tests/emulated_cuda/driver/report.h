// What is left and what was done, as JSON.
#pragma once

namespace emulated {

// To the file of EMULATED_CUDA_REPORT, if it is set.
void write_report_at_exit();

}  // namespace emulated
