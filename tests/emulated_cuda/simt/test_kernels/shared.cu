// Shared memory, static and dynamic.

extern "C" __global__ void reverse_static(const float* in, float* out) {
  __shared__ float values[256];
  values[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

// Two arrays in one buffer of bytes.
extern "C" __global__ void reverse_dynamic(const double* wide, const int* narrow, double* wide_out,
                                           int* narrow_out) {
  extern __shared__ __align__(16) unsigned char buffer[];
  double* first = (double*)buffer;
  int* second = (int*)(first + blockDim.x);
  first[threadIdx.x] = wide[threadIdx.x];
  second[threadIdx.x] = narrow[threadIdx.x];
  __syncthreads();
  wide_out[threadIdx.x] = first[blockDim.x - 1 - threadIdx.x];
  narrow_out[threadIdx.x] = second[blockDim.x - 1 - threadIdx.x];
}

// Every block leaves values behind, which the next one must not find.
extern "C" __global__ void read_uninitialised(float* out, int* whole) {
  __shared__ float values[40];
  __shared__ int number;
  extern __shared__ unsigned char buffer[];
  float* dynamic = (float*)buffer;
  float* row = out + blockIdx.x * 2;
  row[0] = values[39];
  row[1] = dynamic[3];
  whole[blockIdx.x] = number;
  values[39] = dynamic[3] = 1.0f;
  number = 1;
}

template <class Value>
__device__ Value largest_of_block(Value value) {
  __shared__ Value values[64];
  values[threadIdx.x] = value;
  __syncthreads();
  Value largest = values[0];
  for (unsigned i = 1; i < blockDim.x; ++i) largest = max(largest, values[i]);
  return largest;
}

__device__ inline int count_calls_of_block() {
  __shared__ int calls;
  if (threadIdx.x == 0) calls = 0;
  __syncthreads();
  atomicAdd(&calls, 1);
  __syncthreads();
  return calls;
}

extern "C" __global__ void largest_of_both(const float* values, const int* numbers, float* out) {
  __shared__ alignas(16) float4 aligned[2];
  const float value = largest_of_block(values[threadIdx.x]);
  const int number = largest_of_block(numbers[threadIdx.x]);
  const int calls = count_calls_of_block();
  if (threadIdx.x != 0) return;
  aligned[1] = make_float4(value, number, calls, (unsigned long long)aligned % 16);
  ((float4*)out)[0] = aligned[1];
}

template <int count>
__global__ void never_launched(int* out) {
  out[0] = count;
}
