// Python's interpreter lock, which a thread may hold while it calls the driver.
#pragma once

namespace emulated {

// Gives the lock up, if this process runs Python and this thread has it. pycuda keeps it during
// calls that may wait, such as freeing memory; a host function that is written in Python and runs
// in another thread could then never go on, nor could whoever waits for it.
void* give_up_python_lock();

// Takes back what `give_up_python_lock` returned. Not to be called with the driver's lock: a thread
// with Python's lock may be waiting for that one.
void take_back_python_lock(void* thread_state);

}  // namespace emulated
