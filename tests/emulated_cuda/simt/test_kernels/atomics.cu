// All threads update the same few numbers.

extern "C" __global__ void update_integers(int* numbers, unsigned* bits) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&numbers[0], i);
  atomicSub(&numbers[1], i);
  atomicMax(&numbers[2], i - 50);
  atomicMin(&numbers[3], 50 - i);
  atomicExch(&numbers[4], 7);
  atomicCAS(&numbers[5], i, i + 1);
  atomicOr(&bits[0], 1u << (i % 32));
  atomicAnd(&bits[1], ~(1u << (i % 16)));
  atomicXor(&bits[2], 1u << (i % 32));
  atomicMax(&bits[3], 0x80000000u + i);
  atomicInc(&bits[4], 9);
}

extern "C" __global__ void update_wide(unsigned long long* wide, float* single, double* twice) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  atomicAdd(&wide[0], 1ull << 40);
  atomicMax(&wide[1], (unsigned long long)i << 33);
  atomicMin(&wide[2], (unsigned long long)(i + 3) << 33);
  atomicAdd(single, 0.5f);
  atomicAdd(twice, 0.25);
}

extern "C" __global__ void old_values(int* counter, int* seen) {
  seen[atomicAdd(counter, 1)] = blockIdx.x * blockDim.x + threadIdx.x;
}
