// How arguments are packed.

extern "C" __global__ void take_mixed(double* out, unsigned char byte, double wide, int number,
                                      const float* values, float narrow, unsigned long long large,
                                      short small) {
  out[0] = byte;
  out[1] = wide;
  out[2] = number;
  out[3] = values[1];
  out[4] = narrow;
  out[5] = double(large);
  out[6] = small;
}

struct Pair {
  float first;
  double second;
};

extern "C" __global__ void take_structure(int padding, Pair pair, float4 four, double* out) {
  out[0] = padding + pair.first + pair.second + four.x + four.w;
}

__device__ int calls;

extern "C" __global__ void __launch_bounds__(32 * (1 + 1)) count_call() { calls += 1; }

extern "C" __global__ void read_calls(int* out) {
  out[0] = calls;
  calls = 0;
}
