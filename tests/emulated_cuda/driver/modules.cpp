#include "modules.h"

#include <dlfcn.h>

#include <fstream>
#include <iterator>

#include "capture.h"
#include "context.h"
#include "streams.h"

namespace emulated {
namespace {

void load(CUmodule* result, const void* image) {
  refuse_unsafe_call_in_capture();
  Cubin cubin = parse_cubin(image);
  const int device = state().settings.architecture;
  if (!runs_on(cubin.architecture, device))
    refuse(CUDA_ERROR_NO_BINARY_FOR_GPU, "the cubin is for sm_" +
                                             std::to_string(cubin.architecture) +
                                             ", the device is sm_" + std::to_string(device));
  const auto module = std::make_shared<Module>();
  module->context = current_context().get();
  module->cubin = std::move(cubin);
  *result = module->handle = state().modules.add(module);
}

void load_file(CUmodule* result, const char* path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) refuse(CUDA_ERROR_FILE_NOT_FOUND, std::string("there is no file ") + path);
  const std::string image(std::istreambuf_iterator<char>(file), {});
  load(result, image.c_str());
}

void* host_build() {
  const std::string& path = state().settings.kernels;
  if (path.empty())
    refuse(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, "EMULATED_CUDA_KERNELS names no host build");
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) refuse(CUDA_ERROR_SHARED_OBJECT_INIT_FAILED, dlerror());
  return library;
}

const EmulatedKernel& host_kernel(const std::string& name) {
  const void* found = dlsym(host_build(), ("emulated_kernel_" + name).c_str());
  if (!found)
    refuse(CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND,
           "the cubin has the kernel " + name + ", the host build of the kernels does not");
  return *static_cast<const EmulatedKernel*>(found);
}

// A cubin made from an older source than the host build differs from it, if the arguments changed.
void require_same_arguments(const CubinKernel& cubin, const EmulatedKernel& host) {
  bool same = cubin.parameter_bytes == host.argument_bytes &&
              cubin.parameters.size() == host.argument_count;
  for (unsigned i = 0; same && i < host.argument_count; ++i)
    same = cubin.parameters[i].offset == host.offsets[i] &&
           cubin.parameters[i].bytes == host.sizes[i];
  if (same) return;
  refuse(CUDA_ERROR_INVALID_IMAGE,
         cubin.name + " takes " + std::to_string(cubin.parameters.size()) + " arguments of " +
             std::to_string(cubin.parameter_bytes) + " bytes in the cubin and " +
             std::to_string(host.argument_count) + " of " + std::to_string(host.argument_bytes) +
             " bytes in the host build, or of other sizes: one of the two is stale");
}

std::shared_ptr<Function> new_function(const std::shared_ptr<Module>& module, const char* name) {
  const CubinKernel* kernel = module->cubin.kernel(name);
  if (!kernel)
    refuse(CUDA_ERROR_NOT_FOUND, std::string("the module has no kernel ") + name);
  const EmulatedKernel& host = host_kernel(name);
  require_same_arguments(*kernel, host);
  const auto function = std::make_shared<Function>();
  function->module = module;
  function->kernel = *kernel;
  function->host = &host;
  function->dynamic_shared_limit = kSharedPerBlock - static_cast<int>(kernel->static_shared);
  return function;
}

CUfunction function_named(const std::shared_ptr<Module>& module, const char* name) {
  for (const auto& [handle, function] : state().functions)
    if (function->module == module && function->kernel.name == name) return handle;
  const auto function = new_function(module, name);
  return function->handle = state().functions.add(function);
}

int attribute(const Function& function, CUfunction_attribute which) {
  switch (which) {
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK:
      return static_cast<int>(function.kernel.most_threads);
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES:
      return static_cast<int>(function.kernel.static_shared);
    case CU_FUNC_ATTRIBUTE_NUM_REGS:
      return static_cast<int>(function.kernel.registers);
    case CU_FUNC_ATTRIBUTE_PTX_VERSION:
    case CU_FUNC_ATTRIBUTE_BINARY_VERSION:
      return function.module->cubin.architecture;
    case CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES:
      return function.dynamic_shared_limit;
    case CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT:
      return -1;
    default:  // constant and local memory among others, which only a real GPU could show
      return 0;
  }
}

void set_attribute(Function& function, CUfunction_attribute which, int value) {
  if (which == CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT) return;
  if (which != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
    refuse(CUDA_ERROR_INVALID_VALUE, "this attribute cannot be set");
  const int most = shared_per_block_when_asked() - static_cast<int>(function.kernel.static_shared);
  if (value < 0 || value > most)
    refuse(CUDA_ERROR_INVALID_VALUE,
           "at most " + std::to_string(most) + " bytes of dynamic shared memory are possible");
  function.dynamic_shared_limit = value;
}

}  // namespace

int shared_per_block_when_asked() {
  switch (state().settings.architecture) {
    case 70: case 72: return 96 << 10;
    case 75: return 64 << 10;
    case 80: case 87: return 163 << 10;
    case 90: case 100: case 101: case 103: case 110: return 227 << 10;
    default: return 99 << 10;
  }
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuModuleLoad(CUmodule* result, const char* path) {
  return call("cuModuleLoad", Needs::working_context, [&] { load_file(result, path); });
}

CUresult cuModuleLoadData(CUmodule* result, const void* image) {
  return call("cuModuleLoadData", Needs::working_context, [&] { load(result, image); });
}

// Options are for the compiler of PTX, which is not emulated.
CUresult cuModuleLoadDataEx(CUmodule* result, const void* image, unsigned, CUjit_option*, void**) {
  return call("cuModuleLoadDataEx", Needs::working_context, [&] { load(result, image); });
}

CUresult cuModuleUnload(CUmodule handle) {
  return call("cuModuleUnload", Needs::context, [&] {
    refuse_unsafe_call_in_capture();
    const auto module = state().modules.get(handle, "module");
    finish_streams(*module->context);
    state().functions.remove_if([&](const Function& f) { return f.module == module; });
    state().modules.remove(handle);
    refuse_if_broken(*current_context());
  });
}

CUresult cuModuleGetFunction(CUfunction* result, CUmodule handle, const char* name) {
  return call("cuModuleGetFunction", Needs::working_context, [&] {
    *result = function_named(state().modules.get(handle, "module"), name);
  });
}

CUresult cuFuncGetName(const char** result, CUfunction function) {
  return call("cuFuncGetName", Needs::initialization, [&] {
    *result = state().functions.get(function, "function")->kernel.name.c_str();
  });
}

CUresult cuFuncGetAttribute(int* result, CUfunction_attribute which, CUfunction function) {
  return call("cuFuncGetAttribute", Needs::working_context, [&] {
    *result = attribute(*state().functions.get(function, "function"), which);
  });
}

CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute which, int value) {
  return call("cuFuncSetAttribute", Needs::working_context, [&] {
    set_attribute(*state().functions.get(function, "function"), which, value);
  });
}

CUresult cuFuncSetCacheConfig(CUfunction function, CUfunc_cache) {
  return call("cuFuncSetCacheConfig", Needs::working_context,
              [&] { state().functions.get(function, "function"); });
}

}  // extern "C"
