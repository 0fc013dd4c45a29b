#include "launch.h"

#include <algorithm>

#include "allocations.h"
#include "arguments.h"
#include "capture.h"
#include "context.h"
#include "kernel_faults.h"
#include "modules.h"
#include "streams.h"

namespace emulated {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlock[3] = {1024, 1024, 64};
constexpr unsigned kMostGrid[3] = {0x7fffffff, 65535, 65535};
constexpr unsigned kRegistersPerBlock = 65536;
constexpr unsigned kWarp = 32;

unsigned rounded_up(unsigned value, unsigned step) { return (value + step - 1) / step * step; }

void require_shape(const unsigned shape[3], const unsigned most[3], const char* what) {
  for (int axis = 0; axis < 3; ++axis)
    if (shape[axis] == 0 || shape[axis] > most[axis])
      refuse(CUDA_ERROR_INVALID_VALUE,
             std::string(what) + " has " + std::to_string(shape[axis]) + " in dimension " +
                 std::to_string(axis) + "; 1 to " + std::to_string(most[axis]) + " are possible");
}

uint64_t threads_of(const unsigned block[3]) { return uint64_t{block[0]} * block[1] * block[2]; }

void require_threads(uint64_t threads, uint64_t most) {
  if (threads > most)
    refuse(CUDA_ERROR_INVALID_VALUE, "a block has " + std::to_string(threads) + " threads; " +
                                         std::to_string(most) + " are possible");
}

// Registers are given out to warps, in units of 256.
void require_registers(const CubinKernel& kernel, uint64_t threads) {
  const auto warps = rounded_up(static_cast<unsigned>(threads), kWarp) / kWarp;
  const unsigned registers = warps * rounded_up(kernel.registers * kWarp, 256);
  if (registers > kRegistersPerBlock)
    refuse(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES,
           kernel.name + " takes " + std::to_string(kernel.registers) +
               " registers per thread, too many for " + std::to_string(threads) + " threads");
}

void require_shared(const Function& function, unsigned dynamic) {
  if (dynamic <= static_cast<unsigned>(std::max(function.dynamic_shared_limit, 0))) return;
  refuse(CUDA_ERROR_INVALID_VALUE,
         function.kernel.name + " asks for " + std::to_string(dynamic) +
             " bytes of dynamic shared memory beside " +
             std::to_string(function.kernel.static_shared) + " static ones; its limit is " +
             std::to_string(function.dynamic_shared_limit));
}

void require_possible(const Launch& launch) {
  require_shape(launch.grid, kMostGrid, "the grid");
  require_shape(launch.block, kMostBlock, "the block");
  const uint64_t threads = threads_of(launch.block);
  require_threads(threads, std::min(kMostThreads, launch.function->kernel.most_threads));
  require_registers(launch.function->kernel, threads);
  require_shared(*launch.function, launch.dynamic_shared);
}

void simulate_failure() {
  const uint64_t allowed = state().settings.fail_after_launches;
  if (allowed && state().totals.kernels_run == allowed) {
    ++state().totals.kernels_run;  // once: a new context works
    refuse(static_cast<CUresult>(state().settings.fail_with), "EMULATED_CUDA_FAIL_AFTER_LAUNCHES");
  }
}

// A graph may outlive the module of its kernels, and must not be launched then.
void require_loaded(const Function& function) {
  if (!state().functions.has(function.handle))
    refuse(CUDA_ERROR_ILLEGAL_ADDRESS, "the module of " + function.kernel.name + " was unloaded");
}

void run(const Launch& launch) {
  require_loaded(*launch.function);
  simulate_failure();
  ++state().totals.kernels_run;
  const EmulatedKernel& kernel = *launch.function->host;
  {
    const KernelFaults named(kernel.name);
    if (kernel.launch(launch.grid, launch.block, launch.dynamic_shared, launch.arguments.data()))
      refuse(CUDA_ERROR_LAUNCH_FAILED, std::string(kernel.name) + " failed");
  }
  check_red_zones(std::string("found after ") + kernel.name);
}

Operation operation_for(const std::shared_ptr<Launch>& launch) {
  Operation operation;
  operation.type = CU_GRAPH_NODE_TYPE_KERNEL;
  operation.launch = launch;
  operation.run = [launch] { run(*launch); };
  return operation;
}

void submit_launch(const std::shared_ptr<Launch>& launch, CUstream handle) {
  const auto stream = stream_of(handle);
  require_current_context(*stream);
  if (launch->function->module->context != stream->context)
    refuse(CUDA_ERROR_INVALID_HANDLE, "the function belongs to another context");
  require_possible(*launch);
  submit(stream, operation_for(launch));
}

Operation host_operation(CUhostFn function, void* argument) {
  Operation operation;
  operation.type = CU_GRAPH_NODE_TYPE_HOST;
  operation.run = [function, argument] { run_host_function(function, argument); };
  return operation;
}

}  // namespace
}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                        unsigned block_x, unsigned block_y, unsigned block_z,
                        unsigned dynamic_shared, CUstream stream, void** arguments,
                        void** extra) {
  return call("cuLaunchKernel", Needs::working_context, [&] {
    const auto launch = std::make_shared<Launch>();
    launch->function = state().functions.get(function, "function");
    const unsigned grid[3] = {grid_x, grid_y, grid_z};
    const unsigned block[3] = {block_x, block_y, block_z};
    std::copy(grid, grid + 3, launch->grid);
    std::copy(block, block + 3, launch->block);
    launch->dynamic_shared = dynamic_shared;
    set_arguments(*launch, arguments, extra);
    submit_launch(launch, stream);
  });
}

// pycuda's prepared calls begin with this, before a cuLaunchKernel that gets the shape again. It is
// deprecated, and no document says that it may be called during a capture.
CUresult cuFuncSetBlockShape(CUfunction function, int x, int y, int z) {
  return call("cuFuncSetBlockShape", Needs::working_context, [&] {
    refuse_unsafe_call_in_capture();
    state().functions.get(function, "function");
    const unsigned block[3] = {static_cast<unsigned>(x), static_cast<unsigned>(y),
                               static_cast<unsigned>(z)};
    require_shape(block, kMostBlock, "the block");
    require_threads(threads_of(block), kMostThreads);
  });
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* argument) {
  return call("cuLaunchHostFunc", Needs::working_context,
              [&] { submit(stream_of(stream), host_operation(function, argument)); });
}

}  // extern "C"
