// Everything a kernel file is compiled with on the host. What it includes itself (cuda_fp16.h,
// math_constants.h) comes with its text.
//
// Blocks run one after the other, and of a block one thread at a time, until it waits for others.
// Between two such places a thread is never interrupted. Therefore this cannot show
// - races as such: EMULATED_CUDA_ORDER (order.h) tries some orders, of whole stretches between
//   barriers, and a race may be without effect in all of them;
// - threads that wait for others by reading memory in a loop: they hang;
// - which __syncthreads() a thread is at: like the device, it counts arrivals, wherever they are;
// - anything about memory: caches, fences, alignment (beyond what the processor insists on), writes
//   past a static shared array, registers, occupancy, time;
// - bits of the device's approximations (__expf, rsqrtf, expf, …), which differ from the C
//   library's; + - * / sqrt fma and conversions by intrinsics have the same bits, a plain (int)x
//   beyond the range of int has not.
//
// It is stricter than the device in one place: a shuffle from a lane that does not take part is
// reported even if the undefined value is then not used.
#pragma once

#include "atomics.h"
#include "export.h"
#include "intrinsics.h"
#include "vector_types.h"
// Last: it defines CUDA's qualifiers as macros, and the C++ library spells __noinline__ too.
#include "builtins.h"
