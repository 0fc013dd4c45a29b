#include "cubin.h"

#include <elf.h>

#include <algorithm>
#include <cstring>

#include "state.h"

namespace emulated {
namespace {

constexpr unsigned kMachineCuda = 190;
constexpr unsigned char kAbiWithArchitectureInSecondByte = 8;

// Formats and names of the records in the sections .nv.info and .nv.info.<kernel>.
constexpr unsigned char kRecordWithSize = 4;
constexpr unsigned char kMostThreads = 0x05;
constexpr unsigned char kParameter = 0x17;
constexpr unsigned char kParameterBytes = 0x19;
constexpr unsigned char kRegisters = 0x2f;

struct Record {
  unsigned char name;
  const char* data;  // what follows the record's head
  unsigned value;    // its size, or the value itself where the format has no data
};

template <class Value>
Value read(const char* from) {
  Value value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

class Image {
 public:
  explicit Image(const void* start)
      : start_(static_cast<const char*>(start)), header_(read<Elf64_Ehdr>(start_)) {
    const Elf64_Shdr names = section(header_.e_shstrndx);
    section_names_ = start_ + names.sh_offset;
  }

  const Elf64_Ehdr& header() const { return header_; }
  unsigned sections() const { return header_.e_shnum; }
  Elf64_Shdr section(unsigned index) const {
    return read<Elf64_Shdr>(start_ + header_.e_shoff + index * header_.e_shentsize);
  }
  std::string name(const Elf64_Shdr& section) const { return section_names_ + section.sh_name; }

  // The name of a symbol, from the symbol table that the section `of` points to.
  std::string symbol(const Elf64_Shdr& of, unsigned index) const {
    const Elf64_Shdr table = section(of.sh_link);
    const auto entry =
        read<Elf64_Sym>(start_ + table.sh_offset + index * sizeof(Elf64_Sym));
    return start_ + section(table.sh_link).sh_offset + entry.st_name;
  }

  std::vector<Record> records(const Elf64_Shdr& section) const {
    std::vector<Record> result;
    const char* at = start_ + section.sh_offset;
    const char* end = at + section.sh_size;
    while (at + 4 <= end) {
      const auto value = read<uint16_t>(at + 2);
      result.push_back({static_cast<unsigned char>(at[1]), at + 4, value});
      at += at[0] == kRecordWithSize ? 4 + value : 4;
    }
    return result;
  }

 private:
  const char* start_;
  Elf64_Ehdr header_;
  const char* section_names_ = nullptr;
};

void require_cubin(const void* image) {
  if (!image) refuse(CUDA_ERROR_INVALID_VALUE, "there is no image");
  const auto* text = static_cast<const char*>(image);
  if (std::strncmp(text, ".version", 8) == 0 || std::strncmp(text, "//", 2) == 0)
    refuse(CUDA_ERROR_NOT_SUPPORTED, "this is PTX, which is not emulated; load a cubin");
  if (std::memcmp(text, ELFMAG, SELFMAG) != 0)
    refuse(CUDA_ERROR_INVALID_IMAGE, "this is not a cubin: it is no ELF file");
  if (read<Elf64_Ehdr>(text).e_machine != kMachineCuda)
    refuse(CUDA_ERROR_INVALID_IMAGE, "this ELF file is not for an NVIDIA GPU");
}

int architecture_of(const Elf64_Ehdr& header) {
  const bool second = header.e_ident[EI_ABIVERSION] >= kAbiWithArchitectureInSecondByte;
  return static_cast<int>((second ? header.e_flags >> 8 : header.e_flags) & 0xff);
}

// `rest` of a name that starts with `prefix`; empty for other names.
std::string after(const std::string& prefix, const std::string& name) {
  return name.compare(0, prefix.size(), prefix) == 0 ? name.substr(prefix.size()) : "";
}

void set_parameter(CubinKernel& kernel, const char* data) {
  const auto ordinal = read<uint16_t>(data + 4);
  if (kernel.parameters.size() <= ordinal) kernel.parameters.resize(ordinal + 1u);
  kernel.parameters[ordinal] = {read<uint16_t>(data + 6), read<uint32_t>(data + 8) >> 18};
}

CubinKernel parse_kernel(const Image& image, const Elf64_Shdr& section, std::string name) {
  CubinKernel kernel;
  kernel.name = std::move(name);
  for (const Record& record : image.records(section)) {
    if (record.name == kParameter) set_parameter(kernel, record.data);
    if (record.name == kParameterBytes) kernel.parameter_bytes = record.value;
    if (record.name == kMostThreads)
      kernel.most_threads = read<uint32_t>(record.data) * read<uint32_t>(record.data + 4) *
                            read<uint32_t>(record.data + 8);
  }
  return kernel;
}

CubinKernel* find(Cubin& cubin, const std::string& name) {
  const auto same = [&](const CubinKernel& kernel) { return kernel.name == name; };
  const auto found = std::find_if(cubin.kernels.begin(), cubin.kernels.end(), same);
  return found == cubin.kernels.end() ? nullptr : &*found;
}

void add_registers(Cubin& cubin, const Image& image, const Elf64_Shdr& section) {
  for (const Record& record : image.records(section)) {
    if (record.name != kRegisters) continue;
    const std::string name = image.symbol(section, read<uint32_t>(record.data));
    if (CubinKernel* kernel = find(cubin, name))
      kernel->registers = read<uint32_t>(record.data + 4);
  }
}

// From 9.0 on, the first KiB of these sections is the system's own.
void add_static_shared(CubinKernel& kernel, uint64_t bytes, int architecture) {
  const uint64_t reserved = architecture >= 90 ? 1024 : 0;
  kernel.static_shared = static_cast<unsigned>(bytes > reserved ? bytes - reserved : 0);
}

bool is_jetson_or_drive(int architecture) {
  for (const int known : {53, 62, 72, 87, 101, 110})
    if (architecture == known) return true;
  return false;
}

}  // namespace

const CubinKernel* Cubin::kernel(const std::string& name) const {
  return find(const_cast<Cubin&>(*this), name);
}

Cubin parse_cubin(const void* start) {
  require_cubin(start);
  const Image image(start);
  Cubin cubin;
  cubin.architecture = architecture_of(image.header());
  for (unsigned i = 0; i < image.sections(); ++i) {
    const Elf64_Shdr section = image.section(i);
    const std::string name = after(".nv.info.", image.name(section));
    if (!name.empty()) cubin.kernels.push_back(parse_kernel(image, section, name));
  }
  for (unsigned i = 0; i < image.sections(); ++i) {
    const Elf64_Shdr section = image.section(i);
    if (image.name(section) == ".nv.info") add_registers(cubin, image, section);
    if (CubinKernel* kernel = find(cubin, after(".nv.shared.", image.name(section))))
      add_static_shared(*kernel, section.sh_size, cubin.architecture);
  }
  return cubin;
}

bool runs_on(int code, int device) {
  if (is_jetson_or_drive(code) || is_jetson_or_drive(device)) return code == device;
  return code / 10 == device / 10 && code % 10 <= device % 10;
}

}  // namespace emulated
