// Barriers of the block.

// The sum of each block's values; threads beyond `count` leave before the first barrier.
extern "C" __global__ void sum_without_the_last(const int* values, int* sums, int count) {
  __shared__ int part[1024];
  const int t = threadIdx.x;
  if (t >= count) return;
  part[t] = values[blockIdx.x * blockDim.x + t];
  for (int n = count; n > 1; n = (n + 1) / 2) {
    __syncthreads();
    if (t < n / 2) part[t] += part[n - 1 - t];
  }
  if (t == 0) sums[blockIdx.x] = part[0];
}

// Threads leave one after the other while the rest go on meeting.
extern "C" __global__ void leave_one_by_one(int* counts) {
  for (int i = 0; i < (int)threadIdx.x; ++i) counts[i] = __syncthreads_count(1);
}

extern "C" __global__ void vote_in_block(const int* votes, int* out) {
  const int vote = votes[threadIdx.x];
  const int count = __syncthreads_count(vote);
  const int all = __syncthreads_and(vote);
  const int any = __syncthreads_or(vote);
  if (threadIdx.x == blockDim.x - 1) {
    out[0] = count;
    out[1] = all != 0;
    out[2] = any != 0;
  }
}

extern "C" __global__ void meet_often(int* out, int times) {
  for (int i = 0; i < times; ++i) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = times;
}
