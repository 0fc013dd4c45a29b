// Operations of warps. Every warp of the block does the same.

extern "C" __global__ void shuffle_integers(const int* in, int* out, int operand, int width) {
  const int i = threadIdx.x;
  const int n = blockDim.x;
  out[i] = __shfl_sync(0xffffffffu, in[i], operand, width);
  out[n + i] = __shfl_up_sync(0xffffffffu, in[i], operand, width);
  out[2 * n + i] = __shfl_down_sync(0xffffffffu, in[i], operand, width);
  out[3 * n + i] = __shfl_xor_sync(0xffffffffu, in[i], operand, width);
}

extern "C" __global__ void shuffle_from_own_choice(const double* in, const int* lanes,
                                                   double* out) {
  out[threadIdx.x] = __shfl_sync(0xffffffffu, in[threadIdx.x], lanes[threadIdx.x]);
}

extern "C" __global__ void vote_in_warp(const int* votes, unsigned* out) {
  const int i = threadIdx.x;
  const int n = blockDim.x;
  out[i] = __ballot_sync(0xffffffffu, votes[i]);
  out[n + i] = __any_sync(0xffffffffu, votes[i]) != 0;
  out[2 * n + i] = __all_sync(0xffffffffu, votes[i]) != 0;
}

// Halves of the warp work apart, as often as they like, then together.
extern "C" __global__ void work_in_halves(int* out) {
  const int lane = threadIdx.x % 32;
  int sum = lane;
  if (lane < 16) {
    for (int lanes = 8; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(0x0000ffffu, sum, lanes);
  } else {
    sum += __shfl_xor_sync(0xffff0000u, sum, 1);
    __syncwarp(0xffff0000u);
  }
  out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, sum, 16);
}

extern "C" __global__ void sum_of_partial_warp(const int* in, int* out) {
  const unsigned mask = __ballot_sync(0xffffffffu, 1);
  int sum = 0;
  for (int lane = 0; lane < __popc(mask); ++lane) sum += __shfl_sync(mask, in[threadIdx.x], lane);
  out[threadIdx.x] = sum;
}

// Lane 0 leaves while the others wait for it.
extern "C" __global__ void ballot_without_lane_0(unsigned* out) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) return;
  out[threadIdx.x] = __ballot_sync(0xffffffffu, 1);
}
