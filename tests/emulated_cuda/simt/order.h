// The order in which blocks, and threads that could all go on, take their turns.
//
// A GPU promises none. A kernel whose result depends on it has a race, which other orders may
// bring to light: EMULATED_CUDA_ORDER=forward (the default), reverse, shuffled or shuffled:<seed>.
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <utility>
#include <vector>

namespace simt {

enum class Direction { forward, reverse, shuffled };

class Order {
 public:
  Direction direction = Direction::forward;

  // False if the text is none of the choices. No text means forward.
  bool parse(const char* text) {
    random_state_ = 1;
    direction = Direction::forward;
    if (text == nullptr || *text == 0 || strcmp(text, "forward") == 0) return true;
    direction = Direction::reverse;
    if (strcmp(text, "reverse") == 0) return true;
    direction = Direction::shuffled;
    if (strncmp(text, "shuffled", 8) != 0) return false;
    return text[8] == 0 || (text[8] == ':' && parse_seed(text + 9));
  }

  // Uniform enough in 0 … below - 1 for choosing who is next (SplitMix64, high half).
  unsigned random(unsigned below) {
    uint64_t bits = random_state_ += 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    return static_cast<unsigned>(((bits ^ (bits >> 31)) >> 32) * below >> 32);
  }

  std::vector<unsigned> blocks(unsigned count) {
    std::vector<unsigned> order(count);
    for (unsigned place = 0; place < count; ++place)
      order[place] = direction == Direction::reverse ? count - 1 - place : place;
    if (direction == Direction::shuffled)
      for (unsigned left = count; left > 1; --left) std::swap(order[left - 1], order[random(left)]);
    return order;
  }

 private:
  bool parse_seed(const char* digits) {
    char* end = nullptr;
    random_state_ = strtoull(digits, &end, 10);
    return *digits >= '0' && *digits <= '9' && *end == 0;
  }

  uint64_t random_state_ = 1;
};

}  // namespace simt
