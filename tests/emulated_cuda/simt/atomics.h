// Atomic operations, for the types CUDA has them for. Nothing runs at the same time as a thread,
// so that reading and writing suffices. They return the old value.
#pragma once

#define SIMT_ATOMIC(NAME, TYPE, NEXT)             \
  inline TYPE NAME(TYPE* address, TYPE operand) { \
    const TYPE old = *address;                    \
    *address = (NEXT);                            \
    return old;                                   \
  }

#define SIMT_ATOMIC_FOR_INTEGERS(NAME, NEXT) \
  SIMT_ATOMIC(NAME, int, NEXT)               \
  SIMT_ATOMIC(NAME, unsigned, NEXT)          \
  SIMT_ATOMIC(NAME, unsigned long long, NEXT)

SIMT_ATOMIC(atomicAdd, int, int(unsigned(old) + unsigned(operand)))
SIMT_ATOMIC(atomicAdd, unsigned, old + operand)
SIMT_ATOMIC(atomicAdd, unsigned long long, old + operand)
SIMT_ATOMIC(atomicAdd, float, old + operand)
SIMT_ATOMIC(atomicAdd, double, old + operand)

SIMT_ATOMIC(atomicSub, int, int(unsigned(old) - unsigned(operand)))
SIMT_ATOMIC(atomicSub, unsigned, old - operand)

SIMT_ATOMIC_FOR_INTEGERS(atomicMax, old > operand ? old : operand)
SIMT_ATOMIC(atomicMax, long long, old > operand ? old : operand)
SIMT_ATOMIC_FOR_INTEGERS(atomicMin, old < operand ? old : operand)
SIMT_ATOMIC(atomicMin, long long, old < operand ? old : operand)

SIMT_ATOMIC_FOR_INTEGERS(atomicAnd, old & operand)
SIMT_ATOMIC_FOR_INTEGERS(atomicOr, old | operand)
SIMT_ATOMIC_FOR_INTEGERS(atomicXor, old ^ operand)

SIMT_ATOMIC_FOR_INTEGERS(atomicExch, operand)
SIMT_ATOMIC(atomicExch, float, operand)

SIMT_ATOMIC(atomicInc, unsigned, old >= operand ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, unsigned, old == 0 || old > operand ? operand : old - 1)

#define SIMT_COMPARE_AND_SWAP(TYPE)                                       \
  inline TYPE atomicCAS(TYPE* address, TYPE expected, TYPE replacement) { \
    const TYPE old = *address;                                            \
    if (old == expected) *address = replacement;                          \
    return old;                                                           \
  }

SIMT_COMPARE_AND_SWAP(int)
SIMT_COMPARE_AND_SWAP(unsigned)
SIMT_COMPARE_AND_SWAP(unsigned short)
SIMT_COMPARE_AND_SWAP(unsigned long long)
