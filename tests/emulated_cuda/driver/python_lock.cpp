#include "python_lock.h"

#include <dlfcn.h>

namespace emulated {
namespace {

// A function of Python's, by its name: the driver is not linked with Python.
template <class Function>
Function python(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

}  // namespace

void* give_up_python_lock() {
  static const auto has_lock = python<int (*)()>("PyGILState_Check");
  static const auto give_up = python<void* (*)()>("PyEval_SaveThread");
  return has_lock && give_up && has_lock() ? give_up() : nullptr;
}

void take_back_python_lock(void* thread_state) {
  static const auto take_back = python<void (*)(void*)>("PyEval_RestoreThread");
  if (thread_state) take_back(thread_state);
}

}  // namespace emulated
