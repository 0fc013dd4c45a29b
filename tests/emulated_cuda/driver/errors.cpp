// Names of errors. The list is made from cuda.h at build time: ERROR(CUDA_ERROR_..., "its words").

#include "state.h"

namespace emulated {
namespace {

struct ErrorText {
  CUresult result;
  const char* name;
  const char* words;
};

const ErrorText kTexts[] = {
#define ERROR(NAME, WORDS) {NAME, #NAME, WORDS " (emulated driver)"},
#include "error_names.inc"
#undef ERROR
};

const ErrorText* text_of(CUresult result) {
  for (const ErrorText& text : kTexts)
    if (text.result == result) return &text;
  return nullptr;
}

}  // namespace

std::string error_name(CUresult result) {
  const ErrorText* text = text_of(result);
  return text ? text->name : "error " + std::to_string(result);
}

}  // namespace emulated

extern "C" {

CUresult cuGetErrorName(CUresult error, const char** result) {
  const auto* text = emulated::text_of(error);
  *result = text ? text->name : nullptr;
  return text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

CUresult cuGetErrorString(CUresult error, const char** result) {
  const auto* text = emulated::text_of(error);
  *result = text ? text->words : nullptr;
  return text ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

}  // extern "C"
