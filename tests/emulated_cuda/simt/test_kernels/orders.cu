// One kernel whose result is the same in every order, and some with races.

extern "C" __global__ void sum_of_block(const int* values, int* sums) {
  __shared__ int parts[32];
  int sum = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_down_sync(0xffffffffu, sum, lanes);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) sum += parts[warp];
  sums[blockIdx.x] = sum;
}

// There is no barrier between writing and reading.
extern "C" __global__ void read_neighbour_too_early(int* out) {
  __shared__ int values[1024];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[(threadIdx.x + 1) % blockDim.x];
}

extern "C" __global__ void last_writer(int* thread, int* block) {
  thread[blockIdx.x] = threadIdx.x;
  block[0] = blockIdx.x;
}
