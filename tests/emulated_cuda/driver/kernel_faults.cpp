#include "kernel_faults.h"

#include <signal.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>

#include "address_space.h"

namespace emulated {
namespace {

// The driver's lock lets one kernel run at a time.
const char* running_kernel = "";
struct sigaction previous_action;

void report_fault(int, siginfo_t* information, void*) {
  const auto address = reinterpret_cast<uintptr_t>(information->si_addr);
  const char* kind = is_in_address_space(address)
                         ? "memory that was freed, or far outside an allocation"
                         : "memory that is not the device's";
  char text[256];
  const int length = std::snprintf(text, sizeof text,
                                   "[emulated CUDA] the kernel %s touched %p: %s\n",
                                   running_kernel, information->si_addr, kind);
  if (write(STDERR_FILENO, text, static_cast<size_t>(length)) < 0) _exit(1);
  sigaction(SIGSEGV, &previous_action, nullptr);  // the instruction faults again, as before
}

}  // namespace

KernelFaults::KernelFaults(const char* kernel) {
  running_kernel = kernel;
  struct sigaction action = {};
  action.sa_sigaction = report_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, &previous_action);
}

KernelFaults::~KernelFaults() { sigaction(SIGSEGV, &previous_action, nullptr); }

}  // namespace emulated
