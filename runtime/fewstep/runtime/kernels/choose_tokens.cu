// The tokens that a step decides, of positions in a known order:
//
//     given[n] = -1          where first <= ranks[n] < last
//                tokens[n]   elsewhere
//
// tokens, ranks, given [batch, count] int32; first, last [batch] int32.
//
// Launch: one thread per token, grid = (ceil(count / 256), batch).
// Memory: 12 bytes per token.

extern "C" __global__ void __launch_bounds__(256)
    choose_tokens(const int* tokens, const int* ranks, const int* first, const int* last, int count,
                  int* given) {
  const int position = blockIdx.x * blockDim.x + threadIdx.x, image = blockIdx.y;
  if (position >= count) return;
  const size_t at = static_cast<size_t>(image) * count + position;
  const bool chosen = first[image] <= ranks[at] && ranks[at] < last[image];
  given[at] = chosen ? -1 : tokens[at];
}
