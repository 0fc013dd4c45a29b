// What test_simt.py runs.
#include "arguments.cu"
#include "atomics.cu"
#include "barriers.cu"
#include "indices.cu"
#include "misuse.cu"
#include "orders.cu"
#include "shared.cu"
#include "warps.cu"
