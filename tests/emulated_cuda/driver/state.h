// What the emulated driver knows, the one lock around it, and how every driver function begins.
#pragma once

#pragma GCC visibility push(default)
#include <cuda.h>
#pragma GCC visibility pop

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "settings.h"

namespace emulated {

struct Capture;
struct Context;
struct Event;
struct Function;
struct Graph;
struct GraphExecutable;
struct Module;
struct Node;
struct Stream;

// Thrown where a driver function turns a call down; the function returns `result`. Without a reason
// nothing is printed: "not ready yet" is no news.
struct Refusal {
  CUresult result;
  std::string reason;
};
[[noreturn]] void refuse(CUresult result, std::string reason = "");

void say(const std::string& message);
std::string error_name(CUresult result);

uint64_t unused_handle();

// Objects by handle. A handle is a number that never comes back, so one that is used after its
// object was destroyed is always found out. A real driver's handles are addresses, which do.
template <class Handle, class Object>
class Table {
 public:
  Handle add(std::shared_ptr<Object> object) {
    const Handle handle = reinterpret_cast<Handle>(unused_handle());
    objects_[handle] = std::move(object);
    return handle;
  }

  std::shared_ptr<Object> get(Handle handle, const char* kind) const {
    const auto found = objects_.find(handle);
    if (found == objects_.end())
      refuse(CUDA_ERROR_INVALID_HANDLE, std::string("no such ") + kind + ", or not any more");
    return found->second;
  }

  bool has(Handle handle) const { return objects_.count(handle) > 0; }
  void remove(Handle handle) { objects_.erase(handle); }
  size_t size() const { return objects_.size(); }
  auto begin() const { return objects_.begin(); }
  auto end() const { return objects_.end(); }

  // Removes every object for which `belongs` holds and returns how many those were.
  size_t remove_if(const std::function<bool(const Object&)>& belongs) {
    const size_t before = objects_.size();
    for (auto at = objects_.begin(); at != objects_.end();)
      at = belongs(*at->second) ? objects_.erase(at) : std::next(at);
    return before - objects_.size();
  }

 private:
  std::map<Handle, std::shared_ptr<Object>> objects_;
};

// Objects that the program made; for the report.
struct Census {
  size_t device_allocations = 0, device_bytes = 0;
  size_t pinned_allocations = 0, pinned_bytes = 0;
  size_t streams = 0, events = 0, graphs = 0, graph_executables = 0, modules = 0;
};

// Calls that were accepted; for the report. Operations that only entered a graph do not count.
struct Totals {
  uint64_t kernel_launches = 0, graph_launches = 0, graph_kernel_launches = 0;
  uint64_t copies = 0, graph_copies = 0, memsets = 0, host_functions = 0;
  uint64_t kernels_run = 0;
};

struct State {
  std::mutex mutex;
  std::condition_variable_any changed;  // a stream finished a piece of work

  bool initialized = false;
  Settings settings;
  Totals totals;
  Census released_with_context;

  Table<CUcontext, Context> contexts;
  Table<CUstream, Stream> streams;
  Table<CUevent, Event> events;
  Table<CUgraph, Graph> graphs;
  Table<CUgraphNode, Node> nodes;
  Table<CUgraphExec, GraphExecutable> executables;
  Table<CUmodule, Module> modules;
  Table<CUfunction, Function> functions;
  std::vector<std::shared_ptr<Capture>> captures;
};

// Never destroyed: objects of other libraries may call the driver while the process ends.
State& state();

// What must be in place before a driver function does its work.
enum class Needs {
  nothing,
  initialization,
  context,          // a current context, even one that an error made useless
  working_context,  // a current context without an error
};

// Runs the body of a driver function under the lock and returns what the function returns.
CUresult call(const char* function, Needs needs, const std::function<void()>& body);

// Runs the program's own function from a stream, without the lock. Driver functions that it calls,
// on this thread, are turned down.
void run_host_function(CUhostFn function, void* argument);

}  // namespace emulated
