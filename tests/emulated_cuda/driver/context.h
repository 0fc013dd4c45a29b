// Contexts, and each thread's stack of current ones.
#pragma once

#include "state.h"

namespace emulated {

struct Context {
  CUcontext handle = nullptr;
  bool alive = true;
  unsigned flags = 0;
  unsigned references = 0;         // of the primary context: retained and not released yet
  CUresult error = CUDA_SUCCESS;   // set once, by the first failure; every later call returns it
  std::shared_ptr<Stream> legacy;  // the default stream
  // Every stream with work, also a destroyed one whose work did not run yet.
  std::vector<std::shared_ptr<Stream>> streams;
};

// Refuses where the calling thread has no current context, or one that was destroyed.
std::shared_ptr<Context> current_context();

// Makes a context useless, as a failed kernel does. The first error counts.
void break_context(Context& context, CUresult error, const std::string& reason);
void refuse_if_broken(const Context& context);

}  // namespace emulated
