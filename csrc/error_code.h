// The check of the error codes of torch's stable ABI that says what went wrong came with torch 2.13; before it there
// was one that names the call alone.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif
