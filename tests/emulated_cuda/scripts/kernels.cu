// Kernels for the checks of the emulated driver.

#ifdef STALE
extern "C" __global__ void increment(int* values) { values[threadIdx.x] += 1; }
#else
extern "C" __global__ void increment(int* values, int count) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < count) values[i] += 1;
}
#endif

// Arguments of several sizes, with a gap before the last.
extern "C" __global__ void scale(float* out, const float* in, char times, double factor) {
  out[threadIdx.x] = static_cast<float>(in[threadIdx.x] * times * factor);
}

extern "C" __global__ void reverse(int* values) {
  extern __shared__ int row[];
  row[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  values[threadIdx.x] = row[blockDim.x - 1 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(64) sum(int* values) {
  __shared__ int row[64];
  row[threadIdx.x] = values[threadIdx.x];
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int i = 1; i < blockDim.x; ++i) row[0] += row[i];
  values[0] = row[0];
}

extern "C" __global__ void write_at(int* values, int index) { values[index] = 1; }

extern "C" __global__ void diverge(int* values) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncwarp();
  }
  values[threadIdx.x] = 1;
}

#ifdef MORE
extern "C" __global__ void only_in_the_cubin(int* values) { values[0] = 1; }
#endif
