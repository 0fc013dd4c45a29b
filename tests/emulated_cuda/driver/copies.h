// Copies between device memory, pinned memory and ordinary ("pageable") host memory.
#pragma once

#include "state.h"

namespace emulated {

enum class Place { device, pinned, pageable };

struct End {
  Place place;
  uintptr_t address;
};

struct Copy {
  End destination;
  End source;
  size_t bytes;
};

}  // namespace emulated
