// Every kernel, as one module per architecture.
#include "initial_tokens.cu"
#include "policy_parameters.cu"
#include "remask.cu"
#include "sample_tokens.cu"
#include "to_pixels.cu"
