// Starting the driver, and what there is to know about its one device.

#pragma GCC visibility push(default)
#include <cudaProfiler.h>
#pragma GCC visibility pop

#include <cstdio>
#include <cstring>

#include "modules.h"
#include "report.h"
#include "state.h"

using namespace emulated;

namespace {

int architecture() { return state().settings.architecture; }

void start(unsigned flags) {
  if (flags) refuse(CUDA_ERROR_INVALID_VALUE, "flags must be 0");
  if (state().initialized) return;
  state().settings = settings_from_environment();
  state().initialized = true;
  write_report_at_exit();
}

void require_device(CUdevice device) {
  if (device != 0) refuse(CUDA_ERROR_INVALID_DEVICE, "there is one device, number 0");
}

// Figures that no program here depends on are those of a small GPU; unlisted ones are 0.
int attribute(CUdevice_attribute which) {
  switch (which) {
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: return architecture() / 10;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: return architecture() % 10;
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: return state().settings.integrated;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY:
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS:
    case CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT:
    case CU_DEVICE_ATTRIBUTE_GPU_OVERLAP: return 1;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X:
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: return 1024;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: return 64;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: return 0x7fffffff;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y:
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: return 65535;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: return 32;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: return 8;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: return 1536;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK:
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: return 65536;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: return kSharedPerBlock;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
      return shared_per_block_when_asked();
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR:
      return shared_per_block_when_asked() + 1024;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: return 64 << 10;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: return 1000000;  // kHz
    default: return 0;
  }
}

}  // namespace

extern "C" {

CUresult cuInit(unsigned flags) {
  return call("cuInit", Needs::nothing, [&] { start(flags); });
}

CUresult cuDriverGetVersion(int* version) {
  *version = CUDA_VERSION;
  return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int* count) {
  return call("cuDeviceGetCount", Needs::initialization, [&] { *count = 1; });
}

CUresult cuDeviceGet(CUdevice* device, int ordinal) {
  return call("cuDeviceGet", Needs::initialization, [&] {
    require_device(ordinal);
    *device = 0;
  });
}

CUresult cuDeviceGetName(char* name, int room, CUdevice device) {
  return call("cuDeviceGetName", Needs::initialization, [&] {
    require_device(device);
    std::snprintf(name, static_cast<size_t>(room), "Emulated CUDA device sm_%d", architecture());
  });
}

CUresult cuDeviceTotalMem(size_t* bytes, CUdevice device) {
  return call("cuDeviceTotalMem", Needs::initialization, [&] {
    require_device(device);
    *bytes = state().settings.memory_bytes;
  });
}

CUresult cuDeviceComputeCapability(int* major, int* minor, CUdevice device) {
  return call("cuDeviceComputeCapability", Needs::initialization, [&] {
    require_device(device);
    *major = architecture() / 10;
    *minor = architecture() % 10;
  });
}

CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute which, CUdevice device) {
  return call("cuDeviceGetAttribute", Needs::initialization, [&] {
    require_device(device);
    *value = attribute(which);
  });
}

// A program may mark the part it wants profiled; nobody profiles here.
CUresult cuProfilerStart(void) { return CUDA_SUCCESS; }
CUresult cuProfilerStop(void) { return CUDA_SUCCESS; }

}  // extern "C"
