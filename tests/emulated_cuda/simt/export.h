// Exporting kernels of one file: SIMT_EXPORT(name) defines emulated_kernel_<name>, whose launch
// takes the arguments from a packed block, laid out as in a cubin.
#pragma once

#include <string.h>

#include <array>
#include <type_traits>
#include <utility>

#include "emulated_kernel.h"
#include "launch.h"

namespace simt {

// Each argument starts at the next multiple of its alignment.
template <class... Values>
struct PackedLayout {
  static constexpr unsigned count = sizeof...(Values);

  // Offsets of all arguments and, behind them, the size of the whole.
  static constexpr std::array<unsigned, count + 1> place() {
    const unsigned bytes[] = {unsigned(sizeof(Values))..., 0};
    const unsigned alignments[] = {unsigned(alignof(Values))..., 1};
    std::array<unsigned, count + 1> offsets = {};
    unsigned end = 0;
    for (unsigned index = 0; index <= count; ++index) {
      end = (end + alignments[index] - 1) / alignments[index] * alignments[index];
      offsets[index] = end;
      end += bytes[index];
    }
    return offsets;
  }

  static constexpr std::array<unsigned, count + 1> offsets = place();
  static constexpr std::array<unsigned, count + 1> sizes = {unsigned(sizeof(Values))..., 0};
};

template <class Value>
Value unpack(const unsigned char* place) {
  static_assert(std::is_trivially_copyable_v<Value>, "kernel arguments are copied as bytes");
  Value value;
  memcpy(&value, place, sizeof value);
  return value;
}

template <auto function>
struct Packed;

template <class... Values, void (*function)(Values...)>
struct Packed<function> {
  using Layout = PackedLayout<Values...>;

  static void call(const unsigned char* arguments) {
    call_with(arguments, std::index_sequence_for<Values...>{});
  }

 private:
  template <size_t... index>
  static void call_with([[maybe_unused]] const unsigned char* arguments,
                        std::index_sequence<index...>) {
    function(unpack<Values>(arguments + Layout::offsets[index])...);
  }
};

inline dim3 shape_of(const unsigned extents[3]) { return {extents[0], extents[1], extents[2]}; }

}  // namespace simt

#define SIMT_EXPORT(NAME)                                                                     \
  static int emulated_launch_##NAME(const unsigned grid[3], const unsigned block[3],          \
                                    unsigned dynamic_shared_bytes,                            \
                                    const unsigned char* arguments) {                         \
    return simt::launch({#NAME, simt::Packed<&NAME>::call}, simt::shape_of(grid),             \
                        simt::shape_of(block), dynamic_shared_bytes, arguments);              \
  }                                                                                           \
  extern "C" {                                                                                \
  __attribute__((visibility("default"))) extern const EmulatedKernel emulated_kernel_##NAME;  \
  const EmulatedKernel emulated_kernel_##NAME = {#NAME,                                       \
                                                 simt::Packed<&NAME>::Layout::count,          \
                                                 simt::Packed<&NAME>::Layout::offsets.back(), \
                                                 simt::Packed<&NAME>::Layout::offsets.data(), \
                                                 simt::Packed<&NAME>::Layout::sizes.data(),   \
                                                 simt::static_shared_bytes(),                 \
                                                 emulated_launch_##NAME};                     \
  }
