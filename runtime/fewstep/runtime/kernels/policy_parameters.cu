// From a policy network's raw actions to the parameters of a step (AdaNAT, PPO.py of the official
// repository), with the offsets o of the step, which are 0 without the heuristic residual:
//
//     mask ratio           = sigmoid (a0 + o0)
//     masking temperature  = softplus(a1 + o1)
//     sampling temperature = softplus(a2 + o2)
//     guidance scale       = softplus(a3 + o3)
//
// action [batch, 4] float32 -> parameters [batch, 4] float32, same columns. error [1] becomes 1 if
// an action is not finite. In float64, rounded once.
//
// Launch: one thread per image, blocks of 128.
// Memory: reads 16 bytes and writes 16 bytes per image.

#include "activations.cuh"

extern "C" __global__ void __launch_bounds__(128)
    policy_parameters(const float* action, int batch, double ratio_offset, double masking_offset,
                      double sampling_offset, double guidance_offset, float* parameters,
                      int* error) {
  const int image = blockIdx.x * blockDim.x + threadIdx.x;
  if (image >= batch) return;
  const float* raw = action + image * 4;
  float* out = parameters + image * 4;
  if (!isfinite(raw[0]) || !isfinite(raw[1]) || !isfinite(raw[2]) || !isfinite(raw[3])) *error = 1;
  out[0] = static_cast<float>(sigmoid(raw[0] + ratio_offset));
  out[1] = static_cast<float>(softplus(raw[1] + masking_offset));
  out[2] = static_cast<float>(softplus(raw[2] + sampling_offset));
  out[3] = static_cast<float>(softplus(raw[3] + guidance_offset));
}
