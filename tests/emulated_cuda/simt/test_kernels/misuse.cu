// What the emulation has to report.

extern "C" __global__ void diverge(int* out) {
  if (threadIdx.x < 10) __syncthreads();
  __syncwarp();
  out[threadIdx.x] = 1;
}

extern "C" __global__ void mix_barriers() {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads_count(1);
}

extern "C" __global__ void mix_warp_operations(int* out) {
  if (threadIdx.x % 2)
    out[threadIdx.x] = __any_sync(0xffffffffu, 1);
  else
    out[threadIdx.x] = __all_sync(0xffffffffu, 1);
}

extern "C" __global__ void shuffle_with_mask(int* out, unsigned mask, int lane) {
  out[threadIdx.x] = __shfl_sync(mask, (int)threadIdx.x, lane);
}

extern "C" __global__ void shuffle_with_width(int* out, int width) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, (int)threadIdx.x, 0, width);
}

extern "C" __global__ void shuffle_after_exit(int* out) {
  if (threadIdx.x == 5) return;
  out[threadIdx.x] = __shfl_sync(0xffffffffu, (int)threadIdx.x, 5);
}

extern "C" __global__ void write_dynamic(int count) {
  extern __shared__ int words[];
  for (int i = threadIdx.x; i < count; i += blockDim.x) words[i] = i;
}
