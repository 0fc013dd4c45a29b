// cuGetProcAddress: functions by name and version, which is how cuda-bindings finds all of them.
//
// A name may stand for several functions with different arguments, one for each range of versions.
// NVIDIA's cudaTypedefs.h has a type per name and version at which its arguments last changed;
// FUNCTION uses it, so a wrong version here or wrong arguments in the driver do not compile.

#pragma GCC visibility push(default)
#include <cudaTypedefs.h>
#pragma GCC visibility pop

#include <cstring>

#include "state.h"

namespace {

struct Entry {
  const char* name;
  int since;       // version from which on this is meant, until the name's next entry
  void* function;  // null: not emulated
};

#define FUNCTION(NAME, SINCE) \
  {#NAME, SINCE, reinterpret_cast<void*>(static_cast<PFN_##NAME##_v##SINCE>(NAME))},
#define NOT_EMULATED(NAME, SINCE) {#NAME, SINCE, nullptr},

const Entry kEntries[] = {
#include "functions.inc"
    // Since 12.0 the short name means the function with flags.
    {"cuGraphInstantiate", 12000, reinterpret_cast<void*>(cuGraphInstantiateWithFlags)},
};

const Entry* find(const char* name, int version) {
  const Entry* best = nullptr;
  for (const Entry& entry : kEntries) {
    if (std::strcmp(entry.name, name) != 0 || entry.since > version) continue;
    if (!best || entry.since > best->since) best = &entry;
  }
  return best && best->function ? best : nullptr;
}

}  // namespace

extern "C" {

CUresult cuGetProcAddress(const char* name, void** result, int version, cuuint64_t flags,
                          CUdriverProcAddressQueryResult* status) {
  const bool per_thread = flags & CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM;
  const Entry* found = per_thread ? nullptr : find(name, version);
  *result = found ? found->function : nullptr;
  if (status)
    *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

// NVRTC asks for tables of undocumented functions, and crashes where this function is missing.
CUresult cuGetExportTable(const void** table, const CUuuid*) {
  *table = nullptr;
  return CUDA_ERROR_NOT_FOUND;
}

}  // extern "C"
