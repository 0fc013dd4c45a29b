// To the next step of a diffusion: counter [1] goes up by one, and timestep [1] becomes the one of
// timesteps [count] that it says; behind the last, that. All int32.
//
// Launch: one warp, of which one thread works.

extern "C" __global__ void __launch_bounds__(32)
    advance(const int* timesteps, int count, int* counter, int* timestep) {
  if (threadIdx.x != 0) return;
  const int next = *counter + 1;
  *counter = next;
  *timestep = timesteps[min(next, count - 1)];
}
