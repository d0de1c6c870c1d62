// nerfacc 0.5.2 with CUDA 13 and C++20: nvcc reads this file before nerfacc's sources (see nerfacc_kernels.py).
#pragma once
#include <cmath>
#include <math.h>
#include <cub/version.cuh>

#if CUB_VERSION >= 300000  // CUB 3 has left this name to the standard library
#include <cuda/std/functional>
namespace cub {
using Equality = ::cuda::std::equal_to<>;
}
#endif

// nerfacc defines ::lerp(float, float, float), which <math.h> of C++20, read above, has too.
#define lerp nerfacc_lerp
