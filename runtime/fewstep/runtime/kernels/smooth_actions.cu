// A policy's actions with those of the step before (AdaGen): s = c before + (1 - c) a.
//
// action, before, smoothed [count] float32. In float64, rounded once.
//
// Launch: one thread per number, blocks of 128.
// Memory: 12 bytes per number.

extern "C" __global__ void __launch_bounds__(128)
    smooth_actions(const float* action, const float* before, double smoothing, int count,
                   float* smoothed) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= count) return;
  const double kept = smoothing * before[at];
  smoothed[at] = static_cast<float>(kept + (1.0 - smoothing) * action[at]);
}
