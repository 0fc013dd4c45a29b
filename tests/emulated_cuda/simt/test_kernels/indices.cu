// Where a thread is in its block and grid.

extern "C" __global__ void write_indices(int* out) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  int* row = out + (block * (blockDim.x * blockDim.y * blockDim.z) + thread) * 6;
  row[0] = blockIdx.z;
  row[1] = blockIdx.y;
  row[2] = blockIdx.x;
  row[3] = threadIdx.z;
  row[4] = threadIdx.y;
  row[5] = threadIdx.x;
}
