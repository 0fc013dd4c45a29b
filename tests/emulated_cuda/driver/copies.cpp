#include "copies.h"

#include <cstring>

#include "allocations.h"
#include "capture.h"
#include "context.h"
#include "streams.h"

namespace emulated {
namespace {

End device_end(CUdeviceptr address) { return {Place::device, address}; }

// Host memory is pinned where the driver knows it. Device memory is not host memory.
End host_end(const void* pointer) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  const Allocation* piece = find_allocation(address);
  if (!piece || address == piece->address + piece->bytes) return {Place::pageable, address};
  if (piece->memory == Memory::device)
    refuse(CUDA_ERROR_INVALID_VALUE, "device memory was given as host memory");
  return {Place::pinned, address};
}

// Where the address alone says what it is.
End any_end(CUdeviceptr address) {
  const Allocation* piece = find_allocation(address);
  if (piece && piece->memory == Memory::device) return device_end(address);
  return host_end(reinterpret_cast<const void*>(address));
}

void require_end(const End& end, size_t bytes, CUresult error) {
  if (end.place == Place::device) require_device_range(end.address, bytes, error);
  if (end.place == Place::pinned) require_pinned_range(end.address, bytes, error);
}

void require_ends(const Copy& copy, CUresult error) {
  require_end(copy.destination, copy.bytes, error);
  require_end(copy.source, copy.bytes, error);
}

// Memory may have been freed since the copy was submitted or captured, hence the second check.
void run(const Copy& copy) {
  require_ends(copy, CUDA_ERROR_ILLEGAL_ADDRESS);
  std::memmove(reinterpret_cast<void*>(copy.destination.address),
               reinterpret_cast<const void*>(copy.source.address), copy.bytes);
}

Operation operation_for(const Copy& copy) {
  Operation operation;
  operation.type = CU_GRAPH_NODE_TYPE_MEMCPY;
  operation.copy = std::make_shared<Copy>(copy);
  operation.run = [copy] { run(copy); };
  return operation;
}

// Ordinary memory is read before the call returns, into a buffer of the driver's.
Operation staged_operation_for(const Copy& copy) {
  const char* source = reinterpret_cast<const char*>(copy.source.address);
  const auto staged = std::make_shared<std::string>(source, copy.bytes);
  Operation operation = operation_for(copy);
  operation.run = [copy, staged] {
    Copy from_stage = copy;
    from_stage.source.address = reinterpret_cast<uintptr_t>(staged->data());
    run(from_stage);
  };
  return operation;
}

bool touches_pageable(const Copy& copy) {
  return copy.source.place == Place::pageable || copy.destination.place == Place::pageable;
}

// Stricter than a real driver, which may accept ordinary memory: a graph reads and writes it at
// every launch, long after whoever owned it may have let it go.
void refuse_pageable_in_capture(const Stream& stream, const Copy& copy) {
  if (stream.capture && touches_pageable(copy))
    spoil(*stream.capture, CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
          "a copy of memory that is not pinned cannot be captured");
}

void copy_async(const Copy& copy, CUstream handle) {
  const auto stream = stream_of(handle);
  if (copy.bytes == 0) return;
  refuse_pageable_in_capture(*stream, copy);
  require_ends(copy, CUDA_ERROR_INVALID_VALUE);
  const bool staged = copy.source.place == Place::pageable;
  submit(stream, staged ? staged_operation_for(copy) : operation_for(copy));
  // The call returns only once ordinary memory holds the result.
  if (copy.destination.place == Place::pageable) synchronize(stream, "the end of a copy");
}

// On the default stream, and waited for unless both ends are device memory.
void copy_now(const Copy& copy) {
  const auto stream = current_context()->legacy;
  refuse_legacy_stream_in_capture(*stream);
  refuse_unsafe_call_in_capture();
  if (copy.bytes == 0) return;
  require_ends(copy, CUDA_ERROR_INVALID_VALUE);
  submit(stream, operation_for(copy));
  const bool on_device =
      copy.source.place == Place::device && copy.destination.place == Place::device;
  if (!on_device) synchronize(stream, "the end of a copy");
}

}  // namespace
}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuMemcpyHtoD(CUdeviceptr destination, const void* source, size_t bytes) {
  return call("cuMemcpyHtoD", Needs::working_context,
              [&] { copy_now({device_end(destination), host_end(source), bytes}); });
}

CUresult cuMemcpyDtoH(void* destination, CUdeviceptr source, size_t bytes) {
  return call("cuMemcpyDtoH", Needs::working_context,
              [&] { copy_now({host_end(destination), device_end(source), bytes}); });
}

CUresult cuMemcpyDtoD(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  return call("cuMemcpyDtoD", Needs::working_context,
              [&] { copy_now({device_end(destination), device_end(source), bytes}); });
}

CUresult cuMemcpy(CUdeviceptr destination, CUdeviceptr source, size_t bytes) {
  return call("cuMemcpy", Needs::working_context,
              [&] { copy_now({any_end(destination), any_end(source), bytes}); });
}

CUresult cuMemcpyHtoDAsync(CUdeviceptr destination, const void* source, size_t bytes,
                           CUstream stream) {
  return call("cuMemcpyHtoDAsync", Needs::working_context,
              [&] { copy_async({device_end(destination), host_end(source), bytes}, stream); });
}

CUresult cuMemcpyDtoHAsync(void* destination, CUdeviceptr source, size_t bytes, CUstream stream) {
  return call("cuMemcpyDtoHAsync", Needs::working_context,
              [&] { copy_async({host_end(destination), device_end(source), bytes}, stream); });
}

CUresult cuMemcpyDtoDAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes,
                           CUstream stream) {
  return call("cuMemcpyDtoDAsync", Needs::working_context,
              [&] { copy_async({device_end(destination), device_end(source), bytes}, stream); });
}

CUresult cuMemcpyAsync(CUdeviceptr destination, CUdeviceptr source, size_t bytes,
                       CUstream stream) {
  return call("cuMemcpyAsync", Needs::working_context,
              [&] { copy_async({any_end(destination), any_end(source), bytes}, stream); });
}

}  // extern "C"
