#include "state.h"

#include <cstdio>
#include <new>

#include "context.h"

namespace emulated {
namespace {

thread_local bool in_host_function = false;

void require(Needs needs) {
  if (needs == Needs::nothing) return;
  if (in_host_function)
    refuse(CUDA_ERROR_NOT_PERMITTED, "called from a host function, which must not use CUDA");
  if (!state().initialized) refuse(CUDA_ERROR_NOT_INITIALIZED, "cuInit was not called");
  if (needs == Needs::initialization) return;
  const auto context = current_context();
  if (needs == Needs::working_context) refuse_if_broken(*context);
}

CUresult outcome(const char* function, Needs needs, const std::function<void()>& body) {
  try {
    require(needs);
    body();
    return CUDA_SUCCESS;
  } catch (const Refusal& refusal) {
    if (!refusal.reason.empty())
      say(std::string(function) + ": " + refusal.reason + ": " + error_name(refusal.result));
    return refusal.result;
  } catch (const std::bad_alloc&) {
    return CUDA_ERROR_OUT_OF_MEMORY;
  }
}

}  // namespace

void refuse(CUresult result, std::string reason) { throw Refusal{result, std::move(reason)}; }

void say(const std::string& message) {
  std::fprintf(stderr, "[emulated CUDA] %s\n", message.c_str());
}

uint64_t unused_handle() {
  // Far from the small numbers that stand for special streams.
  static uint64_t last = 0xC0DA0000;
  return last += 16;
}

State& state() {
  static State& only = *new State;
  return only;
}

CUresult call(const char* function, Needs needs, const std::function<void()>& body) {
  // The thread that runs a host function called from here does not hold the lock.
  const std::lock_guard<std::mutex> lock(state().mutex);
  const CUresult result = outcome(function, needs, body);
  if (state().settings.log) say(std::string(function) + " -> " + error_name(result));
  return result;
}

void run_host_function(CUhostFn function, void* argument) {
  state().mutex.unlock();
  in_host_function = true;
  function(argument);
  in_host_function = false;
  state().mutex.lock();
}

}  // namespace emulated
