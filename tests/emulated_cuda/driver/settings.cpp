#include "settings.h"

#include <cstdlib>

#include "state.h"

namespace emulated {
namespace {

std::string text(const char* variable) {
  const char* value = std::getenv(variable);
  return value ? value : "";
}

[[noreturn]] void refuse_value(const char* variable, const char* expected) {
  refuse(CUDA_ERROR_INVALID_VALUE, std::string(variable) + " is \"" + text(variable) +
                                       "\"; it must be " + expected);
}

uint64_t number(const char* variable, uint64_t otherwise) {
  const std::string value = text(variable);
  if (value.empty()) return otherwise;
  char* end = nullptr;
  const uint64_t result = std::strtoull(value.c_str(), &end, 10);
  if (*end || value[0] == '-') refuse_value(variable, "a whole number");
  return result;
}

bool choice(const char* variable, const char* yes, const char* no, bool otherwise) {
  const std::string value = text(variable);
  if (value.empty()) return otherwise;
  if (value != yes && value != no)
    refuse_value(variable, (std::string(yes) + " or " + no).c_str());
  return value == yes;
}

}  // namespace

Settings settings_from_environment() {
  Settings settings;
  settings.kernels = text("EMULATED_CUDA_KERNELS");
  settings.report = text("EMULATED_CUDA_REPORT");
  settings.architecture = static_cast<int>(number("EMULATED_CUDA_ARCHITECTURE", 87));
  settings.lazy = choice("EMULATED_CUDA_STREAMS", "lazy", "eager", true);
  settings.integrated = choice("EMULATED_CUDA_INTEGRATED", "1", "0", false);
  settings.log = choice("EMULATED_CUDA_LOG", "1", "0", false);
  settings.memory_bytes = number("EMULATED_CUDA_MEMORY_MB", 512) << 20;
  settings.fail_after_launches = number("EMULATED_CUDA_FAIL_AFTER_LAUNCHES", 0);
  settings.fail_with =
      static_cast<int>(number("EMULATED_CUDA_FAIL_WITH", CUDA_ERROR_LAUNCH_FAILED));
  return settings;
}

}  // namespace emulated
