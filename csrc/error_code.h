// torch 2.13 brought a check of the stable ABI's error codes that says what went wrong; the check before it names only
// the call.
#pragma once

#include <torch/csrc/stable/library.h>

#ifndef STABLE_TORCH_ERROR_CODE_CHECK
#define STABLE_TORCH_ERROR_CODE_CHECK TORCH_ERROR_CODE_CHECK
#endif
