// Activations of policies, in float64: these few numbers decide a whole step. As activations.py.
#pragma once

__device__ __forceinline__ double sigmoid(double x) {
  return 0.5 * (tanh(0.5 * x) + 1);  // never overflows
}

__device__ __forceinline__ double softplus(double x) {
  return fmax(x, 0.0) + log1p(exp(-fabs(x)));
}
