// From a policy network's raw actions to the parameters of a scale of VAR (AdaGen), with offsets o
// that make an action of 0 the ordinary settings:
//
//     guidance             = softplus(a0 + o0) s / (S - 1)     at scale s of S
//     top-k                = 4096 sigmoid(a1 + o1)             whatever the size of the codebook
//     top-p                = sigmoid(a2 + o2)
//     sampling temperature = softplus(a3 + o3)
//
// action [batch, 4] float32 -> parameters [batch, 4] float32, same columns. error [1] becomes 1 if
// an action is not finite. In float64, rounded once: top-k is truncated later.
//
// Launch: one thread per image, blocks of 128.
// Memory: reads 16 bytes and writes 16 bytes per image.

#include "activations.cuh"

extern "C" __global__ void __launch_bounds__(128)
    sampling_parameters(const float* action, int batch, double guidance_offset,
                        double top_k_offset, double top_p_offset, double temperature_offset,
                        double guidance_scale, float* parameters, int* error) {
  const int image = blockIdx.x * blockDim.x + threadIdx.x;
  if (image >= batch) return;
  const float* raw = action + image * 4;
  float* out = parameters + image * 4;
  if (!isfinite(raw[0]) || !isfinite(raw[1]) || !isfinite(raw[2]) || !isfinite(raw[3])) *error = 1;
  out[0] = static_cast<float>(softplus(raw[0] + guidance_offset) * guidance_scale);
  out[1] = static_cast<float>(4096 * sigmoid(raw[1] + top_k_offset));
  out[2] = static_cast<float>(sigmoid(raw[2] + top_p_offset));
  out[3] = static_cast<float>(softplus(raw[3] + temperature_offset));
}
