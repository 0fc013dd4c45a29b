// Functions of single numbers.

extern "C" __global__ void count_bits(const unsigned* in, int* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = __popc(in[i]);
  out[n + i] = __ffs((int)in[i]);
  out[2 * n + i] = __clz((int)in[i]);
  out[3 * n + i] = (int)__brev(in[i]);
  out[4 * n + i] = (int)__umulhi(in[i], 0x9e3779b9u);
  out[5 * n + i] = __float_as_int(__uint_as_float(in[i]));
  out[6 * n + i] = (int)__funnelshift_l(in[i], 0x12345678u, 7);
}

extern "C" __global__ void to_integers(const float* in, long long* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = __float2int_rn(in[i]);
  out[n + i] = __float2int_rz(in[i]);
  out[2 * n + i] = __float2int_rd(in[i]);
  out[3 * n + i] = __float2int_ru(in[i]);
  out[4 * n + i] = __float2uint_rn(in[i]);
  out[5 * n + i] = __double2int_rn((double)in[i]);
}

extern "C" __global__ void limit(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = min(in[i], 0.5f);
  out[n + i] = max(in[i], 0.5f);
  out[2 * n + i] = __saturatef(in[i]);
  out[3 * n + i] = (float)(min(-1, 5u) == 5u && max(-1, 3) == 3);
}

// Contracted to a fused multiply-add the last bits would differ.
extern "C" __global__ void multiply_and_add(const float* in, float* out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = in[i] * in[i] - 1.0f;
  out[n + i] = __fadd_rn(__fmul_rn(in[i], in[i]), -1.0f);
  out[2 * n + i] = fmaf(in[i], in[i], -1.0f);
  out[3 * n + i] = __fdiv_rn(1.0f, in[i]);
  out[4 * n + i] = __expf(in[i]) + __logf(in[i]) + rsqrtf(in[i]);
}
