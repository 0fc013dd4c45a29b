// Device memory and pinned host memory: allocating, freeing, asking about it.

#include "allocations.h"
#include "capture.h"
#include "context.h"
#include "streams.h"

using namespace emulated;

namespace {

// Freeing waits for all work, as the real driver does: some of it may still use the memory.
void free_memory_at(uintptr_t address, bool device) {
  refuse_unsafe_call_in_capture();
  const Allocation& piece = allocation_at(address, device ? "device memory" : "pinned memory");
  const Memory expected = device ? Memory::device : Memory::pinned;
  if (piece.memory != expected)
    refuse(CUDA_ERROR_INVALID_VALUE, "this memory was not allocated this way");
  finish_streams(*piece.context);
  release(address);
  refuse_if_broken(*current_context());
}

void allocate_pinned(void** result, size_t bytes, unsigned flags) {
  refuse_unsafe_call_in_capture();
  if (bytes == 0) refuse(CUDA_ERROR_INVALID_VALUE, "zero bytes");
  Allocation& piece = allocate(Memory::pinned, bytes, flags);
  piece.mapped = flags & CU_MEMHOSTALLOC_DEVICEMAP;
  *result = reinterpret_cast<void*>(piece.address);
}

const Allocation& pinned_around(const void* pointer, CUresult otherwise) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  require_pinned_range(address, 1, otherwise);
  return *find_allocation(address);
}

bool overlaps_known_memory(uintptr_t start, size_t bytes) {
  for (const auto& [address, piece] : allocations())
    if (start < address + piece.bytes && address < start + bytes) return true;
  return false;
}

}  // namespace

extern "C" {

CUresult cuMemAlloc(CUdeviceptr* result, size_t bytes) {
  return call("cuMemAlloc", Needs::working_context, [&] {
    refuse_unsafe_call_in_capture();
    if (bytes == 0) refuse(CUDA_ERROR_INVALID_VALUE, "zero bytes");
    *result = allocate(Memory::device, bytes, 0).address;
  });
}

CUresult cuMemFree(CUdeviceptr address) {
  return call("cuMemFree", Needs::context, [&] {
    if (address) free_memory_at(address, true);
  });
}

CUresult cuMemGetInfo(size_t* free, size_t* total) {
  return call("cuMemGetInfo", Needs::working_context, [&] {
    *free = free_memory();
    *total = state().settings.memory_bytes;
  });
}

CUresult cuMemGetAddressRange(CUdeviceptr* base, size_t* bytes, CUdeviceptr address) {
  return call("cuMemGetAddressRange", Needs::working_context, [&] {
    require_device_range(address, 1, CUDA_ERROR_NOT_FOUND);
    const Allocation* piece = find_allocation(address);
    if (base) *base = piece->address;
    if (bytes) *bytes = piece->bytes;
  });
}

CUresult cuMemHostAlloc(void** result, size_t bytes, unsigned flags) {
  return call("cuMemHostAlloc", Needs::working_context,
              [&] { allocate_pinned(result, bytes, flags); });
}

CUresult cuMemAllocHost(void** result, size_t bytes) {
  return call("cuMemAllocHost", Needs::working_context,
              [&] { allocate_pinned(result, bytes, 0); });
}

CUresult cuMemFreeHost(void* pointer) {
  return call("cuMemFreeHost", Needs::context,
              [&] { free_memory_at(reinterpret_cast<uintptr_t>(pointer), false); });
}

CUresult cuMemHostRegister(void* pointer, size_t bytes, unsigned flags) {
  return call("cuMemHostRegister", Needs::working_context, [&] {
    refuse_unsafe_call_in_capture();
    const auto address = reinterpret_cast<uintptr_t>(pointer);
    if (!pointer || bytes == 0) refuse(CUDA_ERROR_INVALID_VALUE, "there is nothing to register");
    if (overlaps_known_memory(address, bytes))
      refuse(CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, "some of it is known already");
    register_host_memory(address, bytes, flags);
    allocations()[address].mapped = flags & CU_MEMHOSTREGISTER_DEVICEMAP;
  });
}

CUresult cuMemHostUnregister(void* pointer) {
  return call("cuMemHostUnregister", Needs::context, [&] {
    refuse_unsafe_call_in_capture();
    const Allocation& piece = pinned_around(pointer, CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    if (piece.memory != Memory::registered)
      refuse(CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED, "it was allocated, not registered");
    finish_streams(*piece.context);
    release(piece.address);
    refuse_if_broken(*current_context());
  });
}

CUresult cuMemHostGetFlags(unsigned* flags, void* pointer) {
  return call("cuMemHostGetFlags", Needs::working_context,
              [&] { *flags = pinned_around(pointer, CUDA_ERROR_INVALID_VALUE).flags; });
}

// Stricter than a 64-bit Linux system, where all pinned memory is mapped: a program that forgets
// the flag is told so.
CUresult cuMemHostGetDevicePointer(CUdeviceptr* result, void* pointer, unsigned flags) {
  return call("cuMemHostGetDevicePointer", Needs::working_context, [&] {
    if (flags) refuse(CUDA_ERROR_INVALID_VALUE, "flags must be 0");
    if (!pinned_around(pointer, CUDA_ERROR_INVALID_VALUE).mapped)
      refuse(CUDA_ERROR_INVALID_VALUE, "this memory was not allocated with DEVICEMAP");
    *result = reinterpret_cast<CUdeviceptr>(pointer);
  });
}

}  // extern "C"
