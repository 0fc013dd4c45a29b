// One step of the ancestral sampler of a diffusion, with guidance and a learned variance:
//
//     e   = eu + s (ec - eu)                       without guidance ec
//     v   = (second half of denoised, conditional, + 1) / 2
//     x'  = a x - b e + temperature exp(v high + (1 - v) low) n
//
// denoised [rows, count, 2 channels] float32, rows = batch or, with guidance, 2 batch, conditional
// half first; coefficients [., 5] float32: a, b, low, high (of a standard deviation, as logarithms)
// and whether there is noise; counter [1] int32: which of them; timestep [1] int32; seeds [batch]
// uint64; positions [count, rows] int32; parameters [2] float32: s, temperature -> x [rows, count,
// channels] float32, in and out, both halves the same. n: normal noise of the image's seed, the
// token's position and step timestep + 1. error [1] becomes 1 if a number is not finite.
//
// Launch: one thread per number of the batch, blocks of 256.
// Memory: per number 12 bytes read and 4 written; with guidance 16 and 8.

#include "exponential.cuh"
#include "normal.cuh"

constexpr int kCoefficients = 5;

extern "C" __global__ void __launch_bounds__(256)
    diffusion_step(const float* denoised, const float* coefficients, const int* counter,
                   const int* timestep, const unsigned long long* seeds, const int* positions,
                   const float* parameters, int batch, int rows, int count, int channels, float* x,
                   int* error) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  const int half = batch * count * channels;
  if (number >= half) return;
  const int token = number / channels, channel = number % channels;
  const int image = token / count, k = token % count;
  const float* given = coefficients + *counter * kCoefficients;
  const float* own = denoised + token * 2 * channels;
  float noise = own[channel];
  if (rows > batch) {
    const float other = own[2 * half + channel];
    noise = other + parameters[0] * (noise - other);
  }
  float next = given[0] * x[number] - given[1] * noise;
  if (given[4] != 0.0f) {
    const float part = (own[channels + channel] + 1.0f) * 0.5f;
    const float exponent = part * given[3] + (1.0f - part) * given[2];
    // Kept where it is not finite, so that x is not either.
    const float deviation = isfinite(exponent) ? exponential(fminf(exponent, 87.0f)) : exponent;
    const float drawn =
        normal(seeds[image], positions[k * rows + image], *timestep + 1, channel);
    next += deviation * drawn * parameters[1];
  }
  if (!isfinite(next)) *error = 1;
  x[number] = next;
  if (rows > batch) x[half + number] = next;
}
