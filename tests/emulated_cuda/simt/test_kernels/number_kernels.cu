// What simt/test_numbers.py runs.
#include "halves.cu"
#include "numbers.cu"
