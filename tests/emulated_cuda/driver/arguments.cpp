#include "arguments.h"

#include <sys/mman.h>

#include <cstring>

#include "address_space.h"
#include "allocations.h"
#include "modules.h"

namespace emulated {
namespace {

// The arguments as one block: `extra` is a list of names and values that ends with a name.
std::vector<unsigned char> packed_arguments(const EmulatedKernel& kernel, void** extra) {
  const void* buffer = nullptr;
  size_t bytes = 0;
  for (; *extra != CU_LAUNCH_PARAM_END; extra += 2) {
    if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER) buffer = extra[1];
    if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE) bytes = *static_cast<size_t*>(extra[1]);
  }
  if (bytes != kernel.argument_bytes)
    refuse(CUDA_ERROR_INVALID_VALUE, std::string(kernel.name) + " takes " +
                                         std::to_string(kernel.argument_bytes) +
                                         " bytes of arguments, not " + std::to_string(bytes));
  const auto* start = static_cast<const unsigned char*>(buffer);
  return {start, start + bytes};
}

// The arguments each by its own pointer.
std::vector<unsigned char> gathered_arguments(const EmulatedKernel& kernel, void** pointers) {
  std::vector<unsigned char> result(kernel.argument_bytes);
  for (unsigned i = 0; i < kernel.argument_count; ++i)
    std::memcpy(result.data() + kernel.offsets[i], pointers[i], kernel.sizes[i]);
  return result;
}

// Whether this process has memory there. Small numbers do not count: they may well be numbers.
bool is_mapped_in_process(uintptr_t address) {
  if (address < (uintptr_t{1} << 32) || address >= (uintptr_t{1} << 47)) return false;
  unsigned char resident;
  return mincore(reinterpret_cast<void*>(address / page_bytes() * page_bytes()), 1, &resident) == 0;
}

// What is wrong with the value as an address; null where nothing is, or where it is no address.
const char* fault_of(uintptr_t value) {
  const Allocation* piece = find_allocation(value);
  if (piece && piece->usable_by_kernels()) return nullptr;
  if (piece) return "pinned memory that was not mapped for the device";
  // Freed device memory is for the kernel to fault on, if it touches it.
  if (is_in_address_space(value) || !is_mapped_in_process(value)) return nullptr;
  return "ordinary host memory";
}

void require_no_host_pointers(const EmulatedKernel& kernel, const unsigned char* arguments) {
  for (unsigned i = 0; i < kernel.argument_count; ++i) {
    uintptr_t value;
    if (kernel.sizes[i] != sizeof value) continue;
    std::memcpy(&value, arguments + kernel.offsets[i], sizeof value);
    if (const char* fault = fault_of(value))
      refuse(CUDA_ERROR_INVALID_VALUE, "argument " + std::to_string(i) + " of " + kernel.name +
                                           " is an address of " + fault);
  }
}

}  // namespace

void set_arguments(Launch& launch, void** pointers, void** extra) {
  const EmulatedKernel& kernel = *launch.function->host;
  if (pointers && extra) refuse(CUDA_ERROR_INVALID_VALUE, "arguments were given twice");
  if (!pointers && !extra && kernel.argument_count)
    refuse(CUDA_ERROR_INVALID_VALUE, "there are no arguments");
  if (pointers) launch.arguments = gathered_arguments(kernel, pointers);
  if (extra) launch.arguments = packed_arguments(kernel, extra);
  require_no_host_pointers(kernel, launch.arguments.data());
  for (unsigned i = 0; i < kernel.argument_count; ++i)
    launch.argument_pointers.push_back(launch.arguments.data() + kernel.offsets[i]);
}

}  // namespace emulated
