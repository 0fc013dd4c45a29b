// What a host build of a kernel file exports and the emulated driver looks up by name.
#pragma once

struct EmulatedKernel {
  const char* name;
  unsigned argument_count;
  unsigned argument_bytes;    // packed size, as in the cubin's parameter block
  const unsigned* offsets;    // byte offset of each argument in that block
  const unsigned* sizes;      // bytes of each argument
  unsigned static_shared_bytes;  // of all kernels of the file together: an upper bound
  // Runs every block of the grid; returns 0, or 1 after printing why (for example a barrier that
  // only some threads reach).
  int (*launch)(const unsigned grid[3], const unsigned block[3], unsigned dynamic_shared_bytes,
                const unsigned char* arguments);
};

// One per kernel: extern "C" const EmulatedKernel emulated_kernel_<name>;
