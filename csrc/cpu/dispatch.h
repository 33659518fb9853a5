// Which instruction set the CPU loops use.
#pragma once

#include <vector>

#include "kernels.h"

namespace fastdiff {

// The levels that were compiled, best first.
std::vector<const char*> built_levels();

// Those that this machine can run, best first, e.g. {"x86-64-v3", "x86-64-v2"}.
std::vector<const char*> cpu_levels();

// The loops of one level; throws std::invalid_argument naming the runnable ones if it is unknown or cannot run here.
const Kernels& kernels_for(const char* level);

// The loops to use: those of the environment variable FASTDIFF_CPU if it is set and not empty, else the best. Decided
// at the first call; throws as kernels_for does.
const Kernels& kernels();

}  // namespace fastdiff
