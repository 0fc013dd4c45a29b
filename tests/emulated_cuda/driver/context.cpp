#include "context.h"

#include "allocations.h"
#include "capture.h"
#include "events.h"
#include "graphs.h"
#include "modules.h"
#include "streams.h"

namespace emulated {
namespace {

thread_local std::vector<std::shared_ptr<Context>> stack;

std::shared_ptr<Context> primary;

void open(const std::shared_ptr<Context>& context) {
  context->alive = true;
  context->error = CUDA_SUCCESS;
  context->legacy = make_legacy_stream(context);
  context->streams = {context->legacy};
}

std::shared_ptr<Context> new_context() {
  const auto context = std::make_shared<Context>();
  context->handle = state().contexts.add(context);
  return context;
}

std::shared_ptr<Context> existing(CUcontext handle) {
  for (const auto& [known, context] : state().contexts)
    if (known == handle) return context;
  refuse(CUDA_ERROR_INVALID_CONTEXT, "no such context");
}

void count_released(const Census& before, const Census& after) {
  Census& released = state().released_with_context;
  released.device_allocations += before.device_allocations - after.device_allocations;
  released.device_bytes += before.device_bytes - after.device_bytes;
  released.pinned_allocations += before.pinned_allocations - after.pinned_allocations;
  released.pinned_bytes += before.pinned_bytes - after.pinned_bytes;
  released.streams += before.streams - after.streams;
  released.events += before.events - after.events;
  released.modules += before.modules - after.modules;
}

// A context takes what was made in it along. Graphs belong to no context and stay.
void release_everything_of(const Context& context) {
  const Census before = census();
  state().streams.remove_if([&](const Stream& stream) { return stream.context == &context; });
  state().events.remove_if([&](const Event& event) { return event.context == &context; });
  state().functions.remove_if([&](const Function& f) { return f.module->context == &context; });
  state().modules.remove_if([&](const Module& module) { return module.context == &context; });
  release_allocations_of(context);
  count_released(before, census());
}

void close(const std::shared_ptr<Context>& context) {
  drop_captures_of(*context);
  finish_streams(*context);
  release_everything_of(*context);
  context->streams.clear();
  context->legacy.reset();
  context->alive = false;
}

// Destroying the calling thread's current context also ends its being current there. Threads with
// it elsewhere on their stacks get an error when they use it.
void destroy(const std::shared_ptr<Context>& context) {
  if (context == primary) refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is released");
  if (!context->alive) refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context is gone already");
  close(context);
  if (!stack.empty() && stack.back() == context) stack.pop_back();
}

void require_device(CUdevice device) {
  if (device != 0) refuse(CUDA_ERROR_INVALID_DEVICE, "there is one device, number 0");
}

}  // namespace

std::shared_ptr<Context> current_context() {
  if (stack.empty()) refuse(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
  if (!stack.back()->alive)
    refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "this thread's current context was destroyed");
  return stack.back();
}

void break_context(Context& context, CUresult error, const std::string& reason) {
  if (context.error != CUDA_SUCCESS) return;
  context.error = error;
  say("the context is lost: " + reason + ": " + error_name(error));
}

void refuse_if_broken(const Context& context) {
  if (context.error != CUDA_SUCCESS) refuse(context.error);
}

}  // namespace emulated

using namespace emulated;

extern "C" {

CUresult cuCtxCreate(CUcontext* result, CUctxCreateParams* parameters, unsigned flags,
                     CUdevice device) {
  return call("cuCtxCreate", Needs::initialization, [&] {
    require_device(device);
    if (parameters) refuse(CUDA_ERROR_NOT_SUPPORTED, "creation parameters are not emulated");
    const auto context = new_context();
    context->flags = flags;
    open(context);
    stack.push_back(context);
    *result = context->handle;
  });
}

CUresult cuCtxDestroy(CUcontext handle) {
  return call("cuCtxDestroy", Needs::initialization, [&] { destroy(existing(handle)); });
}

// A context has one user here, so leaving it destroys it.
CUresult cuCtxDetach(CUcontext handle) {
  return call("cuCtxDetach", Needs::initialization, [&] { destroy(existing(handle)); });
}

CUresult cuCtxPushCurrent(CUcontext handle) {
  return call("cuCtxPushCurrent", Needs::initialization, [&] {
    const auto context = existing(handle);
    if (!context->alive) refuse(CUDA_ERROR_CONTEXT_IS_DESTROYED, "the context is gone");
    stack.push_back(context);
  });
}

CUresult cuCtxPopCurrent(CUcontext* result) {
  return call("cuCtxPopCurrent", Needs::initialization, [&] {
    if (stack.empty()) refuse(CUDA_ERROR_INVALID_CONTEXT, "this thread has no current context");
    if (result) *result = stack.back()->handle;
    stack.pop_back();
  });
}

CUresult cuCtxGetCurrent(CUcontext* result) {
  return call("cuCtxGetCurrent", Needs::initialization,
              [&] { *result = stack.empty() ? nullptr : stack.back()->handle; });
}

CUresult cuCtxSetCurrent(CUcontext handle) {
  return call("cuCtxSetCurrent", Needs::initialization, [&] {
    const auto context = handle ? existing(handle) : nullptr;
    if (!stack.empty()) stack.pop_back();
    if (context) stack.push_back(context);
  });
}

CUresult cuCtxGetDevice(CUdevice* device) {
  return call("cuCtxGetDevice", Needs::context, [&] { *device = 0; });
}

CUresult cuCtxGetApiVersion(CUcontext handle, unsigned* version) {
  return call("cuCtxGetApiVersion", Needs::initialization, [&] {
    if (handle) existing(handle);
    *version = 3020;
  });
}

CUresult cuCtxSynchronize(void) {
  return call("cuCtxSynchronize", Needs::working_context, [&] {
    const auto context = current_context();
    refuse_captured_context(*context);
    finish_streams(*context);
    check_red_zones("found at cuCtxSynchronize");
    refuse_if_broken(*context);
  });
}

CUresult cuDevicePrimaryCtxRetain(CUcontext* result, CUdevice device) {
  return call("cuDevicePrimaryCtxRetain", Needs::initialization, [&] {
    require_device(device);
    if (!primary) primary = new_context();
    if (primary->references++ == 0) open(primary);
    *result = primary->handle;
  });
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
  return call("cuDevicePrimaryCtxRelease", Needs::initialization, [&] {
    require_device(device);
    if (!primary || primary->references == 0)
      refuse(CUDA_ERROR_INVALID_CONTEXT, "the primary context is not retained");
    if (--primary->references == 0) close(primary);
  });
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned* flags, int* active) {
  return call("cuDevicePrimaryCtxGetState", Needs::initialization, [&] {
    require_device(device);
    *flags = primary ? primary->flags : 0;
    *active = primary && primary->references > 0;
  });
}

}  // extern "C"
