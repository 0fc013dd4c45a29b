// Every kernel, as one module per architecture.
#include "copy_rows.cu"
#include "initial_tokens.cu"
#include "policy_parameters.cu"
#include "remask.cu"
#include "sample_tokens.cu"
#include "sample_top_k_top_p.cu"
#include "sampling_parameters.cu"
#include "to_pixels.cu"
