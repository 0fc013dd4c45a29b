// Filling device memory with a value of one, two or four bytes.

#include <cstdint>

#include "allocations.h"
#include "capture.h"
#include "context.h"
#include "streams.h"

using namespace emulated;

namespace {

template <class Value>
void fill(CUdeviceptr start, Value value, size_t count) {
  require_device_range(start, count * sizeof(Value), CUDA_ERROR_ILLEGAL_ADDRESS);
  auto* values = reinterpret_cast<Value*>(start);
  for (size_t i = 0; i < count; ++i) values[i] = value;
}

template <class Value>
void fill_async(CUdeviceptr start, Value value, size_t count, const std::shared_ptr<Stream>& on) {
  if (count == 0) return;
  if (start % sizeof(Value)) refuse(CUDA_ERROR_INVALID_VALUE, "the address is not aligned");
  if (count > SIZE_MAX / sizeof(Value)) refuse(CUDA_ERROR_INVALID_VALUE, "too many values");
  require_device_range(start, count * sizeof(Value), CUDA_ERROR_INVALID_VALUE);
  Operation operation;
  operation.type = CU_GRAPH_NODE_TYPE_MEMSET;
  operation.run = [start, value, count] { fill(start, value, count); };
  submit(on, std::move(operation));
}

// On the default stream; not waited for, as the real driver does not for device memory.
template <class Value>
CUresult fill_now(const char* function, CUdeviceptr start, Value value, size_t count) {
  return call(function, Needs::working_context, [&] {
    const auto stream = current_context()->legacy;
    refuse_legacy_stream_in_capture(*stream);
    refuse_unsafe_call_in_capture();
    fill_async(start, value, count, stream);
  });
}

template <class Value>
CUresult fill_on(const char* function, CUdeviceptr start, Value value, size_t count,
                 CUstream stream) {
  return call(function, Needs::working_context,
              [&] { fill_async(start, value, count, stream_of(stream)); });
}

}  // namespace

extern "C" {

CUresult cuMemsetD8(CUdeviceptr start, unsigned char value, size_t count) {
  return fill_now("cuMemsetD8", start, value, count);
}

CUresult cuMemsetD16(CUdeviceptr start, unsigned short value, size_t count) {
  return fill_now("cuMemsetD16", start, value, count);
}

CUresult cuMemsetD32(CUdeviceptr start, unsigned value, size_t count) {
  return fill_now("cuMemsetD32", start, value, count);
}

CUresult cuMemsetD8Async(CUdeviceptr start, unsigned char value, size_t count, CUstream stream) {
  return fill_on("cuMemsetD8Async", start, value, count, stream);
}

CUresult cuMemsetD16Async(CUdeviceptr start, unsigned short value, size_t count, CUstream stream) {
  return fill_on("cuMemsetD16Async", start, value, count, stream);
}

CUresult cuMemsetD32Async(CUdeviceptr start, unsigned value, size_t count, CUstream stream) {
  return fill_on("cuMemsetD32Async", start, value, count, stream);
}

}  // extern "C"
