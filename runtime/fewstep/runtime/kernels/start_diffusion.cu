// What the diffusion of some tokens starts from: normal noise of the image's seed, the token's
// position and step 0, and the first of its timesteps.
//
// seeds [batch] uint64, positions [count, rows] int32, timesteps [.] int32 -> x [rows, count,
// channels] float32, rows = batch or 2 batch (the same twice); counter [1] int32 becomes first,
// timestep [1] int32 the timestep there.
//
// Launch: one thread per number, blocks of 256.
// Memory: writes 4 bytes per number, and reads 4 bytes per token.

#include "normal.cuh"

extern "C" __global__ void __launch_bounds__(256)
    start_diffusion(const unsigned long long* seeds, const int* positions, const int* timesteps,
                    int first, int batch, int rows, int count, int channels, float* x,
                    int* counter, int* timestep) {
  const int number = blockIdx.x * blockDim.x + threadIdx.x;
  if (number == 0) {
    *counter = first;
    *timestep = timesteps[first];
  }
  if (number >= rows * count * channels) return;
  const int token = number / channels, channel = number % channels;
  const int row = token / count, k = token % count;
  x[number] = normal(seeds[row % batch], positions[k * rows + row], 0, channel);
}
