#include "report.h"

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "allocations.h"
#include "context.h"

namespace emulated {
namespace {

// One JSON object, member by member.
class Object {
 public:
  void add(const char* name, uint64_t value) { add_text(name, std::to_string(value)); }
  void add(const char* name, const Object& value) { add_text(name, value.text()); }
  std::string text() const { return "{" + members_ + "}"; }

 private:
  void add_text(const char* name, const std::string& value) {
    if (!members_.empty()) members_ += ", ";
    members_ += std::string("\"") + name + "\": " + value;
  }

  std::string members_;
};

Object object(const Census& census) {
  Object result;
  result.add("device_allocations", census.device_allocations);
  result.add("device_bytes", census.device_bytes);
  result.add("pinned_allocations", census.pinned_allocations);
  result.add("pinned_bytes", census.pinned_bytes);
  result.add("streams", census.streams);
  result.add("events", census.events);
  result.add("graphs", census.graphs);
  result.add("graph_executables", census.graph_executables);
  result.add("modules", census.modules);
  return result;
}

Object live() {
  uint64_t contexts = 0, references = 0;
  for (const auto& [handle, context] : state().contexts) {
    contexts += context->alive;
    references += context->references;
  }
  Object result = object(census());
  result.add("contexts", contexts);
  result.add("primary_context_references", references);
  return result;
}

Object object(const Totals& totals) {
  Object result;
  result.add("kernel_launches", totals.kernel_launches);
  result.add("graph_launches", totals.graph_launches);
  result.add("graph_kernel_launches", totals.graph_kernel_launches);
  result.add("copies", totals.copies);
  result.add("graph_copies", totals.graph_copies);
  result.add("memsets", totals.memsets);
  result.add("host_functions", totals.host_functions);
  result.add("kernels_run", totals.kernels_run);
  return result;
}

std::string report() {
  Object result;
  result.add("live", live());
  result.add("released_with_context", object(state().released_with_context));
  result.add("totals", object(state().totals));
  return result.text();
}

void write_report() {
  const std::lock_guard<std::mutex> lock(state().mutex);
  std::ofstream(state().settings.report) << report() << "\n";
}

}  // namespace

void write_report_at_exit() {
  if (!state().settings.report.empty()) std::atexit(write_report);
}

}  // namespace emulated

// The report of this moment, for a test within the process. The text lives until this thread's
// next call.
extern "C" __attribute__((visibility("default"))) const char* emulated_cuda_report() {
  using namespace emulated;
  thread_local std::string text;
  const std::lock_guard<std::mutex> lock(state().mutex);
  text = report();
  return text.c_str();
}
