// The tokens that a generation starts from: given ones where they are kept, masked elsewhere.
//
//     tokens = mask token where mask is set, else the given token
//
// given [batch, count] int32, mask [batch, count] uint8 -> tokens [rows, count] int32, where rows
// is batch, or 2 batch with guidance (the same twice). error [1] becomes 1 if a kept token is no
// code; it counts as masked.
//
// Launch: one thread per token, grid = (blocks of 256 over count, rows).
// Memory: reads 5 bytes and writes 4 bytes per token.

extern "C" __global__ void __launch_bounds__(256)
    initial_tokens(const int* given, const unsigned char* mask, int batch, int count,
                   int codebook_size, int mask_token, int* tokens, int* error) {
  const int position = blockIdx.x * blockDim.x + threadIdx.x;
  if (position >= count) return;
  const int row = blockIdx.y;
  const int at = row % batch * count + position;
  int token = given[at];
  if (mask[at] != 0) {
    token = mask_token;
  } else if (token < 0 || token >= codebook_size) {
    token = mask_token;
    *error = 1;
  }
  tokens[row * count + position] = token;
}
